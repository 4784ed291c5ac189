from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from makeweight import load_tensors
from makeweight.testing import TWO_BATCHES, PluginConformance, run_trainer


class TestCluster(PluginConformance):
    name = "cluster"
    options: ClassVar = {"values": 8, "biases": 4, "begin": 0}


class TestReassigned(PluginConformance):
    name = "cluster"
    options: ClassVar = {"values": 8, "begin": 0, "reassign_every": 1, "initialisation": "random"}


def test_prune_kd_cluster_and_huffman_keep_their_promises_together(tmp_path: Path) -> None:
    """The export has the target sparsity and at most k values, and reads back equal; in two processes too."""
    plugins = ["--plugins", "prune,kd,cluster,huffman", *TWO_BATCHES, "--epochs", "4", "--cluster.values", "6"]
    options = ["--prune.sparsity", "0.9", "--prune.end", "3", "--prune.every", "1", "--cluster.biases", "3"]
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        # Weights are clustered while the masks still change.
        run_trainer([*plugins, *options, "--cluster.begin", "1", "--out", str(out)], tmp_path, processes)
        summary = json.loads((out / "summary.json").read_text())
        tensors = load_tensors(out / "model.safetensors")
        for name, tensor in tensors.items():
            weight = name.endswith("weight")
            assert len(tensor[tensor != 0].unique()) <= (6 if weight else 3)
            assert not weight or int((tensor == 0).sum()) >= round(0.9 * tensor.numel())
        assert summary["export"]["accuracy"] == summary["accuracy"]
        assert summary["export"]["loss"] == pytest.approx(
            summary["loss"], rel=1e-6
        )  # two processes sum in another order
        assert summary["processes"] == processes
        assert torch.isfinite(tensors["fc1.weight"]).all()
