"""The plugin: which layers and which tensors are quantized, from when on, and what is written in the end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from makeweight import MakeweightError, UsageError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from makeweight import Artifact, Trainer

    from .activations import Ranges
    from .plan import Plan
    from .weights import QuantizedWeight

Bits = int | dict[str, int]
OBSERVE_EVERY = 4
"""steps from one look at the activations to the next, for averages: a look costs a small network a tenth of its step"""


@dataclass(eq=False)
class Quantization:
    """Train with weights and activations of few bits, and end in a model that computes with integers."""

    conflicts: ClassVar[Mapping[str, str]] = {
        "cluster": "few values for a layer and a grid for each of its channels cannot both hold"
    }

    weights: Bits = 8
    """bits of the weights, 2 to 8, or a table by layer glob: '{"*": 4, "fc3": 8}'; 0: as they are"""
    activations: Bits = 8
    """bits of what layers read, 2 to 8, or a table by layer glob; 0: as it is"""
    skip: list[str] = field(default_factory=list)
    """layers to leave alone: globs, and the words first and last"""
    ranges: Literal["moving", "minmax", "percentile", "learned"] = "moving"
    """of activations: a moving average of extremes, all that was seen, percentiles, or learned steps (LSQ). Of weights:
    their extremes, percentiles, or learned steps"""
    percentile: float = 99.99
    """with ranges percentile: the share of values, in percent, within each end of the range"""
    begin: float = 0.0
    """epoch of the stage at which quantization begins"""
    freeze: float | None = None
    """epoch of the stage from which on the ranges of activations stay; never unless given"""

    def __post_init__(self) -> None:
        for option in ("weights", "activations"):
            given = getattr(self, option)
            for layer, bits in (given if isinstance(given, dict) else {"": given}).items():
                if bits != 0 and not 2 <= bits <= 8:
                    where = f"{option} {layer} {bits}" if layer else f"{option} {bits}"
                    raise UsageError(f"{where}: expected 2 to 8 bits, or 0 for none")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"percentile {self.percentile:g}: expected 50 < percentile <= 100")
        if self.begin < 0:
            raise UsageError(f"begin {self.begin:g}: expected an epoch, 0 or more")
        if self.freeze is not None and self.freeze < self.begin:
            raise UsageError(f"freeze {self.freeze:g}: expected an epoch not before begin {self.begin:g}")
        self.on = False  # whether this stage's quantization has begun
        self.layers: list[str] = []  # whose weights this stage quantizes
        self.begun: dict[str, int] = {}  # by layer: the bits for which its learned steps began
        self.plan: Plan | None = None
        self.observed: Ranges | None = None

    @hookimpl
    def on_init(self, trainer: Trainer) -> str:
        from .setup import check_stages, describe, quantize_activations, quantize_weights

        check_stages(self, trainer)
        weights = quantize_weights(self, trainer)
        self.plan, self.observed = quantize_activations(self, trainer)
        self._follow_stage(trainer)
        return describe(self, weights)

    @hookimpl
    def on_stage_start(self, trainer: Trainer) -> None:
        self.on = False
        self._follow_stage(trainer)

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        from .quantizers import at_most_halved

        if not self.on and trainer.progress >= self.begin:
            self.on = True
            self._follow_stage(trainer, begins=True)
        with at_most_halved(self.learned(trainer)):
            if self.observed is None:
                return (yield)
            return (yield from self._observe(trainer, self.observed))

    def _observe(self, trainer: Trainer, ranges: Ranges) -> Generator[None, Any, Any]:
        """The ranges of a step's activations, taken in after it; a step itself quantizes by those before it."""
        moving = self.freeze is None or trainer.progress < self.freeze
        due = ranges.kind == "minmax" or (ranges.kind != "learned" and trainer.step % OBSERVE_EVERY == 0)
        ranges.observing = self.on and ((moving and due) or not ranges.all_seen())
        try:
            loss = yield
        finally:
            observed, ranges.observing = ranges.observing, False
        if observed:
            ranges.update(trainer.accelerator)
        return loss

    @hookimpl
    def on_epoch_end(self, trainer: Trainer) -> None:
        import torch

        from makeweight.distributed import check_equal

        if self.observed is not None:
            scales = torch.tensor(self.observed.scales())
            known = {"scales": scales, "zero points": self.observed.zero_point}
            check_equal(trainer.accelerator, "ranges of activations: the", known)

    @hookimpl
    def on_export(self, trainer: Trainer, artifact: Artifact) -> None:
        """Integers and their scales in the place of the weights; what the activations need stands in the record."""
        from makeweight.layers import weight_name

        from .record import write_activations, write_weight

        if not self.on:
            raise MakeweightError("qat: training stopped before qat.begin")
        record: dict[str, Any] = {"weights": {}, "activations": []}
        for layer, (quantizer, scale) in self.quantizers(trainer).items():
            size = write_weight(artifact.tensors, layer, scale, quantizer)
            artifact.sizes[weight_name(layer)] = size
            record["weights"][layer] = [quantizer.bits, quantizer.axis]
        if self.observed is not None and self.plan is not None:
            record["activations"] = write_activations(list(self.plan.bits), self.observed)
        artifact.metadata["qat"] = record

    @hookimpl
    def on_program(self, trainer: Trainer, model: nn.Module) -> None:
        """Integers, and the quantizers between them, so that onnxruntime runs integer operators."""
        from .plan import Plan
        from .program import QuantizeDequantize, make_program

        activations = {}
        if self.observed is not None and self.plan is not None:
            scales, zero_points = self.observed.scales(), self.observed.zero_point.tolist()
            for index, home in enumerate(self.plan.bits):
                if limit := self.observed.limits[index]:
                    activations[home] = QuantizeDequantize(scales[index], zero_points[index], limit)
        make_program(model, self.plan or Plan(), self.quantizers(trainer), activations)

    @hookimpl
    def on_load(self, artifact: Artifact, model: nn.Module | None) -> None:
        from .record import attach_activations, read_weight

        record = artifact.metadata["qat"]
        for layer, (bits, axis) in record["weights"].items():
            read_weight(artifact.tensors, layer, bits, axis)
        if model is not None and record["activations"]:
            attach_activations(model, record["activations"])

    def state_dict(self) -> dict[str, Any]:
        """Whether quantization has begun, and with which bits; ranges and learned steps are parts of the model."""
        return {"on": self.on, "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.on = bool(state["on"])
        self.begun = {str(layer): int(bits) for layer, bits in state["begun"].items()}

    def bits(self, model: nn.Module, option: Literal["weights", "activations"]) -> dict[str, int]:
        """The bits by layer, of those that are quantized. Raises UsageError for a glob that matches no layer."""
        from makeweight.layers import by_glob, layers

        left = set()
        for glob in self.skip:
            everything = list(layers(model))
            left |= {"first": {everything[0]}, "last": {everything[-1]}}.get(glob) or set(layers(model, glob))
        asked = by_glob(model, getattr(self, option))
        return {layer: bits for layer, bits in asked.items() if bits and layer not in left}

    def quantizers(self, trainer: Trainer) -> dict[str, tuple[QuantizedWeight, Tensor]]:
        """By layer: the quantizer that is on, and its scales as they are now, [C]."""
        from .setup import quantizer_of

        found = {}
        for layer in self.bits(trainer.model, "weights"):
            quantizer, weight = quantizer_of(trainer.model, layer)
            found[layer] = quantizer, quantizer.scale(weight)
        return found

    def learned(self, trainer: Trainer) -> list[Tensor]:
        """The learned steps of weights and of activations."""
        from .setup import quantizer_of

        if self.ranges != "learned" or not self.on:
            return []
        weights = [quantizer_of(trainer.model, layer)[0].step for layer in self.layers]
        return [*weights, *(self.observed.steps if self.observed is not None else [])]

    def _follow_stage(self, trainer: Trainer, begins: bool = False) -> None:
        """Give the quantizers this stage's bits, and turn them on or off."""
        from .setup import follow

        follow(self, trainer, begins)
