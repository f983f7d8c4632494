"""`python -m midigen_jax SUBCOMMAND`: the same as `midigen SUBCOMMAND`."""

from .cli.main import main

if __name__ == "__main__":
    main()
