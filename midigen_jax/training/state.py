"""What a training run carries from step to step, and its optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import config as cfg
from ..model import memory as mem
from ..model.decoder import init_params
from ..shapes import Array
from ..vocab import Vocabulary


class TrainState(NamedTuple):
    """All that a step changes."""

    params: dict
    optimizer: optax.OptState
    memory: mem.Memory
    step: Array  # steps done
    key: Array  # data of the random key


def make_optimizer(config: cfg.Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW after clipping; only matrices have weight decay.

    The learning rate rises linearly, stays, and falls as a cosine over the last share of the steps (Hu et al. 2024,
    "MiniCPM", the warmup-stable-decay schedule); by default it stays nowhere.
    """
    train = config.train
    warmup = min(train.warmup, train.steps - 1)
    falling = max(1, round(train.decay * (train.steps - warmup)))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, train.learning_rate, warmup),
            optax.constant_schedule(train.learning_rate),
            optax.cosine_decay_schedule(train.learning_rate, falling, alpha=train.final_learning_rate),
        ],
        [warmup, train.steps - falling],
    )

    def is_matrix(params: dict) -> Any:
        matrices = ("kernel", "qkv", "out", "output")
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)

    adamw = optax.adamw(schedule, b2=train.beta2, weight_decay=train.weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw), schedule


def init_state(config: cfg.Config, vocabulary: Vocabulary) -> TrainState:
    """The state before the first step; trace it with `jax.eval_shape` for its shapes alone."""
    _, params = init_params(config, vocabulary, seed=config.train.seed)
    return TrainState(
        params=params,
        optimizer=make_optimizer(config)[0].init(params),
        memory=mem.init_memory(config, config.data.lanes),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(config.train.seed)),
    )
