"""The plugin: when clusters are made, and that their members share one value after every step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from makeweight import MakeweightError, UsageError, hookimpl
from makeweight.distributed import check_equal, from_first

if TYPE_CHECKING:
    from torch import nn

    from makeweight import Artifact, Trainer

    from .codebook import Codebook


@dataclass(eq=False)
class Cluster:
    """Let the weights of a layer share few values, and train these values."""

    values: int | dict[str, int] = 32
    """distinct values of a layer's weights, zero apart, or a table by layer glob: '{"conv*": 64, "fc1": 12}'; 0: any"""
    biases: int | dict[str, int] = 0
    """distinct values of a layer's biases, or a table by layer glob; 0: any"""
    layers: str = "*"
    """glob of the layers, where values or biases is one number"""
    initialisation: Literal["linear", "random", "density"] = "linear"
    """where k-means begins: evenly from the smallest to the largest weight, at random weights, evenly over the ranks"""
    begin: float | None = None
    """epoch of the stage at which the clusters are made; half of the stage unless given"""
    reassign_every: int = 0
    """steps between two assignments of the weights to the nearest value; 0: clusters stay as they are made"""
    scale: Literal["mean", "sum"] = "mean"
    """a value moves by the mean, or as in the paper by the sum, of what the optimizer would move its members"""

    def __post_init__(self) -> None:
        for option in ("values", "biases"):
            given = getattr(self, option)
            for layer, count in (given if isinstance(given, dict) else {"": given}).items():
                if count < 0:
                    raise UsageError(
                        f"{option} {f'{layer} ' if layer else ''}{count}: expected 1 or more, or 0 for any"
                    )
        if self.begin is not None and self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.reassign_every < 0:
            raise UsageError(f"reassign_every {self.reassign_every}: expected 1 step or more, or 0 for never")
        self.codebooks: dict[str, Codebook] = {}  # by parameter: fc1.weight
        self.begun_at: int | None = None  # the step at which this stage's clusters were made

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        asked: dict[str, int] = {}  # over all stages
        for options, plugin in trainer.staged(self):
            epochs = options.epochs
            asked |= (targets := plugin.targets(trainer.model))
            if targets and plugin.begin is not None and plugin.begin >= epochs:
                raise UsageError(
                    f"cluster.begin {plugin.begin:g}: expected less than the {epochs} epochs of the stage; "
                    "cluster.values 0 leaves a stage out"
                )
        for name, book in self.codebooks.items():  # of a checkpoint
            self.codebooks[name] = book.to(_parameter(trainer, name))
        shown = ", ".join(f"{name} to {count}" for name, count in asked.items())
        return f"distinct values of {shown or 'no layer'} ({self.initialisation})"

    @hookimpl
    def on_stage_start(self, trainer: Trainer) -> None:
        """Clusters of the stage before last until this stage makes its own; layers that it leaves out are free."""
        targets = self.targets(trainer.model)
        self.codebooks = {name: book for name, book in self.codebooks.items() if name in targets}
        self.begun_at = None

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        from .codebook import alive, follow, project, regroup

        begin = trainer.stage.options.epochs / 2 if self.begin is None else self.begin
        if self.begun_at is None and trainer.progress >= begin:
            self._make(trainer)
        weights = {name: _parameter(trainer, name).data for name in self.codebooks}
        living = {name: alive(weight, self.codebooks[name]) for name, weight in weights.items()}
        loss = yield
        for name, weight in weights.items():
            follow(weight, self.codebooks[name], living[name], self.scale)
        if self._reassigns_after(trainer.step):
            for name, weight in weights.items():
                self.codebooks[name] = regroup(self.codebooks[name], living[name])
                project(weight, self.codebooks[name])
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        from .codebook import distinct

        weights = {name: _parameter(trainer, name).detach() for name in self.codebooks}
        check_equal(trainer.accelerator, "clustered weights", weights)
        if weights:
            metrics["distinct_values"] = max(distinct(weight) for weight in weights.values())

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Check that there are no more values than were asked for."""
        from .codebook import distinct

        for name, most in self.targets(trainer.model).items():
            found = distinct(artifact.tensors[name])
            if found > most:
                raise MakeweightError(
                    f"{name} has {found} distinct values where {most} were asked for: "
                    "values were changed after each step, or training stopped before cluster.begin"
                )

    def state_dict(self) -> dict[str, Any]:
        """The codebooks, and when this stage's were made."""
        return {"codebooks": {name: vars(book) for name, book in self.codebooks.items()}, "begun_at": self.begun_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from .codebook import Codebook

        self.codebooks = {name: Codebook(**book) for name, book in state["codebooks"].items()}
        self.begun_at = state["begun_at"]

    def targets(self, model: nn.Module) -> dict[str, int]:
        """The number of values asked for, by parameter. Raises UsageError for a glob that matches no layer."""
        from makeweight.layers import by_glob, layers

        weights = {f"{name}.weight": count for name, count in by_glob(model, self.values, self.layers).items()}
        biases = {
            f"{name}.bias": count
            for name, count in by_glob(model, self.biases, self.layers).items()
            if layers(model)[name].bias is not None
        }
        return {name: count for name, count in (weights | biases).items() if count}

    def _reassigns_after(self, step: int) -> bool:
        if self.begun_at is None or self.reassign_every == 0:
            return False
        return (step + 1 - self.begun_at) % self.reassign_every == 0

    def _make(self, trainer: Trainer) -> None:
        """Cluster the weights as they are now; the first process decides."""
        from .codebook import make_codebook, project

        generator = trainer.generator("cluster")
        for name, count in self.targets(trainer.model).items():
            weight = _parameter(trainer, name).data
            weight.copy_(from_first(trainer.accelerator, weight))
            book = make_codebook(weight, count, self.initialisation, generator, self.reassign_every > 0)
            project(weight, book)
            self.codebooks[name] = book
        check_equal(trainer.accelerator, "codebooks", {name: book.values for name, book in self.codebooks.items()})
        self.begun_at = trainer.step


def _parameter(trainer: Trainer, name: str) -> nn.Parameter:
    """`fc1.weight`: the one that the optimizer updates; or `fc1.bias`."""
    from makeweight.layers import leaf_weight

    layer, _, kind = name.rpartition(".")
    module: nn.Module = attrgetter(layer)(trainer.model) if layer else trainer.model
    return leaf_weight(module) if kind == "weight" else module.bias  # type: ignore[return-value]
