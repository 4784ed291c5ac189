"""Finding plugins by entry point, and the plugins of one run as pluggy holds them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint, distributions
from traceback import walk_tb
from typing import Any

import pluggy

from . import hookspecs
from .errors import UsageError, did_you_mean
from .options import Options, check_choices

GROUP = "makeweight"
COMMANDS = "makeweight.commands"


def installed(group: str = GROUP) -> dict[str, EntryPoint]:
    """The entry points of a group by name, none of them imported.

    The working directory, which `references.resolve` puts into sys.path as "", is not searched.
    """
    found: dict[str, EntryPoint] = {}
    for each in distributions(path=[entry for entry in sys.path if entry]):
        for entry in each.entry_points.select(group=group):
            found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def distribution(entry: EntryPoint) -> str:
    """The name and version of the distribution that an entry point came with."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def load_entry(name: str, group: str = GROUP) -> Any:
    """What the entry point `name` refers to. Raises UsageError when it is not installed or cannot be imported."""
    found = installed(group)
    if name not in found:
        raise UsageError(f"unknown plugin {name!r}: {did_you_mean(name, found)} ('trainer plugins' lists them)")
    try:
        return found[name].load()
    except Exception as error:
        where = f"plugin {name!r} ({distribution(found[name])}) cannot be imported from {found[name].value!r}"
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error


def load_class(name: str) -> type:
    """The class of an installed plugin, checked: a dataclass with at least one hook, and no hook that is misspelt."""
    cls = load_entry(name)
    where = f"plugin {name!r} ({distribution(installed()[name])})"
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UsageError(f"{where}: {installed()[name].value!r} must be a dataclass")
    check_hooks(cls, where)
    if needed := [each.name for each in fields(cls) if each.init and each.default is each.default_factory is MISSING]:
        raise UsageError(
            f"{where}: option {needed[0]!r} has no default: files are read with a plugin as it is by default"
        )
    if name in Options.__dataclass_fields__ or name == "makeweight":
        raise UsageError(f"{where}: an option of the trainer has the same name")
    return cls


def check_hooks(cls: type, where: str) -> None:
    """Refuse a class whose hooks would be passed over without a word: unmarked, misspelt, or with unknown arguments."""
    specs = {name: set(inspect.signature(spec).parameters) for name, spec in _specs().items()}
    hooks = 0
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        marked = hasattr(method, "makeweight_impl")
        if marked and name not in specs:
            raise UsageError(f"{where}: {name!r} is not a hook: {did_you_mean(name, specs)}")
        if not marked and (name in specs or name.startswith("on_")):
            fix = "mark it with @hookimpl" if name in specs else did_you_mean(name, specs)
            raise UsageError(f"{where}: {name!r} looks like a hook but is none: {fix}")
        if marked:
            hooks += 1
            if vars(method)["makeweight_impl"]["wrapper"] and not inspect.isgeneratorfunction(method):
                raise UsageError(f"{where}: wrapper {name!r} must yield once: 'loss = yield', then 'return loss'")
            unknown = set(inspect.signature(method).parameters) - specs[name] - {"self"}
            if unknown:
                raise UsageError(
                    f"{where}: hook {name!r} has no argument {sorted(unknown)[0]!r}: it may take "
                    f"{', '.join(sorted(specs[name]))}"
                )
    if hasattr(cls, "after"):
        raise UsageError(
            f"{where}: 'after' went with contract 0: a codec says 'codec = True', and others need no order"
        )
    if not hooks:
        raise UsageError(f"{where}: {cls.__name__} has no hook: choose from {', '.join(specs)}")
    if cls.__eq__ is not object.__eq__:
        raise UsageError(
            f"{where}: {cls.__name__} must be a dataclass with eq=False, or two equal ones could not register"
        )


def _specs() -> dict[str, Any]:
    return {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "makeweight_spec")}


def name_of(plugin: object) -> str:
    """The name under which a plugin's class is installed; for a class that is not, its own name in lower case."""
    value = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    for name, entry in installed().items():
        package, _, attribute = entry.value.partition(":")
        if entry.value == value or (
            attribute == type(plugin).__qualname__ and type(plugin).__module__.startswith(f"{package}.")
        ):
            return name
    return type(plugin).__name__.lower()


def check_order(plugins: dict[str, Any]) -> None:
    """Refuse plugins that say of each other that they cannot go together, and a codec that does not come last.

    `conflicts` holds names of plugins, or maps each name to the reason.
    """
    for name, plugin in plugins.items():
        conflicts = getattr(plugin, "conflicts", ())
        for other in conflicts:
            if other in plugins:
                reason = f" ({conflicts[other]})" if isinstance(conflicts, Mapping) else ""
                raise UsageError(f"plugins {name!r} and {other!r} cannot be used together{reason}: leave one out")
    order = sorted(plugins, key=lambda name: bool(getattr(plugins[name], "codec", False)))
    if order != list(plugins):
        raise UsageError(f"plugins {','.join(plugins)} are in an order that cannot work: use {','.join(order)}")


class Plugins:
    """The plugins of one run, in their order, and the hooks they share.

    Raises UsageError for plugins that cannot go together, and for a second one that replaces the training step.
    """

    def __init__(self, plugins: Sequence[object] | dict[str, Any], step: object | None = None) -> None:
        named = plugins if isinstance(plugins, dict) else {name_of(plugin): plugin for plugin in plugins}
        if len(named) != len(plugins):
            raise UsageError("a plugin is given twice: give each once, with all of its options")
        self.by_name: dict[str, Any] = named
        check_order(named)
        self.manager = pluggy.PluginManager("makeweight")
        self.manager.add_hookspecs(hookspecs)
        if step is not None:
            self.manager.register(step, "core")  # pluggy calls the last registered first: the core's step is innermost
        for name, plugin in reversed(named.items()):
            check_hooks(type(plugin), f"plugin {name!r}")
            check_choices(plugin, f"{name}.")
            self.manager.register(plugin, name)
        self.manager.check_pending()
        self.hook = self.manager.hook
        plain = [impl.plugin_name for impl in self.hook.on_batch.get_hookimpls() if not impl.wrapper]
        replacing = [name for name in reversed(plain) if name != "core"]
        if len(replacing) > 1:
            raise UsageError(f"plugins {' and '.join(replacing)} both replace the training step: leave one out")

    def with_hook(self, hook: str) -> list[str]:
        """The names of the plugins that implement a hook, in their order."""
        return [
            name for name, plugin in self.by_name.items() if hasattr(getattr(plugin, hook, None), "makeweight_impl")
        ]

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call a hook on one plugin alone, and return its result."""
        others = [plugin for plugin in self.manager.get_plugins() if plugin is not self.by_name[name]]
        results = self.manager.subset_hook_caller(hook, others)(**arguments)
        return results[0] if results else None

    def blame(self, error: BaseException) -> None:
        """Add a note to an exception that names the plugin whose code raised it, if one's did."""
        name = self._raised_by(error)
        note = f"in plugin {name!r}"
        if name is not None and note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def _raised_by(self, error: BaseException) -> str | None:
        """The plugin in whose code the innermost frame lies, up to pluggy's own: wrappers around it are not at fault.

        This costs nothing until something is raised.
        """
        homes = {name: type(plugin).__module__ for name, plugin in self.by_name.items()}
        for frame in reversed([frame for frame, _ in walk_tb(error.__traceback__)]):
            module = frame.f_globals.get("__name__", "")
            if module.partition(".")[0] == "pluggy":
                return None
            package = module.partition(".")[0]
            inside = [name for name, home in homes.items() if home.partition(".")[0] == package and name in installed()]
            own = [name for name in inside if homes[name] == module]
            if len(inside) == 1 or own:  # of several plugins in a package the one whose module it is
                return (own or inside)[0]
            for name, plugin in self.by_name.items():
                if _is_part(type(plugin), module, frame.f_code.co_qualname):
                    return name
        return None


def _is_part(cls: type, module: str | None, qualname: str) -> bool:
    """Whether a function of that name is a method of the class, or stands in one of its methods."""
    return module == cls.__module__ and qualname.startswith(f"{cls.__qualname__}.")
