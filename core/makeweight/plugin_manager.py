"""The ordered plugins of a trainer, registered with pluggy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import pluggy

from . import hookspecs
from .discovery import check_hooks, installed, name_of
from .errors import UsageError
from .options import check_choices


def check_order(plugins: dict[str, Any]) -> None:
    """Raise UsageError if two plugins conflict or if a codec is not the last plugin.

    A plugin's `conflicts` lists the names of plugins that it cannot be combined with, or maps each name to the reason.
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
    """Ordered plugin instances and their hook callers. `step` is the core's own implementation of `on_batch`.

    Raises UsageError if a plugin is given twice or has invalid hooks, if plugins conflict, or if two plugins replace
    the training step.
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
            self.manager.register(step, "core")  # pluggy calls in reverse order of registration: this is innermost
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
        """The names of the plugins that implement `hook`, in plugin order."""
        return [
            name for name, plugin in self.by_name.items() if hasattr(getattr(plugin, hook, None), "makeweight_impl")
        ]

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call `hook` on one plugin only. Returns its result, or None if the plugin does not implement the hook."""
        others = [plugin for plugin in self.manager.get_plugins() if plugin is not self.by_name[name]]
        results = self.manager.subset_hook_caller(hook, others)(**arguments)
        return results[0] if results else None

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Add a note with the name of the plugin to every exception that a plugin's code raises (see `blame`)."""
        try:
            yield
        except Exception as error:
            self.blame(error)
            raise

    def blame(self, error: BaseException) -> None:
        """If the code of a plugin raised `error`, add a note that names the plugin."""
        name = self._raised_by(error)
        note = f"in plugin {name!r}"
        if name is not None and note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def _raised_by(self, error: BaseException) -> str | None:
        """The name of the plugin whose code owns the innermost frame of the traceback, or None.

        The search stops at the first frame of pluggy. Frames outside it belong to wrappers, which are not at fault.
        """
        homes = {name: type(plugin).__module__ for name, plugin in self.by_name.items()}
        for frame in reversed([frame for frame, _ in walk_tb(error.__traceback__)]):
            module = frame.f_globals.get("__name__", "")
            if module.partition(".")[0] == "pluggy":
                return None
            package = module.partition(".")[0]
            inside = [name for name, home in homes.items() if home.partition(".")[0] == package and name in installed()]
            own = [name for name in inside if homes[name] == module]
            if len(inside) == 1 or own:  # if a package has several plugins, the module decides
                return (own or inside)[0]
            for name, plugin in self.by_name.items():
                if _is_part(type(plugin), module, frame.f_code.co_qualname):
                    return name
        return None


def _is_part(cls: type, module: str | None, qualname: str) -> bool:
    """Whether the function `qualname` of `module` is a method of `cls`, or is defined inside one."""
    return module == cls.__module__ and qualname.startswith(f"{cls.__qualname__}.")
