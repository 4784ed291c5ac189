"""Where a network is cut: the modules after which a shallow classifier is put, or attention is compared."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from makeweight import UsageError
from makeweight.plugin import did_you_mean

from .chain import Chain
from .features import height
from .trace import Trace

MOST = 3
"""shallow classifiers of a network: as many as a ResNet gets"""
FEWEST_LAYERS = 2
"""layers in a section: a stem of one convolution is no section of its own"""
HALVED = 0.6
"""a map's height over that of the map before it, up to which it counts as halved"""
FOLLOWING = {f"torch.nn.modules.{kind}" for kind in ("activation", "batchnorm", "normalization")}
"""what belongs to the layer before it"""


def find_sections(trace: Trace, names: Sequence[str] | None = None, option: str = "sections") -> list[str]:
    """The names of the modules that end a section, in the order of the calls; the last section ends at the output.

    A convolutional network is cut where its resolution halves: before a block or a convolution that does it, after a
    pooling. So ResNets are cut after `layer1`, `layer2` and `layer3`. Any other is cut after its blocks or layers. At
    most three, evenly spread. `names` are globs that say it otherwise. Raises UsageError where a glob matches nothing,
    and where there is nothing to cut.
    """
    if names is not None:
        return _named(trace, names, option)
    chain = Chain(trace)
    found = _spread(_halvings(chain)) or _spread(_layers(chain))
    if not found:
        raise UsageError("kd: a network of one layer has no sections to teach: name a teacher with --kd.teacher")
    return found


def find_maps(trace: Trace) -> list[str]:
    """The ends of the sections, and that of the last one: where the attention of two networks is compared.

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
    """Where the resolution halves, as long as a layer that gives a map comes after it."""
    found: list[str] = []
    begun, before = 0, None
    for index, step in enumerate(chain.steps):
        size = height(step.output)
        if size is None:
            continue
        halved, before = before is not None and size <= HALVED * before, size
        if not halved or not any(each >= index and height(chain.steps[each].output) for each in chain.with_layers):
            continue
        end = chain.before(index) if index in chain.with_layers else index
        if chain.layers_within(begun, end) >= FEWEST_LAYERS and (name := chain.name_of(end)):
            found.append(name)
            begun = end + 1
    return found


def _layers(chain: Chain) -> list[str]:
    """After every step that has layers, but the last."""
    return [name for index in chain.with_layers[:-1] if (name := chain.name_of(index))]


def _spread(names: list[str]) -> list[str]:
    """At most MOST of the names, at which they cut evenly what they end and what follows the last."""
    count = min(MOST, len(names))
    return [names[-(-(index + 1) * (len(names) + 1) // (count + 1)) - 1] for index in range(count)]


def _named(trace: Trace, names: Sequence[str], option: str) -> list[str]:
    known = trace.names
    for glob in names:
        if not any(fnmatchcase(name, glob) for name in known):
            raise UsageError(f"kd.{option}: no module matches {glob!r}: {did_you_mean(glob, known)}")
    return [name for name in known if any(fnmatchcase(name, glob) for glob in names)]
