"""The quantizers of activations: observe ranges over all processes, and quantize tensors with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .quantizers import LearnedStep, affine_parameters, fake_quantize, gradient_factor, initial_step
from .tracing import Site

if TYPE_CHECKING:
    from accelerate import Accelerator

AVERAGE = 0.1
"""weight of a new observation in the moving average"""
SAMPLED = 1 << 16
"""a percentile is computed from at most this many values of a tensor"""
UNSEEN = torch.tensor([0.0, 0.0, 1.0, 0.0])
"""negated minimum, maximum, step size and zero point of a tensor before its first observation"""


class Ranges(nn.Module):
    """The ranges of n activation tensors, by site (tracing.py), and the affine quantizers computed from them.

    An auxiliary module, trained and checkpointed with the model. While `observing`, `quantize` records the range of
    each tensor; `update`, after the training step, merges the records of all processes into the ranges. In the step
    of its first observation a tensor is quantized with its own range.

    kind minmax: running minimum and maximum; moving: a moving average of each observed step's minimum and maximum;
    percentile: the same of percentiles; learned: the step sizes are parameters, initialised with the zero points from
    the first observation, and the zero points stay fixed.
    """

    bounds: Tensor
    seen: Tensor
    scale: Tensor
    zero_point: Tensor
    limit: Tensor

    def __init__(self, bits: Mapping[Site, int], kind: str, percentile: float) -> None:
        super().__init__()
        self.bits, self.kind, self.percentile = dict(bits), kind, percentile
        self.limits = [2**each - 1 for each in bits.values()]  # largest integers
        self.on = self.observing = False
        self.register_buffer("bounds", torch.zeros(2, len(bits)))  # negated minimum, maximum
        self.register_buffer("scale", torch.ones(len(bits)))
        self.register_buffer("zero_point", torch.zeros(len(bits)))
        self.register_buffer("seen", torch.zeros(len(bits), dtype=torch.bool))
        self.register_buffer("limit", torch.tensor(self.limits, dtype=torch.float32), persistent=False)
        self.steps = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in bits] if kind == "learned" else [])
        # This step's observations, by index: negated minimum, maximum, and with "learned" the mean of |x|.
        self._observations: dict[int, list[Tensor]] = {}
        self._host_values: HostValues | None = None

    def quantize(self, index: int, x: Tensor) -> Tensor:
        """Quantize the tensor of index `index`, of any shape, to float32, and observe its range while `observing`."""
        limit = self.limits[index]
        x = x.float()
        if self.observing:
            self._observe(index, x.detach())
        if not self.on:
            return x
        host = self.host_values()
        if not host.seen[index]:
            return self._quantize_by_own_range(index, x)
        low = -host.zero_point[index]
        if self.kind == "learned":
            factor = gradient_factor(x[0].numel(), limit)
            quantized: Tensor = LearnedStep.apply(x, self.steps[index], low, limit + low, factor)
            return quantized
        if not x.is_cpu:  # one kernel, and no value has to be read from the device
            return torch.fake_quantize_per_tensor_affine(x, self.scale[index], self.zero_point[index].int(), 0, limit)
        return fake_quantize(x, host.inverse[index], host.scale[index], low, limit + low)

    def update(self, accelerator: Accelerator) -> None:
        """Update the ranges with this step's observations, the widest of all processes, and stop observing."""
        self.observing = False
        wide = 3 if self.kind == "learned" else 2
        missing = [torch.full((), -torch.inf, device=self.bounds.device)] * wide
        flat = [value for index in range(len(self.limits)) for value in self._observations.get(index, missing)]
        observed = torch.stack(flat).view(-1, wide).T  # [2 or 3, tensors]
        self._observations.clear()
        if accelerator.num_processes > 1:
            observed = accelerator.gather(observed[None].contiguous()).amax(0)
        if self.kind == "learned":
            self._initialise_steps(observed)
        else:
            self._update_bounds(observed)

    def host_values(self) -> HostValues:
        """The quantizers as Python numbers.

        `scale` is not valid for learned step sizes, nor on a device, where it may be older than the latest step.
        """
        if self._host_values is None:
            scale = self.scale.cpu().numpy()
            numbers = scale.tolist(), (1 / scale).tolist(), self.zero_point.tolist()
            self._host_values = HostValues(self.seen.tolist(), *numbers)
        return self._host_values

    def scales(self) -> Tensor:
        """The present step sizes, [n]."""
        return torch.cat(list(self.steps)).detach() if self.steps else self.scale

    def all_seen(self) -> bool:
        """Whether every tensor was observed."""
        return all(self.host_values().seen)

    def learned(self, used: bool) -> list[Tensor]:
        """The learned step sizes in use, or those not in use: uninitialised, or before quantization begins."""
        seen = self.host_values().seen
        return [step for step, is_seen in zip(self.steps, seen, strict=False) if (self.on and is_seen) == used]

    def known(self) -> dict[Site, tuple[int, Tensor]]:
        """By site of each observed tensor: bits, and negated minimum, maximum, step size and zero point, [4]."""
        values = torch.stack([*self.bounds, self.scales(), self.zero_point], 1).cpu()
        rows = zip(self.bits.items(), values, self.host_values().seen, strict=True)
        return {site: (bits, row) for (site, bits), row, is_seen in rows if is_seen}

    @torch.no_grad()
    def restore(self, known: Mapping[Site, tuple[int, Tensor]]) -> None:
        """Restore the values that `known` returned, for tensors of the same bits; reset all other tensors."""
        for index, (site, bits) in enumerate(self.bits.items()):
            before, values = known.get(site, (0, UNSEEN))
            values = values if before == bits else UNSEEN
            self.bounds[:, index], self.zero_point[index] = values[:2], values[3]
            (self.steps[index] if self.steps else self.scale[index]).copy_(values[2])
            self.seen[index] = values is not UNSEEN
        self._host_values = None

    def _observe(self, index: int, x: Tensor) -> None:
        low, high = _extremes(x, self.percentile if self.kind == "percentile" else 100.0)
        observed = [-low, high, *([x.abs().mean()] if self.kind == "learned" else [])]
        if index in self._observations:  # from an earlier micro-batch, or an earlier call of the same module
            observed = [one.maximum(other) for one, other in zip(self._observations[index], observed, strict=True)]
        self._observations[index] = observed

    def _quantize_by_own_range(self, index: int, x: Tensor) -> Tensor:
        """Quantize x with the range observed in the present step; x itself where none was observed."""
        if index not in self._observations:
            return x
        bounds, limit = torch.stack(self._observations[index][:2]), self.limits[index]
        scale, zero_point = affine_parameters(bounds, torch.tensor(limit, device=x.device))
        low = -float(zero_point)
        return fake_quantize(x, 1 / scale, scale, low, limit + low)

    def _update_bounds(self, observed: Tensor) -> None:
        """Update the ranges with observations [2, n]. Missing, infinite and NaN observations are ignored."""
        tensors = self.bounds, observed, self.seen, self.limit, self.scale, self.zero_point
        # NumPy on the CPU: its small operations take a tenth of the time of torch's.
        xp: Any = np if observed.is_cpu else torch
        arrays: Any = [each.numpy() for each in tensors] if observed.is_cpu else tensors
        bounds, fresh, seen, limit, scale, zero_point = arrays
        moved = xp.maximum(bounds, fresh) if self.kind == "minmax" else bounds + AVERAGE * (fresh - bounds)
        found, complete = xp.isfinite(fresh).all(0), self.all_seen()
        if not complete:
            moved = xp.where(seen, moved, fresh)
            seen |= found
        bounds[:] = xp.where(found, moved, bounds)
        scale[:], zero_point[:] = affine_parameters(bounds, limit)
        if observed.is_cpu or not complete:  # on a device, reading the values would wait for it
            self._host_values = None

    def _initialise_steps(self, observed: Tensor) -> None:
        """Initialise step sizes and zero points of tensors observed for the first time, from observations [3, n]."""
        limit, found = self.limit, observed.isfinite().all(0)
        fresh = found & ~self.seen
        self.bounds.copy_(torch.where(fresh, observed[:2], self.bounds))
        scale = initial_step(observed[2], affine_parameters(self.bounds, limit)[0], limit)
        zero_point = (self.bounds[0].clamp_min(0) / scale).round().minimum(limit)
        self.zero_point.copy_(torch.where(fresh, zero_point, self.zero_point))
        with torch.no_grad():
            for index in fresh.nonzero()[:, 0].tolist():
                self.steps[index].copy_(scale[index])
        self.seen.logical_or_(found)
        self._host_values = None


class HostValues(NamedTuple):
    """The quantizers of `Ranges` as Python numbers, one per tensor, so that uses do not read tensors."""

    seen: list[bool]
    scale: list[float]
    inverse: list[float]
    zero_point: list[float]


class FixedQuantizer:
    """An affine quantizer of activations with a fixed scale and zero point, as read from a file."""

    def __init__(self, scale: float, zero_point: int, bits: int) -> None:
        exact = torch.tensor(scale, dtype=torch.float32)
        self.scale, self.inverse = float(exact), float(1 / exact)
        self.low, self.high = -zero_point, 2**bits - 1 - zero_point

    def __call__(self, x: Tensor) -> Tensor:
        return fake_quantize(x.float(), self.inverse, self.scale, self.low, self.high)


def _extremes(x: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, or below 100 the lower and upper percentile of at most SAMPLED values, each a scalar."""
    if percentile >= 100:
        return torch.aminmax(x)
    flat = x.flatten()
    flat = flat[:: -(-len(flat) // SAMPLED)]
    most = max(round(len(flat) * percentile / 100), 1)
    return flat.kthvalue(len(flat) + 1 - most).values, flat.kthvalue(most).values
