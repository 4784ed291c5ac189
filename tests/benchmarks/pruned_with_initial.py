"""What `teacher: initial` restores: LeNet-300-100 on MNIST pruned to 98 %, with and without it, paired over seeds.

    python tests/benchmarks/pruned_with_initial.py        needs MAKEWEIGHT_DATA, or downloads MNIST once

Each seed trains one dense network; from it, both arms prune in as many epochs with the same options and batches, as
the stages of recipes/prune-kd-mnist.yaml do. Options are to be chosen with `--on validation`.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from torch import nn

from makeweight import Trainer
from makeweight.data import by_name as data
from makeweight.data.batches import Tensors
from makeweight.models import by_name as models
from makeweight_kd import Distillation
from makeweight_prune import Prune

VALIDATION = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=6, help="of pruning")
    parser.add_argument("--sparsity", type=float, default=0.98)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--on", choices=["test", "validation"], default="test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = data.load("mnist", validation=VALIDATION)
    held_out = found.test if options.on == "test" else found.validation
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        dense = trained(models.build("lenet300", (1, 28, 28), 10, seed), found.train, seed, options.dense_epochs, [])
        kd = Distillation(teacher="initial", alpha=options.alpha, temperature=options.temperature)
        arms = [
            trained(dense, found.train, seed + 1000, options.epochs, [prune(options), *more]) for more in ([], [kd])
        ]
        rows.append([100 * accuracy(model, held_out) for model in (dense, *arms)])
        each, alone, taught = rows[-1]
        print(f"seed {seed}: dense {each:.2f} %, pruned {alone:.2f} %, with its teacher {taught:.2f} %", flush=True)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    gains = [taught - alone for _, alone, taught in rows]
    print(f"LeNet-300-100 on MNIST at sparsity {options.sparsity:g}, {len(rows)} seeds, on {options.on}:")
    print(f"dense       {means[0]:.2f} %")
    for name, mean in zip(("without kd", "with kd"), means[1:], strict=True):
        print(f"{name:10}  {mean:.2f} %, {means[0] - mean:.2f} points lost")
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    better = sum(gain > 0 for gain in gains)
    print(f"difference  {statistics.mean(gains):+.2f} points, standard deviation {spread:.2f}, "
          f"better in {better} of {len(gains)}")  # fmt: skip


def prune(options: argparse.Namespace) -> Prune:
    return Prune(sparsity=options.sparsity, scope="global", every=50)


def trained(model: nn.Module, train: Tensors, seed: int, epochs: int, plugins: list[object]) -> nn.Module:
    trainer = Trainer(copy.deepcopy(model), train, plugins=plugins, seed=seed, epochs=epochs, lr=0.05,
                      weight_decay=5e-4)  # fmt: skip
    trainer.journal.console.quiet = True
    trainer.fit()
    return trainer.model


def accuracy(model: nn.Module, held_out: Tensors) -> float:
    x, y = held_out.take(torch.arange(len(held_out)))
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


if __name__ == "__main__":
    main()
