"""Distillation for makeweight: from a teacher, or of the network from itself."""

from .plugin import Distillation

__all__ = ["Distillation"]
