"""Huffman-coded exports for makeweight."""

from .plugin import Huffman

__all__ = ["Huffman"]
