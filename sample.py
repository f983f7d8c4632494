"""The same as `midigen sample`."""

if __name__ == "__main__":
    from midigen_jax.cli import command, sample

    command.run(sample.main)
