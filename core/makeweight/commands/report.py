"""The verb `report`, and the report of a run: one HTML file with tables and plots."""

from __future__ import annotations

import argparse
import base64
import html
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..console import console
from ..discovery import installed, load_class
from ..errors import UsageError, printable
from ..files.untrusted import parse_yaml
from ..files.writing import write_text
from ..options import Options
from .confusion import class_parts
from .finished_run import read_config, read_run
from .plots import pictures
from .tables import percent, print_summary, sizes, tensor_rows

FOLDED = 20
"""rows above which a table is folded away"""


class Report:
    """Write report.html of a finished run again, and print its table."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", type=Path, help="a run directory")

    def run(self, arguments: argparse.Namespace) -> None:
        write_report(arguments.run)
        print_summary(console(), read_run(arguments.run)[0], arguments.run)


def write_report(out: Path) -> Path:
    """Write report.html of a run directory from summary.json and metrics.jsonl. The file is self-contained.

    Returns its path. Raises MakeweightError if the run is not finished or its files are damaged.
    """
    summary, metrics = read_run(out)
    title = f"{summary['model']} on {summary['data']}, {', '.join(summary['plugins']) or 'no plugins'}"
    recipe = read_config(out)
    tensors = tensor_rows(summary["export"]["tensors"])
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(title)}</title><style>{STYLE}</style>",
        f"<p class='run'>{_text(title)}</p><h1>{_text(headline(summary))}</h1><p>{_text(_facts(summary))}</p>",
        _table(*sizes(summary)),
        "<h2>Training</h2>",
        f"<div class='plots'>{''.join(_picture(*each) for each in pictures(summary, metrics))}</div>",
        *class_parts(summary, _table),
        "<h2>Options that differ from the defaults</h2>",
        _table(["option", "value", "default"], changed_options(recipe, summary["plugins"]), "text"),
        _folded(f"The whole recipe, {recipe.count(chr(10))} lines", f"<pre>{_text_lines(recipe)}</pre>"),
        "<h2>Tensors</h2>",
        _folded(f"{len(tensors[1])} tensors", _table(*tensors), open_=len(tensors[1]) <= FOLDED),
        "</html>",
    ]
    write_text(out / "report.html", "\n".join(parts))
    return out / "report.html"


def headline(summary: dict[str, Any]) -> str:
    """The result in a line: how many times smaller the export is, and its metric."""
    export, metric = summary["export"], summary["metric"]
    value = export.get(metric)
    shown = "" if value is None else f", test {metric} {percent(value) if metric == 'accuracy' else f'{value:.5g}'}"
    return f"{export['ratio']:.1f} times smaller than float32{shown}"


def _facts(summary: dict[str, Any]) -> str:
    processes = "one process" if summary["processes"] == 1 else f"{summary['processes']} processes"
    return (
        f"{summary['export']['bytes']:,} bytes on disk. {summary['parameters']:,} parameters, trained for "
        f"{summary['steps']:,} steps in {summary['seconds']:.0f} s on {processes}."
    )


def changed_options(recipe: str, plugins: list[str]) -> list[list[str]]:
    """[option, value, default] of the options of a recipe that differ from the defaults of installed classes."""
    try:
        found = parse_yaml(recipe)
    except ValueError:
        return []
    rows = []
    for key, value in (found if isinstance(found, dict) else {}).items():
        if key in plugins and isinstance(value, dict):
            defaults = _defaults(key)
            rows += [_changed(f"{key}.{name}", each, defaults.get(name)) for name, each in value.items()
                     if name not in defaults or each != defaults[name]]  # fmt: skip
        elif key == "stages" and isinstance(value, list):
            rows += [[f"stage {number}", _words(stage), ""] for number, stage in enumerate(value, 1)]
        elif key in CORE and value != CORE[key]:
            rows.append(_changed(key, value, CORE[key]))
    return rows


def _changed(name: str, value: Any, default: Any) -> list[str]:
    return [name, _words(value), "" if default is None else _words(default)]


def _words(value: Any) -> str:
    """A value of a recipe without brackets around its outermost list or table."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _defaults(plugin: str) -> dict[str, Any]:
    """The defaults of an installed plugin's options; empty if it is not installed."""
    try:
        return defaults_of(load_class(plugin)) if plugin in installed() else {}
    except UsageError:
        return {}


def defaults_of(cls: Any) -> dict[str, Any]:
    """The default of each field of a dataclass."""
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(cls)
        if field.init
    }


CORE = defaults_of(Options)


def _picture(title: str, svg: str) -> str:
    return f"<img src='data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}' alt='{_text(title)}'>"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _text_lines(text: str) -> str:
    return "\n".join(map(_text, text.split("\n")))


def _folded(title: str, content: str, open_: bool = False) -> str:
    return f"<details{' open' if open_ else ''}><summary>{_text(title)}</summary>{content}</details>"


def _table(header: list[str], rows: list[list[str]], kind: str = "numbers") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return f"<div class='wide'><table class='{kind}'>{''.join(lines)}</table></div>"


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 1.5em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.7em; line-height: 1.25; margin: .1em 0 .3em } h2 { font-size: 1.2em; margin: 1.8em 0 .4em }
.run { color: #666; margin: 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; margin: .8em 0 } td, th { padding: .2em .7em; border-bottom: 1px solid #ddd }
td, th { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
.text td, .text th { text-align: left } .text td { white-space: normal; vertical-align: top }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21em, 100%), 1fr)); gap: .5em }
img { width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto } summary { cursor: pointer; color: #555 }
"""
