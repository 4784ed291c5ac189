"""A model as a sequence of calls from input to output: the candidate cuts between sections."""

from __future__ import annotations

from collections import Counter

from torch import nn

from makeweight.plugin import KINDS

from .trace import Call, Trace

WRAPPER = 0.9
"""a module with more than this fraction of the model's parameters counts as the model itself, and is opened"""


class Chain:
    """The steps of a model: its calls, with containers replaced by their children's calls.

    A container is a Sequential, or a module that holds nearly all of the parameters. Any other module, such as a
    residual block, is one step. `with_layers` lists the indices of the steps that contain a Linear or Conv layer.
    """

    def __init__(self, trace: Trace) -> None:
        self.modules = dict(trace.model.named_modules())
        self.times = Counter(call.name for call in trace.calls)
        self.whole = _parameters(trace.model)
        self.steps = self._steps_in(trace.calls, "")
        self.with_layers = [index for index, step in enumerate(self.steps) if self._layers(step.name)]

    def _steps_in(self, calls: list[Call], name: str) -> list[Call]:
        """The calls of a module's children, with containers replaced recursively."""
        inside = [call for call in calls if call.name != name and _is_within(call.name, name)]
        names = {call.name for call in inside}
        direct = [call for call in inside if not any(_is_within(call.name, other, True) for other in names)]
        steps: list[Call] = []
        for call in direct:
            below = self._steps_in(inside, call.name) if self._is_container(call.name) else []
            steps += below or [call]
        return steps

    def _is_container(self, name: str) -> bool:
        module = self.modules[name]
        wrapped = self.whole > 0 and _parameters(module) > WRAPPER * self.whole
        return self.times[name] == 1 and (isinstance(module, nn.Sequential) or wrapped)

    def _layers(self, name: str) -> int:
        return sum(isinstance(module, KINDS) for module in self.modules[name].modules())

    def layers_within(self, first: int, last: int) -> int:
        """The number of Linear and Conv layers in the steps from `first` to `last` inclusive."""
        return sum(self._layers(step.name) for step in self.steps[first : last + 1])

    def before(self, index: int) -> int:
        """The last step before step `index` and the steps that prepare it in the same container, such as a norm."""
        layer = max((each for each in self.with_layers if each < index), default=-1)
        parts = self.steps[index].name.split(".")
        shared = 0
        if layer >= 0:
            pairs = zip(self.steps[layer].name.split("."), parts, strict=False)
            shared = next((depth for depth, (one, other) in enumerate(pairs) if one != other), 0)
        part = ".".join(parts[: shared + 1])
        end = index - 1
        while end > layer and _is_within(self.steps[end].name, part):
            end -= 1
        return end

    def name_of(self, index: int) -> str:
        """The largest module that ends with a step; empty where there is none.

        A module that is called more than once cannot end a section: the step before it is used instead.
        """
        while index >= 0 and self.times[self.steps[index].name] > 1:
            index -= 1
        if index < 0:
            return ""
        name = self.steps[index].name
        following = self.steps[index + 1].name if index + 1 < len(self.steps) else ""
        while (outer := name.rpartition(".")[0]) in self.times and not _is_within(following, outer):
            name = outer
        return name


def _is_within(name: str, outer: str, strictly: bool = False) -> bool:
    return (name == outer and not strictly) or not outer or name.startswith(f"{outer}.")


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
