"""`python -m makeweight` is `trainer`: what `accelerate launch -m` needs."""

from .cli import command

if __name__ == "__main__":
    command()
