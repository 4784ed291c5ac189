"""Codebooks: the nonzero elements of a tensor share few values, which are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .kmeans import initial_centroids, kmeans, nearest

MOST_LARGER = 64
"""largest accepted ratio of a parameter's size before a change of structure to its size after it"""


@dataclass
class Codebook:
    """The shared values of one tensor and the members of each cluster. Clusters are contiguous in `positions`."""

    values: Tensor
    """[k] centroids, the shared values"""
    sizes: Tensor
    """[k] int64, number of members of each cluster"""
    positions: Tensor
    """[n] int64, indices of the members in the flattened tensor"""
    shape: list[int]
    """shape of the tensor"""
    latent: Tensor | None = None
    """[n] value of each member if it had been trained alone; None if assignments are fixed"""

    def expanded(self) -> Tensor:
        """[n]: the shared value of each member."""
        return self.values.repeat_interleave(self.sizes, output_size=len(self.positions))

    def to(self, tensor: Tensor) -> Codebook:
        """A copy on the device of `tensor`."""
        device = tensor.device
        latent = None if self.latent is None else self.latent.to(device)
        return Codebook(self.values.to(device), self.sizes.to(device), self.positions.to(device), self.shape, latent)


def make_codebook(weight: Tensor, count: int, how: str = "linear", generator: torch.Generator | None = None,
                  keep_latent: bool = False) -> Codebook:  # fmt: skip
    """Cluster the nonzero elements of `weight` to at most `count` values.

    A weight that has no more distinct values keeps them. `how`: initial centroids, as in `initial_centroids`.
    """
    flat = weight.detach().flatten()
    positions = flat.nonzero().flatten()
    members = flat[positions]
    values = members.unique() if len(members) else flat.new_zeros(1)
    if len(values) > count:
        values = kmeans(members, initial_centroids(members.double(), count, how, generator)).to(flat.dtype)
    return _grouped(values, positions, members, list(weight.shape), keep_latent)


def regroup(book: Codebook, living: Tensor) -> Codebook:
    """Reassign each living member to the value nearest to its latent value; drop the others. `living`: [n] bool."""
    assert book.latent is not None
    return _grouped(book.values.sort().values, book.positions[living], book.latent[living], book.shape, True)


def labels_of(book: Codebook) -> tuple[Tensor, Tensor | None]:
    """Cluster index of each element (-1: none), and its latent value or None; both of the tensor's shape."""
    count = math.prod(book.shape)
    labels = torch.full((count,), -1, dtype=torch.int64, device=book.positions.device)
    labels[book.positions] = torch.arange(len(book.values), device=labels.device).repeat_interleave(book.sizes)
    if book.latent is None:
        return labels.view(book.shape), None
    latent = book.latent.new_zeros(count)
    latent[book.positions] = book.latent
    return labels.view(book.shape), latent.view(book.shape)


def from_labels(values: Tensor, labels: Tensor, latent: Tensor | None) -> Codebook:
    """Inverse of `labels_of`, for a codebook with the given values [k]."""
    flat = labels.flatten()
    positions = (flat >= 0).nonzero().flatten()
    order = flat[positions].argsort(stable=True)
    positions = positions[order]
    sizes = torch.bincount(flat[positions], minlength=len(values))
    kept = None if latent is None else latent.flatten()[positions]
    return Codebook(values, sizes, positions, list(labels.shape), kept)


def checked(state: Any) -> Codebook:
    """Build a codebook from an untrusted checkpoint. Raises ValueError for an inconsistent one."""
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
        raise ValueError("codebook values: expected finite floating-point numbers")
    shape = state["shape"]
    if not (isinstance(shape, list) and 0 < len(shape) <= 8 and all(type(each) is int and each > 0 for each in shape)):
        raise ValueError("codebook shape: expected a list of 1 to 8 positive whole numbers")
    if not len(sizes) or int(sizes.amin()) < 0 or int(sizes.amax()) > len(positions):
        raise ValueError("codebook sizes: out of range")
    if int(sizes.sum()) != len(positions):
        raise ValueError("codebook sizes: expected their sum to be the number of positions")
    if len(positions) and (int(positions.amin()) < 0 or int(positions.amax()) >= math.prod(shape)):
        raise ValueError("codebook positions: out of range")
    if len(positions.unique()) < len(positions):
        raise ValueError("codebook positions: expected distinct numbers")
    return Codebook(values, sizes, positions, shape, latent)


def fits(book: Codebook, weight: Tensor, exactly: bool) -> bool:
    """Whether dtype and shape equal those of `weight`; unless `exactly`, any shape up to MOST_LARGER times its size."""
    same = book.shape == list(weight.shape) if exactly else math.prod(book.shape) <= MOST_LARGER * weight.numel()
    return same and book.values.dtype == weight.dtype


def _grouped(values: Tensor, positions: Tensor, members: Tensor, shape: list[int], keep_latent: bool) -> Codebook:
    number = nearest(members, values)
    order = number.argsort(stable=True)
    sizes = torch.bincount(number, minlength=len(values))
    return Codebook(values, sizes, positions[order], shape, members[order] if keep_latent else None)


def alive(weight: Tensor, book: Codebook) -> Tensor:
    """[n] bool: members that are nonzero, so that no other plugin has pruned them."""
    return weight.view(-1).index_select(0, book.positions) != 0


def follow(weight: Tensor, book: Codebook, living: Tensor, scale: str) -> None:
    """Move each centroid by the sum or the mean of its members' updates, and set the members to it, in place.

    `weight` is the tensor after the optimizer's step. `living` [n] is `alive` before that step. SGD is linear in the
    gradients, with momentum too. The sum of the updates is therefore SGD's step of a centroid with the summed gradients
    of its members (Han et al. 2016, section 3.3, equation 3). The mean projects the optimizer's step onto the tensors
    with these clusters.
    """
    moved = weight.view(-1).index_select(0, book.positions)
    living &= moved != 0  # a mask may have been applied since
    displacement = torch.where(living, moved - book.expanded(), 0)
    # Not index_add_: it adds in an undefined order on a GPU, so that processes would drift apart.
    step = torch.segment_reduce(displacement, "sum", lengths=book.sizes)
    if scale == "mean":
        step = step / torch.segment_reduce(living.to(step), "sum", lengths=book.sizes).clamp(min=1)
    book.values = book.values + step
    if book.latent is not None:
        book.latent = book.latent + displacement
    project(weight, book, living)


def project(weight: Tensor, book: Codebook, living: Tensor | None = None) -> None:
    """Set (living) members to the values of their clusters and all other elements to zero, in place."""
    values = book.expanded() if living is None else torch.where(living, book.expanded(), 0)
    weight.zero_().view(-1).scatter_(0, book.positions, values)  # takes a fifth of the time of indexing


def distinct(tensor: Tensor) -> int:
    """Number of distinct nonzero values."""
    return len(tensor[tensor != 0].unique())
