"""`python -m midigen_jax.plot`: the same as `midigen plot`."""

from .cli.plot import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
