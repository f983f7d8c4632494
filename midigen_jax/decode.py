"""`python -m midigen_jax.decode`: the same as `midigen decode`."""

from .cli.decode import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
