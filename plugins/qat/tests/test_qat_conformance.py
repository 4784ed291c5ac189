from __future__ import annotations

from makeweight.testing import PluginConformance


class TestQuantization(PluginConformance):
    name = "qat"
    options = {"weights": 4, "ranges": "learned"}
