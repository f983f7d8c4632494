"""`python -m midigen_jax.export`: the same as `midigen export`."""

from .cli.export import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
