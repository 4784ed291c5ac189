"""Weight clustering (trained quantization) for makeweight: the weights of a layer share few values."""

from .plugin import Cluster

__all__ = ["Cluster"]
