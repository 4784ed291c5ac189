"""Magnitude pruning for makeweight."""

from .plugin import Prune

__all__ = ["Prune"]
