"""What inspect says of values, against torch.unique, whatever the pieces in which a tensor is gone through."""

from __future__ import annotations

import pytest
import torch

from makeweight.commands import summary
from makeweight.commands.summary import nonzeros, patterns, value_facts

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "floats": torch.randn(1000, generator=GENERATOR),
    "bfloat16": torch.randn(500, generator=GENERATOR).bfloat16(),
    "float8": torch.randn(300, generator=GENERATOR).to(torch.float8_e4m3fn),
    "complex": torch.randn(10, dtype=torch.complex64, generator=GENERATOR),
    "few": torch.randint(-3, 3, (999,), generator=GENERATOR),
    "two runs": torch.cat([torch.zeros(50), torch.ones(57)]),
    "flags": torch.rand(33, generator=GENERATOR) < 0.5,
    "constant": torch.full((4, 5), -1, dtype=torch.int32),
    "scalar": torch.tensor(3.5),
    "nothing": torch.empty(0, 3),
}


@pytest.mark.parametrize("piece", [7, 50, 1 << 20])
@pytest.mark.parametrize("name", TENSORS)
def test_distinct_values_and_entropy_are_those_of_unique(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "PIECE", piece)
    counts = torch.unique(patterns(TENSORS[name]), return_counts=True)[1].double()
    share = counts / max(float(counts.sum()), 1.0)
    found = value_facts(TENSORS[name])
    assert found["distinct"] == len(counts)
    assert found["entropy"] == pytest.approx(float(-(share * share.log2()).sum()), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.float64])
def test_zeros_of_either_sign_are_zeros_in_every_piece(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "PIECE", 4)
    assert nonzeros(torch.tensor([0.0, -0.0, 1.0, 0.0, -2.0, 3.0, 0.0, -0.0, 0.5]).to(dtype)) == 4
