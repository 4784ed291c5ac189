from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from makeweight import MakeweightError, Trainer, UsageError
from makeweight.models.lenets import LeNet5, LeNet300
from makeweight_prune import Prune
from makeweight_prune.options import parsed
from makeweight_prune.pattern import inputs, most_kept, pattern_mask


def trainer(model: nn.Module, *plugins: object, size: int = 8, channels: int = 1, epochs: int = 3) -> Trainer:
    torch.manual_seed(0)
    data = (torch.randn(64, channels, size, size), torch.randint(0, 10, (64,)))
    return Trainer(model, data, plugins=plugins, batch_size=32, epochs=epochs)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2), st.booleans(), st.integers(0, 2**31))
def test_each_group_loses_exactly_its_smallest(
    out: int, count: int, m: int, levels: int, transposed: bool, seed: int
) -> None:
    """A group of a convolution is m neighbouring input channels at one position of one filter's kernel."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count * m, out, 2, 3) if transposed else (out, count * m, 2, 3)
    scores = torch.rand(shape, generator=generator)
    if levels:
        scores = (scores * levels).floor()
    dimension = 0 if transposed else 1
    for dropped in range(m + 1):
        mask = pattern_mask(scores, m, dropped, dimension)
        assert mask.shape == scores.shape
        for row, column, filter_number, group in [(0, 0, 0, 0), (1, 2, out - 1, count - 1)]:
            channels = slice(group * m, (group + 1) * m)
            where = (channels, filter_number) if transposed else (filter_number, channels)
            values, kept = scores[(*where, row, column)], mask[(*where, row, column)]
            assert int(kept.sum()) == m - dropped
            assert sorted(values[kept].tolist()) == sorted(values.tolist())[dropped:]
        assert int(mask.sum()) == scores.numel() // m * (m - dropped)
        assert most_kept(mask, m, dimension) == m - dropped


def test_torchs_semi_structured_conversion_restores_pruned_matrices_only() -> None:
    """torch.sparse's conversion for sparse tensor cores restores a matrix only if it is 2:4 along its rows."""
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )

    def there_and_back(matrix: torch.Tensor) -> torch.Tensor:
        values = sparse_semi_structured_from_dense_cutlass(matrix)
        dense: torch.Tensor = sparse_semi_structured_to_dense_cutlass(*values)
        return dense

    torch.manual_seed(0)
    linear, conv = torch.randn(64, 128).half(), torch.randn(64, 32, 3, 3).half()
    assert not torch.equal(there_and_back(linear), linear)
    linear *= pattern_mask(linear.abs(), 4, 2)
    assert torch.equal(there_and_back(linear), linear)
    conv *= pattern_mask(conv.abs(), 4, 2)
    rows = conv.permute(0, 2, 3, 1).reshape(64, -1)  # [out, kh · kw · in]: over channels-last images
    assert torch.equal(there_and_back(rows), rows)
    assert not torch.equal(there_and_back(conv.reshape(64, -1)), conv.reshape(64, -1))


@pytest.mark.parametrize("schedule", ["cubic", "linear", "one-shot", "iterative"])
@pytest.mark.parametrize("surgery", [False, True])
def test_training_ends_with_the_pattern_and_groups_lose_one_weight_after_the_other(
    schedule: Any, surgery: bool
) -> None:
    run = trainer(LeNet300((1, 8, 8), 10), Prune(pattern="2:4", schedule=schedule, surgery=surgery, every=1), epochs=6)
    seen = []

    def look(batch: Any, output: Any) -> torch.Tensor:
        seen.append(most_kept(run.model.get_parameter("fc1.weight"), 4))
        result: torch.Tensor = output.sum() * 0
        return result

    run.losses["look"] = look
    metrics = run.fit()
    assert metrics["sparsity"] == metrics["sparsity/fc1"] == 0.5
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 2
    assert (3 in seen) == (schedule != "one-shot")
    for name, layer in run.layers().items():
        assert ((layer.weight.view(-1, 4) != 0).sum(1) == 2).all(), name  # type: ignore[operator]


def test_convolutions_take_the_pattern_along_their_input_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 10)
    )
    run = trainer(model, Prune(pattern={"*": "2:4", "2": "1:4"}, schedule="one-shot"), channels=4)
    run.fit()
    first, second = run.model.get_parameter("0.weight"), run.model.get_parameter("2.weight")
    for place in range(9):
        assert ((first.view(8, 4, 9)[:, :, place] != 0).sum(1) == 2).all()
        assert ((second.view(2, 4, 4, 9)[..., place] != 0).sum(1) == 1).all()


def test_layers_with_indivisible_channels_are_skipped_but_refused_if_named() -> None:
    run = trainer(LeNet5((1, 28, 28), 10), Prune(pattern="2:4"), size=28)
    said = run.check()["prune"] or ""
    assert "430,000 weights of 3 layers, pattern conv2 2:4, fc1 2:4, fc2 2:4" in said
    assert "skipped, input channels not a multiple of M: conv1" in said
    for asked in ({"pattern": "2:4", "layers": "conv*"}, {"pattern": {"*": "2:4", "conv1": "2:4"}}):
        with pytest.raises(
            UsageError, match=r"prune\.pattern 2:4: conv1 has 1 input channels, expected a multiple of 4"
        ):
            trainer(LeNet5((1, 28, 28), 10), Prune(**asked), size=28).set_up()
    with pytest.raises(UsageError, match=r"prune\.pattern 2:7: no layer has a multiple of M input channels"):
        trainer(LeNet300((1, 8, 8), 10), Prune(pattern="2:7")).set_up()


def test_a_depthwise_convolution_has_one_input_channel() -> None:
    assert inputs(nn.Conv2d(8, 8, 3, groups=8)) == 1
    assert inputs(nn.ConvTranspose2d(8, 8, 3, groups=2)) == 4
    assert inputs(nn.Conv1d(8, 16, 3)) == inputs(nn.Linear(8, 3)) == 8


def test_a_pattern_that_was_undone_is_an_error_at_export(tmp_path: Any) -> None:
    run = trainer(LeNet300((1, 8, 8), 10), Prune(pattern="2:4"))
    run.fit()
    run.export(tmp_path / "good.safetensors")
    run.model.get_parameter("fc2.weight").data[3, 8:11] = 1.0
    with pytest.raises(MakeweightError, match=r"fc2 has [34] nonzero weights in a group of 4, expected at most 2"):
        run.export(tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("given", ["2", "4:2", "0:4", "2:4:8", "a:b", "2:99999", "-1:4", ""])
def test_malformed_patterns_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match=f"pattern {given}: expected N:M with 1 <= N <= M <= 9999, for example 2:4"):
        Prune(pattern=given)
    assert parsed("1:1") == (1, 1)
