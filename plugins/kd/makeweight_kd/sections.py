"""Cut a network into sections: the modules that end them feed shallow classifiers, or are compared with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from makeweight.plugin import UsageError, did_you_mean

from .chain import Chain
from .features import height
from .trace import Trace

MOST = 3
"""most sections that are found automatically, not counting the last: those of a ResNet"""
FEWEST_LAYERS = 2
"""a section has at least two layers, so that a stem of one convolution does not become a section"""
HALVED = 0.6
"""a map counts as halved where its height is at most this fraction of the previous map's"""
FOLLOWING = {f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization")}
"""modules of these kinds belong to the layer before them"""


def find_sections(trace: Trace, names: Sequence[str] | None = None, option: str = "sections") -> list[str]:
    """The names of the modules that end a section, in the order of the calls, without the last section.

    A convolutional network is cut where its resolution halves: before a block or convolution with a stride, and after
    a pooling layer. ResNets are cut after `layer1`, `layer2` and `layer3`. Other networks are cut after their blocks
    or layers. At most three cuts are made, evenly spread. `names` are globs that choose the modules instead, given as
    the option `option`. Raises UsageError for a glob without a match, and for a network of one layer.
    """
    if names is not None:
        return _named(trace, names, option)
    chain = Chain(trace)
    found = _spread(_halvings(chain)) or _spread(_layers(chain))
    if not found:
        raise UsageError("kd: a network of one layer has no shallow sections: name a teacher with --kd.teacher")
    return found


def find_maps(trace: Trace) -> list[str]:
    """The modules that end a section, the last section included: their feature maps are compared with a teacher's.

    Raises UsageError for a network without feature maps [B, C, H, W].
    """
    chain = Chain(trace)
    maps = [index for index in chain.with_layers if height(chain.steps[index].output) is not None]
    if not maps:
        raise UsageError("kd: the network has no feature maps [B, C, H, W] to compare")
    last = maps[-1]
    while last + 1 < len(chain.steps) and type(chain.modules[chain.steps[last + 1].name]).__module__ in FOLLOWING:
        last += 1
    ends = _halvings(chain) or [name for index in maps[:-1] if (name := chain.name_of(index))]
    return list(dict.fromkeys([*_spread(ends), chain.name_of(last)]))


def _halvings(chain: Chain) -> list[str]:
    """The modules that end where the resolution halves, if a layer that outputs a map follows."""
    found: list[str] = []
    start, before = 0, None
    for index, step in enumerate(chain.steps):
        size = height(step.output)
        if size is None:
            continue
        halved, before = before is not None and size <= HALVED * before, size
        if not halved or not any(each >= index and height(chain.steps[each].output) for each in chain.with_layers):
            continue
        end = chain.before(index) if index in chain.with_layers else index
        if chain.layers_within(start, end) >= FEWEST_LAYERS and (name := chain.name_of(end)):
            found.append(name)
            start = end + 1
    return found


def _layers(chain: Chain) -> list[str]:
    """The modules that end with a step that has layers, without the last."""
    return [name for index in chain.with_layers[:-1] if (name := chain.name_of(index))]


def _spread(names: list[str]) -> list[str]:
    """At most MOST of the names, evenly spaced: the parts between them and after the last are of similar length."""
    count = min(MOST, len(names))
    return [names[-(-(index + 1) * (len(names) + 1) // (count + 1)) - 1] for index in range(count)]


def _named(trace: Trace, names: Sequence[str], option: str) -> list[str]:
    known = trace.names
    for glob in names:
        if not any(fnmatchcase(name, glob) for name in known):
            raise UsageError(f"kd.{option}: no module matches {glob!r}: {did_you_mean(glob, known)}")
    return [name for name in known if any(fnmatchcase(name, glob) for glob in names)]
