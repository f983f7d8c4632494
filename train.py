from midigen_jax import cli, train

if __name__ == "__main__":
    cli.run(train.main)
