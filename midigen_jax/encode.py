"""`python -m midigen_jax.encode`: the same as `midigen encode`."""

from .cli.encode import main

if __name__ == "__main__":
    from .cli.command import run

    run(main)
