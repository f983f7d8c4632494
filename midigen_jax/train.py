"""`python -m midigen_jax.train`: the same as `midigen train`."""

from .cli.train import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
