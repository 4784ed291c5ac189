"""Entry point of `python -m makeweight` and `accelerate launch -m makeweight`, equal to the command `trainer`."""

import os
import sys

if __name__ == "__main__":
    # `python -m` searches the working directory first; `trainer` does not. That directory may be an untrusted download.
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from .commands.cli import command

    command()
