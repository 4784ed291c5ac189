"""Lossless Huffman coding of exports for makeweight."""

from .plugin import Huffman

__all__ = ["Huffman"]
