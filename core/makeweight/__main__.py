"""`python -m makeweight` is `trainer`: what `accelerate launch -m` needs."""

import os
import sys

if __name__ == "__main__":
    # `python -m` looks for modules in the working directory first, which may be a downloaded folder; `trainer` does not
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from .cli import command

    command()
