"""This project in training, with the interface of the contestants in `_midigen` and `_peers`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from midigen_jax import cli, data, model, step
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus
from midigen_jax.environment import environment
from midigen_jax.vocab import Vocabulary


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark of training is told."""
    parser = cli.parser(description)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench"), help="where a MIDI folder is encoded")
    parser.add_argument("--config", type=Path, default=Path("configs/pop909.py"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting of ours")
    return parser


class Ours:
    def __init__(self, config: cfg.Config, vocabulary: Vocabulary):
        self.config, self.mesh = config, step.make_mesh(config)
        begin = jax.jit(step.init_state, static_argnums=(0, 1), out_shardings=step.state_sharding(self.mesh))
        self.state = begin(config, vocabulary)
        self.graphdef = model.abstract(config, vocabulary)
        self.train_step = step.make_train_step(self.graphdef, config, self.mesh)

    def restart(self, seed: int, vocabulary: Vocabulary) -> None:
        """From other first weights; what is compiled stays."""
        weights = cfg.override(self.config, [f"train.seed={seed}"])
        self.state = jax.device_put(step.init_state(weights, vocabulary), step.state_sharding(self.mesh))

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One optimizer step on the segments of all lanes; its mean loss in nats."""
        self.state, self.metrics = self.train_step(self.state, step.put_batch(batch, self.mesh))
        jax.block_until_ready(self.state)
        return float(self.metrics["loss"])


def batches_of(config: cfg.Config, corpus: Corpus, steps: int, *, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of a run of so many steps."""
    return data.training_steps(cfg.override(config, [f"train.steps={steps}", f"data.seed={seed}"]), corpus)


def circumstances(config: cfg.Config, corpus: Corpus | None, *packages: str) -> dict[str, Any]:
    """What a figure of a model depends on: its config, its music, and the environment with the device."""
    music = corpus and {"name": corpus.path.name, "fingerprint": corpus.fingerprint, "tokens": int(corpus.offsets[-1])}
    packages = ("jax", "flax", "optax", "numpy", "faiss-cpu", "faiss-gpu", *packages)
    return {
        "config": cfg.flatten(config),
        "corpus": music,
        "environment": {"device": jax.devices()[0].device_kind, **environment(packages)},
    }
