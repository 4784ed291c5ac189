"""The max-norm constraint (Srivastava et al. 2014, section 5.1): no neuron's weights grow beyond a norm."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from makeweight import UsageError, hookimpl

if TYPE_CHECKING:
    from makeweight import Trainer


@dataclass(eq=False)
class MaxNorm:
    """Keep the norm of each neuron's incoming weights below a limit."""

    limit: float = 3.0
    """the largest norm"""

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise UsageError(f"limit {self.limit:g}: expected a number above 0")

    @hookimpl(wrapper=True)
    def on_batch(self, trainer: Trainer) -> Generator[None, Any, Any]:
        loss = yield
        for name in trainer.layers():
            weight = trainer.model.get_parameter(f"{name}.weight").data
            weight.copy_(weight.renorm(2, 0, self.limit))
        return loss


class Norms:
    """Print the largest norm of a neuron's weights in each matrix of an export."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file")

    def run(self, arguments: argparse.Namespace) -> None:
        from makeweight import load_tensors

        for name, tensor in load_tensors(arguments.file).items():
            if tensor.ndim > 1:
                print(name, f"{tensor.flatten(1).norm(dim=1).max():.4f}")
