"""The report of a run: one HTML file with its tables and pictures."""

from __future__ import annotations

import argparse
import html
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import console
from ..errors import printable
from ..files.writing import write_text
from .finished_run import read_config, read_run
from .pictures import pictures
from .tables import print_summary, sizes, tensor_rows

if TYPE_CHECKING:
    pass


class Report:
    """Write report.html of a finished run anew, and print its table."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", type=Path, help="a run directory")

    def run(self, arguments: argparse.Namespace) -> None:
        write_report(arguments.run)
        print_summary(console(), read_run(arguments.run)[0], arguments.run)


def write_report(out: Path) -> Path:
    """Write report.html of a run directory from its summary.json and metrics.jsonl; one file, with nothing to fetch."""
    summary, metrics = read_run(out)
    plugins = ", ".join(summary["plugins"]) or "no plugins"
    title = f"{summary['model']} on {summary['data']}, {plugins}"
    facts = (
        f"{summary['steps']} steps in {summary['seconds']:.0f} s on {summary['processes']} process(es), "
        f"{summary['parameters']:,} parameters."
    )
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title>",
        f"<style>{STYLE}</style><h1>{_text(title)}</h1><p>{_text(facts)}</p>",
        _html_table(*sizes(summary)),
        *(
            f"<img src='data:image/svg+xml;base64,{picture}' alt='{_text(name)}'>"
            for name, picture in pictures(summary, metrics)
        ),
        "<h2>Tensors</h2>",
        _html_table(*tensor_rows(summary["export"]["tensors"])),
        "<h2>Recipe</h2>",
        "<pre>" + "\n".join(map(_text, read_config(out).split("\n"))) + "</pre></html>",
    ]
    write_text(out / "report.html", "\n".join(parts))
    return out / "report.html"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .9em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow: auto }
"""
