"""Masks: parameters of which elements stay zero, a service for every technique that removes weights."""

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
    """Bool masks by the plugin that owns them and by parameter (`fc1.weight`): True keeps.

    A parameter that several plugins mask keeps what all of them keep. The trainer applies the masks after each step,
    writes them into checkpoints, takes them into the next stage, and exports what they drop as +0.0.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self._owned: dict[str, dict[str, Tensor]] = {}
        self._held: tuple[list[Tensor], list[Tensor]] | None = None  # weights, and factors of their dtype and layout

    def set(self, owner: str, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks of a plugin by those of the first process, and apply them.

        Raises KeyError for a name that is no parameter, ValueError for a mask of another shape.
        """
        adopted = {}
        for name, mask in masks.items():
            weight = parameter(self.model, name)
            if mask.shape != weight.shape:
                raise ValueError(f"the mask of {name} has shape {list(mask.shape)}, {list(weight.shape)} is expected")
            adopted[name] = from_first(self.accelerator, mask.to(weight.device, torch.uint8)).bool()
        check_equal(self.accelerator, "masks", adopted)
        self._owned[owner] = adopted
        self.release()
        self.apply()

    def of(self, owner: str) -> dict[str, Tensor]:
        """The masks of a plugin by parameter."""
        return dict(self._owned.get(owner, {}))

    def combined(self) -> dict[str, Tensor]:
        """For each masked parameter what all plugins keep of it."""
        found: dict[str, Tensor] = {}
        for masks in self._owned.values():
            for name, mask in masks.items():
                found[name] = found[name] & mask if name in found else mask
        return found

    def apply(self) -> None:
        """Set what the masks drop to zero, in place: one call over all parameters."""
        if self._held is None:
            masks = self.combined()
            weights = [parameter(self.model, name).data for name in masks]
            # In the weights' own layout, so that one kernel runs over both.
            factors = [torch.empty_like(each).copy_(mask) for each, mask in zip(weights, masks.values(), strict=True)]
            self._held = weights, factors
        if self._held[0]:
            torch._foreach_mul_(*self._held)

    def release(self) -> None:
        """Look the parameters up anew: masks changed, or the model was prepared."""
        self._held = None

    def write_zeros(self, tensors: MutableMapping[str, Tensor]) -> None:
        """Write the zeros of masked parameters as +0.0: a product with a mask may be -0.0."""
        for name in self.combined():
            if name in tensors:
                tensors[name] = torch.where(tensors[name] == 0, 0, tensors[name])

    def carry(self, carried: Callable[[str, Tensor], Tensor | None]) -> None:
        """Follow a change of structure; a mask that cannot starts from the zeros of the parameter's new weights."""
        for masks in self._owned.values():
            for name, mask in list(masks.items()):
                moved = carried(name, mask)
                try:
                    masks[name] = parameter(self.model, name).detach() != 0 if moved is None else moved
                except KeyError:
                    del masks[name]
        self.release()

    def state(self) -> dict[str, Any]:
        """What a checkpoint and the next stage need."""
        return {owner: dict(masks) for owner, masks in self._owned.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take what `state` gave. Raises ValueError or KeyError where it does not fit the model."""
        for owner, masks in state.items():
            for name, mask in masks.items():
                weight = parameter(self.model, name)
                if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == weight.shape):
                    raise ValueError(f"the mask of {name} is not bool {list(weight.shape)}")
            self._owned[owner] = {
                name: mask.to(parameter(self.model, name).device) for name, mask in masks.items()
            }  # fmt: skip
        self.release()
