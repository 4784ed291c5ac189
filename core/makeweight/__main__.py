"""`python -m makeweight` is `trainer`: what `accelerate launch -m` needs."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
