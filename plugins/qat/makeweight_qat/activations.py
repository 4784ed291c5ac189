"""The quantizers of activations: their ranges, over all processes, and what they make of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .quantizers import LearnedStep, affine_parameters, fake_quantize, first_step, gradient_factor
from .tracing import Home

if TYPE_CHECKING:
    from accelerate import Accelerator

AVERAGE = 0.1
"""share in the moving average of the range that is observed"""
SAMPLED = 1 << 16
"""activations of which a percentile is taken at most"""
UNSEEN = torch.tensor([0.0, 0.0, 1.0, 0.0])
"""-lowest, highest, step and zero point of a tensor that was never seen"""


class Ranges(nn.Module):
    """The ranges of n tensors of activations, by home, and the affine quantizers that follow from them.

    It is trained and checkpointed with the model as an auxiliary module. While `observing`, the forward notes the range
    of what it sees, and `update` makes of it, after the step, what holds for all processes. Until then a tensor that is
    seen for the first time is quantized by its own range.

    kind minmax: running extremes; moving: a moving average of the extremes of steps; percentile: the same of the
    percentiles; learned: steps are parameters that begin from the first step's extremes, zero points stay.
    """

    bounds: Tensor
    seen: Tensor
    scale: Tensor
    zero_point: Tensor
    limit: Tensor

    def __init__(self, bits: Mapping[Home, int], kind: str, percentile: float) -> None:
        super().__init__()
        self.bits, self.kind, self.percentile = dict(bits), kind, percentile
        self.limits = [2**each - 1 for each in bits.values()]  # the largest integers
        self.on = self.observing = False
        self.register_buffer("bounds", torch.zeros(2, len(bits)))  # -lowest, highest
        self.register_buffer("scale", torch.ones(len(bits)))
        self.register_buffer("zero_point", torch.zeros(len(bits)))
        self.register_buffer("seen", torch.zeros(len(bits), dtype=torch.bool))
        self.register_buffer("limit", torch.tensor(self.limits, dtype=torch.float32), persistent=False)
        self.steps = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in bits] if kind == "learned" else [])
        self._noted: dict[int, list[Tensor]] = {}  # of this step: -lowest, highest, and for a learned step the mean |x|
        self._read: Facts | None = None

    def quantize(self, index: int, x: Tensor) -> Tensor:
        """Tensor `index` of this forward on its grid, float32; noted where ranges are observed."""
        limit = self.limits[index]
        x = x.float()
        if self.observing:
            self._note(index, x.detach())
        if not self.on:
            return x
        facts = self.facts()
        if not facts.seen[index]:
            return self._by_own_range(index, x)
        low = -facts.zero_point[index]
        if self.kind == "learned":
            factor = gradient_factor(x[0].numel(), limit)
            return LearnedStep.apply(x, self.steps[index], low, limit + low, factor)
        if not x.is_cpu:  # one kernel, and no number that would have to be read from the device
            return torch.fake_quantize_per_tensor_affine(x, self.scale[index], self.zero_point[index].int(), 0, limit)
        return fake_quantize(x, facts.inverse[index], facts.scale[index], low, limit + low)

    def update(self, accelerator: Accelerator) -> None:
        """Take in what every process noted in this step, the widest range of any; nothing is observed afterwards."""
        self.observing = False
        wide = 3 if self.kind == "learned" else 2
        lost = [torch.full((), -torch.inf, device=self.bounds.device)] * wide
        flat = [value for index in range(len(self.limits)) for value in self._noted.get(index, lost)]
        noted = torch.stack(flat).view(-1, wide).T  # [2 or 3, tensors]
        self._noted.clear()
        if accelerator.num_processes > 1:
            noted = accelerator.gather(noted[None].contiguous()).amax(0)
        if self.kind == "learned":
            self._begin_steps(noted)
        else:
            self._follow(noted)

    def facts(self) -> Facts:
        """The quantizers as numbers; the scales are not learned ones, and those of this step on the CPU alone."""
        if self._read is None:
            scale = self.scale.cpu().numpy()
            self._read = Facts(self.seen.tolist(), scale.tolist(), (1 / scale).tolist(), self.zero_point.tolist())
        return self._read

    def scales(self) -> Tensor:
        """The steps as they are now, [n]."""
        return torch.cat(list(self.steps)).detach() if self.steps else self.scale

    def all_seen(self) -> bool:
        return all(self.facts().seen)

    def learned(self, used: bool) -> list[Tensor]:
        """The learned steps that take part in a training step, or those that do not: they have not begun."""
        return [each for each, seen in zip(self.steps, self.facts().seen, strict=False) if (self.on and seen) == used]

    def known(self) -> dict[Home, tuple[int, Tensor]]:
        """What is known of the tensors that were seen: bits, and -lowest, highest, step and zero point, [4]."""
        values = torch.stack([*self.bounds, self.scales(), self.zero_point], 1).cpu()
        known = zip(self.bits.items(), values, self.facts().seen, strict=True)
        return {home: (bits, each) for (home, bits), each, seen in known if seen}

    @torch.no_grad()
    def recall(self, known: Mapping[Home, tuple[int, Tensor]]) -> None:
        """Begin with what `known` gave, for tensors of as many bits; all others were never seen."""
        for index, (home, bits) in enumerate(self.bits.items()):
            before, values = known.get(home, (0, UNSEEN))
            values = values if before == bits else UNSEEN
            self.bounds[:, index], self.zero_point[index] = values[:2], values[3]
            (self.steps[index] if self.steps else self.scale[index]).copy_(values[2])
            self.seen[index] = values is not UNSEEN
        self._read = None

    def _note(self, index: int, x: Tensor) -> None:
        low, high = _extremes(x, self.percentile if self.kind == "percentile" else 100.0)
        noted = [-low, high, *([x.abs().mean()] if self.kind == "learned" else [])]
        if index in self._noted:  # by an earlier micro-batch, or an earlier call of the same module
            noted = [before.maximum(now) for before, now in zip(self._noted[index], noted, strict=True)]
        self._noted[index] = noted

    def _by_own_range(self, index: int, x: Tensor) -> Tensor:
        """Quantized by what was noted of the tensor in this very step, where it was."""
        if index not in self._noted:
            return x
        bounds, limit = torch.stack(self._noted[index][:2]), self.limits[index]
        scale, zero_point = affine_parameters(bounds, torch.tensor(limit, device=x.device))
        low = -float(zero_point)
        return fake_quantize(x, 1 / scale, scale, low, limit + low)

    def _follow(self, noted: Tensor) -> None:
        """Move observed ranges; what was not seen, or is no number, moves none."""
        tensors = self.bounds, noted, self.seen, self.limit, self.scale, self.zero_point
        # On the CPU with NumPy, whose small operations cost a tenth.
        xp: Any = np if noted.is_cpu else torch
        arrays: Any = [each.numpy() for each in tensors] if noted.is_cpu else tensors
        bounds, fresh, seen, limit, scale, zero_point = arrays
        moved = xp.maximum(bounds, fresh) if self.kind == "minmax" else bounds + AVERAGE * (fresh - bounds)
        found, complete = xp.isfinite(fresh).all(0), self.all_seen()
        if not complete:
            moved = xp.where(seen, moved, fresh)
            seen |= found
        bounds[:] = xp.where(found, moved, bounds)
        scale[:], zero_point[:] = affine_parameters(bounds, limit)
        if noted.is_cpu or not complete:  # elsewhere numbers would have to be waited for
            self._read = None

    def _begin_steps(self, noted: Tensor) -> None:
        """Let the steps of tensors that are seen for the first time begin; zero points stay what they are then."""
        limit, found = self.limit, noted.isfinite().all(0)
        fresh = found & ~self.seen
        self.bounds.copy_(torch.where(fresh, noted[:2], self.bounds))
        scale = first_step(noted[2], affine_parameters(self.bounds, limit)[0], limit)
        zero_point = (self.bounds[0].clamp_min(0) / scale).round().minimum(limit)
        self.zero_point.copy_(torch.where(fresh, zero_point, self.zero_point))
        with torch.no_grad():
            for index in fresh.nonzero()[:, 0].tolist():
                self.steps[index].copy_(scale[index])
        self.seen.logical_or_(found)
        self._read = None


class Facts(NamedTuple):
    """The quantizers of `Ranges` as Python numbers: a tensor's own would have to be read at every use."""

    seen: list[bool]
    scale: list[float]
    inverse: list[float]
    zero_point: list[float]


class Fixed:
    """A quantizer whose range is settled: what a file that was read has."""

    def __init__(self, scale: float, zero_point: int, bits: int) -> None:
        exact = torch.tensor(scale, dtype=torch.float32)
        self.scale, self.inverse = float(exact), float(1 / exact)
        self.low, self.high = -zero_point, 2**bits - 1 - zero_point

    def __call__(self, x: Tensor) -> Tensor:
        return fake_quantize(x.float(), self.inverse, self.scale, self.low, self.high)


def _extremes(x: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value, or those that so many percent of (at most 65,536 of) them stay within."""
    if percentile >= 100:
        return torch.aminmax(x)
    flat = x.flatten()
    flat = flat[:: -(-len(flat) // SAMPLED)]
    most = max(round(len(flat) * percentile / 100), 1)
    return flat.kthvalue(len(flat) + 1 - most).values, flat.kthvalue(most).values
