"""Weights with a constant input are found and pruned first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from makeweight import Trainer
from makeweight.models.lenets import LeNet300
from makeweight_prune import Prune
from makeweight_prune.idle import idle_last, varies


def test_inputs_of_a_linear_layer_vary_where_two_rows_differ() -> None:
    inputs = torch.tensor([[1.0, 2, 0, 5], [1, 3, 0, 5], [1, 2, 0, 6]])
    assert varies(nn.Linear(4, 3), inputs).tolist() == [[False, True, False, True]]
    assert varies(nn.Linear(4, 3), inputs.view(1, 3, 4)).tolist() == [[False, True, False, True]]  # tokens


@pytest.mark.parametrize(("padding", "expected"), [(0, [False, True, False]), (1, [True, True, False])])
def test_a_constant_varies_at_a_padded_border(padding: int, expected: list[bool]) -> None:
    inputs = torch.zeros(2, 3, 5, 5)
    inputs[:, 0], inputs[1, 1, 2, 2] = 7, 1  # constant, varying, zero
    found = varies(nn.Conv2d(3, 4, 3, padding=padding), inputs)
    assert found.shape == (4, 3, 1, 1)
    assert found[:, :, 0, 0].tolist() == [expected] * 4


def test_each_group_of_a_convolution_reads_its_own_channels() -> None:
    inputs = torch.zeros(2, 4, 5, 5)
    inputs[1, 1] = inputs[1, 2] = inputs[1, 3] = 1
    found = varies(nn.Conv2d(4, 6, 3, groups=2), inputs)  # [6, 2, 3, 3]
    assert found[:, :, 0, 0].tolist() == [[False, True]] * 3 + [[True, True]] * 3


def test_idle_weights_score_zero_and_pruned_weights_stay_pruned() -> None:
    scores = {"a": torch.tensor([[3.0, 2, -1]]), "b": torch.tensor([[1.0]])}
    found = idle_last(scores, {"a": torch.tensor([[True, False, False]])})
    assert found["a"].tolist() == [[3, 0, -1]]
    assert found["b"].tolist() == [[1]]


def test_weights_that_read_a_dead_unit_are_pruned_before_smaller_weights() -> None:
    torch.manual_seed(0)
    model = LeNet300((1, 8, 8), 10)
    with torch.no_grad():
        model.fc1.weight[:100] = 0  # a hundred units without inputs: their output is constant
        model.fc1.bias[:100] = 1
        model.fc2.weight[:, :100] *= 10
    data = torch.randn(640, 1, 8, 8), torch.randint(0, 10, (640,))

    def weights_of_the_dead(idle_first: bool) -> int:
        prune = Prune(sparsity={"fc2": 0.5}, schedule="one-shot", idle_first=idle_first)
        trainer = Trainer(model, data, data, plugins=[prune], epochs=1, lr=1e-6, weight_decay=0)
        trainer.fit()
        assert model.fc2.weight.count_nonzero() == 15_000
        return int(model.fc2.weight[:, :100].count_nonzero())

    before = model.state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    assert weights_of_the_dead(idle_first=False) > 9_000
    model.load_state_dict(kept)
    assert weights_of_the_dead(idle_first=True) == 0
