"""A virtual environment that sees the packages of the running one, into which a test may install with pip."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

from .helpers import ENVIRONMENT

MODULES = {"trainer": "makeweight", "pytest": "pytest", "mypy": "mypy"}
"""commands, and the modules that run them"""
OFFLINE = "--no-deps --no-build-isolation --no-index --quiet --disable-pip-version-check"


class Environment:
    """A virtual environment in `folder`, and the shell commands that run in it.

    Nothing is installed into the running environment: its packages are found through a .pth file, and pip writes into
    the new one.
    """

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        packages = next(folder.glob("lib/python*/site-packages"))
        lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]  # editable ones too
        (packages / "running.pth").write_text("".join(lines))
        for name, module in MODULES.items():
            self._add_program(name, f'"{self.bin}/python" -m {module} "$@"')
        self._add_program("pip", f'"{self.bin}/python" -m pip "$@" {OFFLINE}')
        self._add_program("ruff", f'"{Path(sys.executable).with_name("ruff")}" "$@"')  # its module would find this one

    def _add_program(self, name: str, command: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\nexec {command}\n")
        path.chmod(0o755)

    def run(self, command: str, cwd: Path) -> tuple[str, int]:
        """Run a line of shell in this environment: its output with its errors, in their order, and its exit code."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "PYTHONPATH", "COLUMNS"))
        }
        own = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["sh", "-c", command], cwd=cwd, env=kept | own | ENVIRONMENT, timeout=600, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.stdout, done.returncode
