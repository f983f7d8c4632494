from midigen_jax import cli, sample

if __name__ == "__main__":
    cli.run(sample.main)
