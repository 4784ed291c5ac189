"""Quantization-aware training for makeweight."""

from .plugin import Quantization

__all__ = ["Quantization"]
