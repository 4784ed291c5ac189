"""The plugin class: attaches quantizers to a stage, carries their state to the next stage, and writes the export."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from makeweight.plugin import MakeweightError, check_equal, hookimpl, require

from .memory import Memory
from .options import QuantizationOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight.plugin import Artifact, StageOptions, Task, Trainer

    from .activations import Ranges
    from .plan import Plan
    from .weights import QuantizedWeight

OBSERVE_EVERY = 4
"""activations are observed in every fourth step: on a small network an observation takes a tenth of a step"""


@dataclass(eq=False)
class Quantization(QuantizationOptions):
    """Quantization-aware training: train with weights and activations of few bits, export integers."""

    conflicts: ClassVar[Mapping[str, str]] = {
        "cluster": "clustering needs one set of values per layer, quantization a grid per output channel"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.on = False  # whether quantization is on
        self.memory = Memory(self.ranges)  # state of the previous stage, or of a checkpoint
        self.quantizers: dict[str, QuantizedWeight] = {}  # of the weights, by layer
        self.plan: Plan | None = None
        self.observed: Ranges | None = None  # of the activations; None where none are quantized

    @hookimpl
    def on_check(self, options: StageOptions, model: nn.Module | None, batch: Any, task: Task) -> str:
        from .setup import check

        expected = f"less than the {options.epochs} epochs of the stage (0 bits turn quantization off for a stage)"
        require(self.is_off or self.begin < options.epochs, "qat.begin", f"{self.begin:g}", expected)
        if model is None:
            return f"weights {self.weights}, activations {self.activations} (bits), layers found when the stage begins"
        return check(self, model, batch, task)

    @hookimpl
    def on_init(self, trainer: Trainer) -> None:
        from .setup import attach_activations, attach_weights, observe_sample, plan_activations

        self.plan = plan_activations(self, trainer.model, trainer.sample_batch(), trainer.task)
        self.quantizers = attach_weights(self, trainer, self.memory)
        self.observed = attach_activations(self, trainer, self.plan, self.memory)
        if self.ranges == "learned":
            trainer.idle(lambda: self.learned(used=False))
        if trainer.resumed and self.memory.on:
            self._turn_on(trainer)
        if self.on and trainer.ending and self.observed is not None:
            observe_sample(self.observed, trainer)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        """Surround a training step: it quantizes with the ranges of earlier steps, and its observations update them."""
        from .quantizers import at_most_halved

        if not self.on and trainer.progress >= self.begin:
            self._turn_on(trainer)
        ranges = self.observed
        if ranges is not None:
            ranges.observing = self.on and self._is_due(trainer, ranges)
        with at_most_halved(self.learned(used=True)):
            loss = yield
        # After the limit above: it must not apply to step sizes that this update initialises.
        if ranges is not None and ranges.observing:
            ranges.update(trainer.accelerator)
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer) -> None:
        if self.observed is not None:
            known = {"scales": self.observed.scales(), "zero points": self.observed.zero_point}
            check_equal(trainer.accelerator, "ranges of activations: the", known)

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Replace quantized weights by integers and scales, and record the quantizers of activations."""
        from .record import write_activations, write_weight

        if not (self.on or self.is_off or artifact.trial):
            raise MakeweightError(f"qat.begin {self.begin:g}: training stopped before this epoch: train longer")
        record: dict[str, Any] = {"weights": {}, "activations": []}
        for layer, scale in self.scales(trainer).items():
            write_weight(artifact, layer, scale, self.quantizers[layer])
            record["weights"][layer] = [self.quantizers[layer].bits, self.quantizers[layer].axis]
        if self.observed is not None:
            record["activations"] = write_activations(self.observed, artifact.trial)
        artifact.metadata["qat"] = record

    @hookimpl
    def on_program(self, trainer: Trainer, model: nn.Module) -> None:
        """Turn the model into an integer program, for which onnxruntime uses integer operators."""
        from .plan import Plan
        from .program import QuantizeDequantize, make_program

        known = self.observed.known() if self.observed is not None else {}
        activations = {
            site: QuantizeDequantize(float(row[2]), float(row[3]), bits) for site, (bits, row) in known.items()
        }
        make_program(model, self.plan or Plan(), self.quantizers, self.scales(trainer), activations)

    @hookimpl
    def on_load(self, artifact: Artifact) -> None:
        from .record import read_weight

        for layer, (bits, axis) in artifact.metadata["qat"]["weights"].items():
            read_weight(artifact.tensors, layer, bits, axis)

    @hookimpl
    def on_attach(self, artifact: Artifact, model: nn.Module) -> None:
        from .record import attach_record

        attach_record(model, artifact.metadata["qat"]["activations"])

    def state_dict(self) -> dict[str, Any]:
        """A `Memory`: learned step sizes and ranges, as far as they are initialised."""
        steps = {layer: (each.bits, each.step.detach()) for layer, each in self.quantizers.items() if each.initialised}
        return Memory(self.ranges, self.on, steps, self.observed.known() if self.observed is not None else {}).write()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory = Memory.read(state, self.ranges)

    def scales(self, trainer: Trainer) -> dict[str, Tensor]:
        """The present scale of each output channel of each quantized weight, [C] by layer."""
        return {layer: self.quantizers[layer].scale(weight) for layer, weight in self._weights(trainer).items()}

    def learned(self, used: bool) -> list[Tensor]:
        """The learned step sizes in use, or those not in use: uninitialised, or before `begin`."""
        if self.ranges != "learned":
            return []
        steps: list[Tensor] = [each.step for each in self.quantizers.values()] if self.on == used else []
        return steps if self.observed is None else [*steps, *self.observed.learned(used)]

    def _turn_on(self, trainer: Trainer) -> None:
        """Begin to quantize. Initialises the learned step sizes of weights that no earlier stage initialised."""
        self.on = True
        for layer, weight in self._weights(trainer).items():
            self.quantizers[layer].turn_on(weight)
        if self.observed is not None:
            self.observed.on = True

    def _weights(self, trainer: Trainer) -> dict[str, Tensor]:
        """The unquantized weights, by layer."""
        from makeweight.plugin import parameter, weight_name

        return {layer: parameter(trainer.model, weight_name(layer)).detach() for layer in self.quantizers}

    def _is_due(self, trainer: Trainer, ranges: Ranges) -> bool:
        """Whether this step observes activations."""
        updating = self.freeze is None or trainer.progress < self.freeze
        due = self.ranges == "minmax" or (self.ranges != "learned" and trainer.step % OBSERVE_EVERY == 0)
        return (updating and due) or not ranges.all_seen()
