"""`python -m midigen_jax.evaluate`: the same as `midigen evaluate`."""

from .cli.evaluate import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
