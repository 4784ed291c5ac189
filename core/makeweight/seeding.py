"""Counter-based random numbers: equal (seed, step, rank) or (seed, epoch, sample) always give equal draws.

Random numbers therefore do not change if a run is resumed or uses another number of workers. The mixing function is
SplitMix64 (Steele, Lea & Flood 2014), in Python for one counter and in torch for a batch of counters.
"""

from __future__ import annotations

import zlib

import torch

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def mix(*counters: int) -> int:
    """A 63-bit seed from any number of counters."""
    state = 0
    for counter in counters:
        state = (state + counter + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state >> 1


def purpose(name: str) -> int:
    """The counter of a named random stream: the CRC-32 of the name."""
    return zlib.crc32(name.encode())


def generator(*counters: int) -> torch.Generator:
    """A CPU generator seeded with `mix(*counters)`."""
    return torch.Generator().manual_seed(mix(*counters))


def sample_noise(indices: torch.Tensor, draws: int, *counters: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), float32 [len(indices), draws]. Row i depends only on `indices[i]` and the counters."""
    start = torch.tensor(mix(*counters), dtype=torch.int64, device=indices.device)
    state = (start + indices[:, None] * _signed(_FIRST)) + torch.arange(1, draws + 1, device=indices.device) * _signed(
        _GOLDEN
    )
    state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
    return _shifted(state ^ _shifted(state, 31), 40).float() / (1 << 24)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _shifted(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64; torch's `>>` is arithmetic and copies the sign bit."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


class StepSeed:
    """Seeds torch's default generators before each step, about 100 times faster than `torch.manual_seed`."""

    def __init__(self, device: torch.device) -> None:
        self.other = device.type not in ("cpu", "cuda")
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            self.generators.append(torch.cuda.default_generators[device.index or 0])

    def __call__(self, *counters: int) -> None:
        seed = mix(*counters)
        if self.other:
            torch.manual_seed(seed)
        for each in self.generators:
            each.manual_seed(seed)
