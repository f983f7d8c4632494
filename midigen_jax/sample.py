"""`python -m midigen_jax.sample`: the same as `midigen sample`."""

from .cli.sample import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
