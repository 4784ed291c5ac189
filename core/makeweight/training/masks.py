"""Masks that keep elements of parameters at zero, for every technique that removes weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.layers import parameter
from .distributed import check_equal, from_first

if TYPE_CHECKING:
    from accelerate import Accelerator


class Masks:
    """Bool masks by owner (a plugin) and parameter name (`fc1.weight`); True keeps an element, False zeroes it.

    If several plugins mask a parameter, an element is kept only if all masks keep it. The trainer applies the masks
    after each step, saves them in checkpoints, passes them to the next stage, and exports masked elements as +0.0.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self._owned: dict[str, dict[str, Tensor]] = {}
        self._held: tuple[list[Tensor], list[Tensor]] | None = None  # weights, and factors of their dtype and layout

    def set(self, owner: str, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks of a plugin and apply them. The masks of the first process are used in all processes.

        Each mask has the shape of its parameter. Raises KeyError for an unknown parameter, and ValueError for a mask of
        another shape.
        """
        adopted = {}
        for name, mask in masks.items():
            weight = parameter(self.model, name)
            if mask.shape != weight.shape:
                raise ValueError(f"the mask of {name} has shape {list(mask.shape)}: expected {list(weight.shape)}")
            adopted[name] = from_first(self.accelerator, mask.to(weight.device, torch.uint8)).bool()
        check_equal(self.accelerator, "masks", adopted)
        self._owned[owner] = adopted
        self.release()
        self.apply()

    def of(self, owner: str) -> dict[str, Tensor]:
        """The masks of a plugin by parameter name."""
        return dict(self._owned.get(owner, {}))

    def combined(self) -> dict[str, Tensor]:
        """The intersection of all plugins' masks, by parameter name."""
        found: dict[str, Tensor] = {}
        for masks in self._owned.values():
            for name, mask in masks.items():
                found[name] = found[name] & mask if name in found else mask
        return found

    def apply(self) -> None:
        """Set masked elements to zero in place, with one call over all parameters."""
        if self._held is None:
            masks = self.combined()
            weights = [parameter(self.model, name).data for name in masks]
            # With the memory layout of the weights, so that one fused kernel handles both.
            factors = [torch.empty_like(each).copy_(mask) for each, mask in zip(weights, masks.values(), strict=True)]
            self._held = weights, factors
        if self._held[0]:
            torch._foreach_mul_(*self._held)

    def release(self) -> None:
        """Discard cached parameters. Call it when masks or parameters were replaced."""
        self._held = None

    def write_zeros(self, tensors: MutableMapping[str, Tensor]) -> None:
        """Replace -0.0 by +0.0 in masked parameters; multiplication by a mask may give -0.0."""
        for name in self.combined():
            if name in tensors:
                tensors[name] = torch.where(tensors[name] == 0, 0, tensors[name])

    def carry(self, carried: Callable[[str, Tensor], Tensor | None]) -> None:
        """Adapt the masks to a change of structure. `carried(name, mask)` returns the adapted mask or None.

        For None, the mask is rebuilt from the zeros of the new weights. Masks of removed parameters are dropped.
        """
        for masks in self._owned.values():
            for name, mask in list(masks.items()):
                moved = carried(name, mask)
                try:
                    masks[name] = parameter(self.model, name).detach() != 0 if moved is None else moved
                except KeyError:
                    del masks[name]
        self.release()

    def state(self) -> dict[str, Any]:
        """The masks by owner and parameter name, for checkpoints and the next stage."""
        return {owner: dict(masks) for owner, masks in self._owned.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of `state`. Raises ValueError or KeyError if it does not fit the model."""
        for owner, masks in state.items():
            for name, mask in masks.items():
                weight = parameter(self.model, name)
                if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == weight.shape):
                    raise ValueError(f"the mask of {name}: expected a bool tensor of shape {list(weight.shape)}")
            self._owned[owner] = {
                name: mask.to(parameter(self.model, name).device) for name, mask in masks.items()
            }  # fmt: skip
        self.release()
