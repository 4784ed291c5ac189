from __future__ import annotations

from makeweight.testing import PluginConformance


class TestHuffman(PluginConformance):
    name = "huffman"
