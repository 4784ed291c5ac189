from __future__ import annotations

from makeweight.testing import PluginConformance


class TestDistillation(PluginConformance):
    name = "kd"


class TestExits(PluginConformance):
    name = "kd"
    options = {"exits": "all"}


class TestInitialTeacher(PluginConformance):
    name = "kd"
    options = {"teacher": "initial"}
