from __future__ import annotations

from makeweight.testing import PluginConformance


class TestDistillation(PluginConformance):
    name = "kd"
