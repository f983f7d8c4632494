"""The same as `midigen train`."""

if __name__ == "__main__":  # the loader's processes import this file
    from midigen_jax.cli import command, train

    command.run(train.main)
