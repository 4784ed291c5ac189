"""The plugin: clusters the weights and updates the shared values after every step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight import MakeweightError, hookimpl
from makeweight.plugin import check_equal, from_first

from .options import ClusterOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer
    from makeweight.plugin import StageOptions

    from .codebook import Codebook


@dataclass(eq=False)
class Cluster(ClusterOptions):
    """Weight clustering: the weights of a layer share few values, which are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codebooks: dict[str, Codebook] = {}  # by parameter name, for example fc1.weight
        self.begun_at: int | None = None  # step at which this stage clustered its weights

    @hookimpl
    def on_check(self, options: StageOptions, model: nn.Module | None) -> str:
        if model is None:
            return "layers are looked up when the structure is decided"
        targets = self.targets(model)
        if targets:
            self.check_stage(options.epochs)
        shown = ", ".join(f"{name} to {count}" for name, count in targets.items())
        return f"distinct values of {shown or 'no layer'} ({self.initialisation})"

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        """Keep the previous stage's codebooks of the layers that this stage targets, until it makes its own."""
        targets = self.targets(trainer.model)
        if targets:
            self.check_stage(trainer.options.epochs)
        if not trainer.resumed:
            self.codebooks = {name: book for name, book in self.codebooks.items() if name in targets}
            self.begun_at = None
        for name, book in list(self.codebooks.items()):
            del self.codebooks[name]
            if (carried := _carried(trainer, name, book)) is not None:
                self.codebooks[name] = carried

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        from .codebook import alive, follow, project, regroup

        begin = trainer.options.epochs / 2 if self.begin is None else self.begin
        if self.begun_at is None and trainer.progress >= begin:
            self._make(trainer)
        weights = {name: _weight(trainer, name) for name in self.codebooks}
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

        weights = {name: _weight(trainer, name) for name in self.codebooks}
        check_equal(trainer.accelerator, "clustered weights", weights)
        if weights:
            metrics["distinct_values"] = max(distinct(weight) for weight in weights.values())

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Check the number of distinct values. Raises MakeweightError if it exceeds the target."""
        from .codebook import distinct

        for name, most in {} if artifact.trial else self.targets(trainer.model).items():
            found = distinct(artifact.tensors[name])
            if found > most:
                raise MakeweightError(
                    f"{name} has {found} distinct values, expected at most {most}: "
                    "clustered weights were changed, or training stopped before cluster.begin"
                )

    def state_dict(self) -> dict[str, Any]:
        """The codebooks, and the step at which this stage made them."""
        return {"codebooks": {name: vars(book) for name, book in self.codebooks.items()}, "begun_at": self.begun_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from makeweight.plugin import checked_count, checked_table

        from .codebook import checked

        books = checked_table(state, "codebooks")
        self.codebooks = {name: checked(checked_table(books, name)) for name in books}
        never = "begun_at" in state and state["begun_at"] is None
        self.begun_at = None if never else checked_count(state, "begun_at")

    def targets(self, model: nn.Module) -> dict[str, int]:
        """Target number of values by parameter name. Raises UsageError for a glob that matches no layer."""
        from makeweight.plugin import by_glob, layers, weight_name

        weights = {weight_name(name): count for name, count in by_glob(model, self.values, self.layers).items()}
        biases = {
            weight_name(name).removesuffix("weight") + "bias": count
            for name, count in by_glob(model, self.biases, self.layers).items()
            if layers(model)[name].bias is not None
        }
        return {name: count for name, count in (weights | biases).items() if count}

    def _reassigns_after(self, step: int) -> bool:
        if self.begun_at is None or self.reassign_every == 0:
            return False
        return (step + 1 - self.begun_at) % self.reassign_every == 0

    def _make(self, trainer: Trainer) -> None:
        """Cluster the current weights; all processes use the weights of the first."""
        from .codebook import make_codebook, project

        generator = trainer.generator("cluster")
        for name, count in self.targets(trainer.model).items():
            weight = _weight(trainer, name)
            weight.copy_(from_first(trainer.accelerator, weight))
            book = make_codebook(weight, count, self.initialisation, generator, self.reassign_every > 0)
            project(weight, book)
            self.codebooks[name] = book
        check_equal(trainer.accelerator, "codebooks", {name: book.values for name, book in self.codebooks.items()})
        self.begun_at = trainer.step


def _weight(trainer: Trainer, name: str) -> Tensor:
    """The tensor that the optimizer updates for this parameter (behind any parametrization)."""
    from makeweight.plugin import parameter

    return parameter(trainer.model, name).data


def _weight_or_none(trainer: Trainer, name: str) -> Tensor | None:
    try:
        return _weight(trainer, name)
    except KeyError:
        return None


def _carried(trainer: Trainer, name: str, book: Codebook) -> Codebook | None:
    """The codebook on the device, carried over to the parameter's present shape; None if a new structure dropped it.

    Raises MakeweightError if a checkpoint's codebook does not fit the model.
    """
    from .codebook import fits, from_labels, labels_of

    weight = _weight_or_none(trainer, name)
    if weight is not None and fits(book, weight, exactly=trainer.resumed and not trainer.ending):
        labels, latent = (None if each is None else trainer.carried(name, each) for each in labels_of(book))
        if labels is not None:
            return from_labels(book.values, labels, latent).to(weight)
    if trainer.resumed and not trainer.ending:
        raise MakeweightError(f"cluster: the checkpoint's codebook of {name!r} does not fit the model")
    return None
