"""What self-distillation gains: ResNet-20 on part of CIFAR-10 with and without `kd`, paired over seeds.

    python tests/benchmarks/distillation.py DIR     DIR is an image folder: DIR/train/<class>/…, DIR/test/<class>/…

Both arms of a pair see the same images in the same order with the same augmentation, begin with the same weights and
take the same number of steps. Rates are to be chosen with `--on validation`, on images that neither arm trains on.
Self-distillation regularises: it gains where the network learns its images by heart, as it does here after 20 epochs
without augmentation and as it does in the paper's 250, and loses where training ends before (`--augment crop-flip
--images 10000 --epochs 6`).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor

from makeweight import Trainer, load
from makeweight.data import by_name as data
from makeweight.data.batches import Tensors
from makeweight.models import by_name as models
from makeweight.seeding import generator
from makeweight_kd import Distillation, exits_of

VALIDATION = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=5_000, help="training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--augment", default="none", help="as the trainer's; crop-flip leaves so few epochs too short")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--feature-weight", type=float, default=0.03)
    parser.add_argument("--on", choices=["test", "validation"], default="test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = splits(options)
    rows: list[dict[str, float]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        without, with_kd = (accuracies(train, held_out, seed, options, kd) for kd in (False, True))
        rows.append({"without kd": without["deepest"]} | with_kd)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.2%}" for name, value in rows[-1].items()), flush=True)
    print(f"{options.model}, {options.images:,} images, {options.epochs} epochs, {len(rows)} seeds, on {options.on}:")
    for name in rows[0]:
        values = [100 * row[name] for row in rows]
        gains = [100 * (row[name] - row["without kd"]) for row in rows]
        spread = statistics.stdev(gains) if len(rows) > 1 else 0.0
        better = sum(gain > 0 for gain in gains)
        print(f"{name:12} {statistics.mean(values):6.2f} %   {statistics.mean(gains):+5.2f} points, standard deviation "
              f"{spread:.2f}, better in {better} of {len(rows)}")  # fmt: skip


def splits(options: argparse.Namespace) -> tuple[Tensors, Tensors]:
    """So many training images with their augmentation, the same for every seed, and those that are measured on."""
    found = data.load(f"imagefolder:{options.folder.absolute()}", validation=VALIDATION, augment=options.augment)
    chosen = torch.randperm(len(found.train), generator=generator(0, 0))[: options.images]
    return found.train.subset(chosen), found.test if options.on == "test" else found.validation


def accuracies(train: Tensors, held_out: Tensors, seed: int, options: argparse.Namespace, kd: bool) -> dict[str, float]:
    """The accuracy of each exit and of the ensemble of a model that was trained, exported and read back."""
    begun = perf_counter()
    model = models.build(options.model, tuple(train[0][0].shape), 10, seed)
    plugins = [Distillation(exits="all", alpha=options.alpha, feature_weight=options.feature_weight)] if kd else []
    trainer = Trainer(model, train, plugins=plugins, seed=seed, epochs=options.epochs, batch_size=options.batch_size,
                      lr=options.lr, weight_decay=5e-4, warmup=1, precision=options.precision,
                      channels_last=True)  # fmt: skip
    trainer.journal.console.quiet = True
    trainer.fit()
    with TemporaryDirectory() as folder:
        trainer.export(Path(folder) / "model.safetensors")
        restored = load(Path(folder) / "model.safetensors", trainer.fresh_model()).eval()
    seconds = perf_counter() - begun
    right: dict[str, int] = {}
    with torch.no_grad():
        for indices in torch.arange(len(held_out)).split(500):
            x, y = held_out.take(indices)
            for name, logits in answers(restored, x, kd).items():
                right[name] = right.get(name, 0) + int((logits.argmax(1) == y).sum())
    print(f"  seed {seed} {'with' if kd else 'without'} kd: {seconds:.0f} s", flush=True)
    return {name: count / len(held_out) for name, count in right.items()}


def answers(model: torch.nn.Module, x: Tensor, kd: bool) -> dict[str, Tensor]:
    if not kd:
        return {"deepest": model(x)}
    exits = exits_of(model)
    *shallow, deepest = exits(x)
    named = {f"exit {number}": logits for number, logits in zip(exits.numbers, shallow, strict=True)}
    return named | {"deepest": deepest, "ensemble": exits.ensemble(x)}


if __name__ == "__main__":
    main()
