"""Trained quantization for makeweight: weights that share few values."""

from .plugin import Cluster

__all__ = ["Cluster"]
