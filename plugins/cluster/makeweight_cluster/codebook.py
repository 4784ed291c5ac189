"""A tensor whose non-zero elements share few values, and how those values are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kmeans import initial_centroids, kmeans, nearest


@dataclass
class Codebook:
    """Which elements of a tensor share which value: the members of a cluster stand together in `positions`."""

    values: Tensor
    """[k] the centroids"""
    sizes: Tensor
    """[k] int64, members of each cluster"""
    positions: Tensor
    """[n] int64, the members' places in the flat tensor"""
    latent: Tensor | None = None
    """[n] where each member would be had it moved alone, kept where clusters are to change"""

    def expanded(self) -> Tensor:
        """[n] the value of each member."""
        return self.values.repeat_interleave(self.sizes, output_size=len(self.positions))

    def to(self, tensor: Tensor) -> Codebook:
        """On the device of `tensor`."""
        device = tensor.device
        latent = None if self.latent is None else self.latent.to(device)
        return Codebook(self.values.to(device), self.sizes.to(device), self.positions.to(device), latent)


def make_codebook(weight: Tensor, count: int, how: str = "linear", generator: torch.Generator | None = None,
                  keep_latent: bool = False) -> Codebook:  # fmt: skip
    """Cluster what is not zero in `weight` around at most `count` values; if it has no more than that, around these."""
    flat = weight.detach().flatten()
    positions = flat.nonzero().flatten()
    members = flat[positions]
    values = members.unique() if len(members) else flat.new_zeros(1)
    if len(values) > count:
        values = kmeans(members, initial_centroids(members.double(), count, how, generator)).to(flat.dtype)
    return _grouped(values, positions, members, keep_latent)


def regroup(book: Codebook, living: Tensor) -> Codebook:
    """The same values, each living member now with the one nearest to its latent place; the others are dropped."""
    assert book.latent is not None
    return _grouped(book.values.sort().values, book.positions[living], book.latent[living], True)


def _grouped(values: Tensor, positions: Tensor, members: Tensor, keep_latent: bool) -> Codebook:
    number = nearest(members, values)
    order = number.argsort(stable=True)
    sizes = torch.bincount(number, minlength=len(values))
    return Codebook(values, sizes, positions[order], members[order] if keep_latent else None)


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
