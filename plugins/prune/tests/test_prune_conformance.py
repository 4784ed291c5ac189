from __future__ import annotations

from makeweight.testing import PluginConformance


class TestPrune(PluginConformance):
    name = "prune"
    options = {"sparsity": 0.5, "every": 1}
