from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from makeweight import UsageError
from makeweight.data.batches import Batches, Tensors, as_dataset

CPU = torch.device("cpu")


def numbers(count: int) -> Tensors:
    return Tensors((torch.arange(count, dtype=torch.float32), torch.arange(count)))


class Slow(Dataset[Any]):
    """A data set that is not in memory, whose items depend on the generators."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3) + index, index


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3))
def test_processes_and_micro_batches_cut_the_same_global_batch(
    processes: int, accumulate: int, local: int, epoch: int
) -> None:
    batch_size, data = processes * accumulate * local, numbers(60)
    one = [batches[0][1].tolist() for batches in Batches(data, batch_size, CPU, training=True).epoch(epoch)]
    shares = [
        list(
            Batches(data, batch_size, CPU, training=True, accumulate=accumulate, rank=rank, processes=processes).epoch(
                epoch
            )
        )
        for rank in range(processes)
    ]
    for step, whole in enumerate(one):
        assert [int(i) for share in shares for batch in share[step] for i in batch[1]] == whole
    assert len(one) == 60 // batch_size


def test_an_epoch_is_a_permutation_and_the_next_one_another() -> None:
    batches = Batches(numbers(64), 16, CPU, training=True, seed=3)
    first, second = ([int(i) for [batch] in batches.epoch(epoch) for i in batch[1]] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


@pytest.mark.parametrize("data", [numbers(50), Slow()])
def test_an_epoch_from_a_step_on_is_the_rest_of_it(data: Any) -> None:
    batches = Batches(data, 8, CPU, training=True)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, 4))
    assert len(whole) == 6
    assert len(rest) == 2
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(whole[4:], rest, strict=True))


def test_workers_change_nothing() -> None:
    alone, helped = (list(Batches(Slow(), 10, CPU, training=True, workers=workers).epoch(1)) for workers in (0, 2))
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_sees_every_example_once(processes: int) -> None:
    seen = [
        int(i)
        for rank in range(processes)
        for batch in Batches(numbers(47), 10, CPU, training=False, rank=rank, processes=processes).in_order()
        for i in batch[1]
    ]
    assert sorted(seen) == list(range(47))


def test_mappings_are_cut_by_name() -> None:
    data = as_dataset({"a": torch.arange(10), "b": torch.arange(10) * 2}, "data")
    for [batch] in Batches(data, 5, CPU, training=True).epoch(0):
        assert torch.equal(batch["a"] * 2, batch["b"])


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size 10: expected a multiple of 4"):
        Batches(numbers(50), 10, CPU, training=True, processes=2, accumulate=2)
    with pytest.raises(UsageError, match="batch_size 64: expected at most the 50"):
        Batches(numbers(50), 64, CPU, training=True)
    with pytest.raises(UsageError, match=r"lengths \[2, 3\]"):
        as_dataset((torch.zeros(3), torch.zeros(2)), "data")
    with pytest.raises(UsageError, match="data is a int"):
        as_dataset(3, "data")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_a_layout_that_convolutions_keep(channels: int) -> None:
    images = torch.arange(7.0 * channels * 5 * 4).reshape(7, channels, 5, 4)
    data = as_dataset((images, torch.arange(7)), "x")
    [(batch, labels)] = Batches(data, 7, CPU, training=False, channels_last=True).in_order()
    assert torch.equal(batch, images)
    assert labels.tolist() == list(range(7))
    assert batch.permute(0, 2, 3, 1).is_contiguous()
    assert torch.nn.Conv2d(channels, 8, 3)(batch).is_contiguous(memory_format=torch.channels_last)
