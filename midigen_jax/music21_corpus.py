"""`python -m midigen_jax.music21_corpus`: the same as `midigen music21`."""

from .cli.music21 import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
