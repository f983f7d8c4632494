from midigen_jax import cli


def main() -> None:
    from midigen_jax import sample  # takes seconds, in which Ctrl-C is answered as later on

    sample.main()


if __name__ == "__main__":
    cli.run(main)
