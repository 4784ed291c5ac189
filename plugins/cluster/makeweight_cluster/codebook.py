"""A tensor whose non-zero elements share few values, and how those values are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .kmeans import initial_centroids, kmeans, nearest

MOST_LARGER = 64
"""times as many elements as now that a parameter may have had before a change of structure"""


@dataclass
class Codebook:
    """Which elements of a tensor share which value: the members of a cluster stand together in `positions`."""

    values: Tensor
    """[k] the centroids"""
    sizes: Tensor
    """[k] int64, members of each cluster"""
    positions: Tensor
    """[n] int64, the members' places in the flat tensor"""
    shape: list[int]
    """of the tensor"""
    latent: Tensor | None = None
    """[n] where each member would be had it moved alone, kept where clusters are to change"""

    def expanded(self) -> Tensor:
        """[n] the value of each member."""
        return self.values.repeat_interleave(self.sizes, output_size=len(self.positions))

    def to(self, tensor: Tensor) -> Codebook:
        """On the device of `tensor`."""
        device = tensor.device
        latent = None if self.latent is None else self.latent.to(device)
        return Codebook(self.values.to(device), self.sizes.to(device), self.positions.to(device), self.shape, latent)


def make_codebook(weight: Tensor, count: int, how: str = "linear", generator: torch.Generator | None = None,
                  keep_latent: bool = False) -> Codebook:  # fmt: skip
    """Cluster what is not zero in `weight` around at most `count` values; if it has no more than that, around these."""
    flat = weight.detach().flatten()
    positions = flat.nonzero().flatten()
    members = flat[positions]
    values = members.unique() if len(members) else flat.new_zeros(1)
    if len(values) > count:
        values = kmeans(members, initial_centroids(members.double(), count, how, generator)).to(flat.dtype)
    return _grouped(values, positions, members, list(weight.shape), keep_latent)


def regroup(book: Codebook, living: Tensor) -> Codebook:
    """The same values, each living member now with the one nearest to its latent place; the others are dropped."""
    assert book.latent is not None
    return _grouped(book.values.sort().values, book.positions[living], book.latent[living], book.shape, True)


def labels_of(book: Codebook) -> tuple[Tensor, Tensor | None]:
    """The number of each element's cluster, -1 where it has none, and where it would be: both of the tensor's shape."""
    count = math.prod(book.shape)
    labels = torch.full((count,), -1, dtype=torch.int64, device=book.positions.device)
    labels[book.positions] = torch.arange(len(book.values), device=labels.device).repeat_interleave(book.sizes)
    if book.latent is None:
        return labels.view(book.shape), None
    latent = book.latent.new_zeros(count)
    latent[book.positions] = book.latent
    return labels.view(book.shape), latent.view(book.shape)


def from_labels(values: Tensor, labels: Tensor, latent: Tensor | None) -> Codebook:
    """The codebook of these values with which `labels_of` gives these tensors."""
    flat = labels.flatten()
    positions = (flat >= 0).nonzero().flatten()
    order = flat[positions].argsort(stable=True)
    positions = positions[order]
    sizes = torch.bincount(flat[positions], minlength=len(values))
    kept = None if latent is None else latent.flatten()[positions]
    return Codebook(values, sizes, positions, list(labels.shape), kept)


def checked(state: Any) -> Codebook:
    """A codebook as it stands in a checkpoint, which is untrusted. Raises ValueError for what is no codebook."""
    from makeweight.plugin import checked_keys, checked_table, checked_tensor

    checked_keys(checked_table(state), [each.name for each in fields(Codebook)])
    values, positions = checked_tensor(state, "values", [None]), checked_tensor(state, "positions", [None], torch.int64)
    sizes = checked_tensor(state, "sizes", values.shape, torch.int64)
    latent = None
    if state["latent"] is not None:
        latent = checked_tensor(state, "latent", positions.shape, values.dtype)
    if not all(
        each.is_floating_point() and each.isfinite().all() for each in (values, *([] if latent is None else [latent]))
    ):
        raise ValueError("the values of a codebook are not finite floating-point numbers")
    shape = state["shape"]
    if not (isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(each) is int and each > 0 for each in shape)):
        raise ValueError("the shape of a codebook is no list of counts")
    if not len(sizes) or int(sizes.amin()) < 0 or int(sizes.amax()) > len(positions):
        raise ValueError("the sizes of a codebook are out of range")
    if int(sizes.sum()) != len(positions):
        raise ValueError("the sizes of a codebook do not add up to its members")
    if len(positions) and (int(positions.amin()) < 0 or int(positions.amax()) >= math.prod(shape)):
        raise ValueError("the positions of a codebook are out of range")
    if len(positions.unique()) < len(positions):
        raise ValueError("a codebook has members in two clusters")
    return Codebook(values, sizes, positions, shape, latent)


def fits(book: Codebook, weight: Tensor, exactly: bool) -> bool:
    """Whether a codebook can be one of a tensor: of its shape if `exactly`, else of one that is not much larger."""
    same = book.shape == list(weight.shape) if exactly else math.prod(book.shape) <= MOST_LARGER * weight.numel()
    return same and book.values.dtype == weight.dtype


def _grouped(values: Tensor, positions: Tensor, members: Tensor, shape: list[int], keep_latent: bool) -> Codebook:
    number = nearest(members, values)
    order = number.argsort(stable=True)
    sizes = torch.bincount(number, minlength=len(values))
    return Codebook(values, sizes, positions[order], shape, members[order] if keep_latent else None)


def alive(weight: Tensor, book: Codebook) -> Tensor:
    """[n] bool: the members that nothing else has set to zero."""
    return weight.view(-1).index_select(0, book.positions) != 0


def follow(weight: Tensor, book: Codebook, living: Tensor, scale: str) -> None:
    """Move each centroid by its members' displacements, their sum or their mean, and set the members to it.

    `weight` is what the optimizer made of the members' common values, in place; `living` is `alive` before its step.
    As SGD is linear in the gradients, with momentum too, the sum of the displacements is its step of a centroid by the
    summed gradients of the members: Han et al. 2016, section 3.3, equation 3. The mean projects the optimizer's step
    onto the tensors that share values in this way.
    """
    moved = weight.view(-1).index_select(0, book.positions)
    living &= moved != 0  # a mask may have been applied since
    displacement = torch.where(living, moved - book.expanded(), 0)
    # Not index_add_, which adds in any order on a GPU: processes would drift apart.
    step = torch.segment_reduce(displacement, "sum", lengths=book.sizes)
    if scale == "mean":
        step = step / torch.segment_reduce(living.to(step), "sum", lengths=book.sizes).clamp(min=1)
    book.values = book.values + step
    if book.latent is not None:
        book.latent = book.latent + displacement
    project(weight, book, living)


def project(weight: Tensor, book: Codebook, living: Tensor | None = None) -> None:
    """Set the (living) members to the values of their clusters and all else to zero, in place."""
    values = book.expanded() if living is None else torch.where(living, book.expanded(), 0)
    weight.zero_().view(-1).scatter_(0, book.positions, values)  # a fifth of the time of indexing


def distinct(tensor: Tensor) -> int:
    """The number of distinct values other than zero."""
    return len(tensor[tensor != 0].unique())
