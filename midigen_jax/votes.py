"""`python -m midigen_jax.votes`: the same as `midigen votes`."""

from .cli.votes import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
