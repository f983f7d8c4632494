if __name__ == "__main__":  # the loader's processes import this file, and are light without JAX
    from midigen_jax import cli, train

    cli.run(train.main)
