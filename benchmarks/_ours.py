"""This project in training, with the interface of the contestants in `_midigen` and `_peers`."""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import _shared
import jax
import numpy as np
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.data import loader
from midigen_jax.data.corpus import Corpus
from midigen_jax.model.decoder import abstract_decoder
from midigen_jax.run.environment import environment
from midigen_jax.run.trained import TrainedModel
from midigen_jax.training.sharding import make_mesh, put_batch, state_sharding
from midigen_jax.training.state import TrainState, init_state
from midigen_jax.training.step import make_loss, make_train_step
from midigen_jax.vocab import Vocabulary

# PyTorch and processes of their own use the same GPU, of which JAX would otherwise take most of the memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

BATCH_ARRAYS = ("tokens", "targets", "bar", "position", "song")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark of a model on music."""
    parser = _shared.parser(description)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="music to train on")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench"), help="where a MIDI folder is encoded")
    parser.add_argument("--config", type=Path, default=Path("configs/pop909.py"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting; may be repeated"
    )
    return parser


class Programs(NamedTuple):
    """What is compiled for a config."""

    init: Callable[[cfg.Config, Vocabulary], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    loss: Callable[[dict, Corpus, np.ndarray], float]


@cache
def programs_of(config: cfg.Config, vocabulary: Vocabulary) -> Programs:
    """Each config is compiled once, however often it is trained."""
    mesh, graphdef = make_mesh(config), abstract_decoder(config, vocabulary)
    init = jax.jit(init_state, static_argnums=(0, 1), out_shardings=state_sharding(mesh))
    return Programs(init, make_train_step(graphdef, config, mesh), make_loss(graphdef, config, mesh))


class Ours:
    """A decoder in training."""

    def __init__(self, config: cfg.Config, vocabulary: Vocabulary):
        self.config, self.vocabulary, self.mesh = config, vocabulary, make_mesh(config)
        init, self.train_step, self._loss = programs_of(config, vocabulary)
        self.state = init(config, vocabulary)
        self.metrics: dict[str, Any] = {}

    def restart(self, seed: int) -> None:
        """Begins again with the parameters of another seed; what is compiled is kept."""
        seeded = cfg.override(self.config, [f"train.seed={seed}"])
        self.state = jax.device_put(init_state(seeded, self.vocabulary), state_sharding(self.mesh))

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One optimizer step on the segments of all lanes; returns the mean loss in nats."""
        self.state, self.metrics = self.train_step(self.state, put_batch(batch, self.mesh))
        jax.block_until_ready(self.state)
        return float(self.metrics["loss"])

    def model(self, corpus: Corpus) -> TrainedModel:
        """As it is now, after training on this corpus."""
        step = int(self.state.step)
        return TrainedModel(
            self.config,
            self.state.params,
            self.vocabulary,
            step=step,
            corpus=corpus.fingerprint,
            densest_bar=corpus.densest_bar(),
        )

    def loss(self, corpus: Corpus, songs: np.ndarray) -> float:
        """Total loss in nats over whole songs from empty memories."""
        return self._loss(self.state.params, corpus, songs)


def batches_of(config: cfg.Config, corpus: Corpus, steps: int, *, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of a run of so many steps."""
    return loader.training_steps(cfg.override(config, [f"train.steps={steps}", f"data.seed={seed}"]), corpus)


def train_model(config: cfg.Config, corpus: Corpus) -> TrainedModel:
    """The model after all steps of its config."""
    side = Ours(config, corpus.vocabulary)
    for batch in tqdm(batches_of(config, corpus, config.train.steps), total=config.train.steps, unit="step"):
        side.step(batch)
    return side.model(corpus)


def batch_tokens(config: cfg.Config) -> int:
    """Tokens per optimizer step."""
    return config.data.lanes * config.data.segment * config.data.segments


def circumstances(config: cfg.Config, corpus: Corpus | None, *packages: str) -> dict[str, Any]:
    """What the figures of a model depend on: its config, the music, and the environment with the device."""
    music = corpus and {"name": corpus.path.name, "fingerprint": corpus.fingerprint, "tokens": int(corpus.offsets[-1])}
    packages = ("jax", "flax", "optax", "numpy", "faiss-cpu", "faiss-gpu", *packages)
    return {
        "config": cfg.flatten(config),
        "corpus": music,
        "environment": {"device": jax.devices()[0].device_kind, **environment(packages)},
    }
