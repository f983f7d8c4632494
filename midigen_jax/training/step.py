"""The train step: S segments of every lane, on one device or on many."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from .. import config as cfg
from .. import vocab
from ..data import loader
from ..data.corpus import Corpus
from ..model import memory as mem
from ..model.reader import Batch, Losses, read_segments
from ..model.retrieval import RetrievalStatistics
from ..shapes import Array
from .sharding import LANES, REPLICATED, host_rows, put_batch, state_sharding
from .state import TrainState, make_optimizer


def make_train_step(
    graphdef: nnx.GraphDef, config: cfg.Config, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """One optimizer step over S segments of every lane. The state is donated.

    The gradient flows through the XL memory from segment to segment of the step, not beyond, and never into the ring.
    """
    optimizer, _ = make_optimizer(config)

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(REPLICATED, LANES, LANES, LANES),
        out_specs=(REPLICATED, REPLICATED, LANES, REPLICATED),
        # A callback's results don't say on which devices they differ; the sums below are the only communication.
        check_vma=False,
    )
    def gradients_of(
        params: dict, memory: mem.Memory, batch: Batch, keys: Array
    ) -> tuple[Array, dict, mem.Memory, RetrievalStatistics]:
        def loss(params: dict) -> tuple[Array, tuple[Losses, mem.Memory]]:
            decoder = nnx.merge(graphdef, params)
            losses, memory_after = read_segments(decoder, memory, batch, keys if config.model.dropout else None)
            return losses.objective, (losses, memory_after)

        (_, (losses, memory_after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        nats, targets, gradients = jax.lax.psum((losses.nats, losses.targets, gradients), "lanes")
        gradients = jax.tree.map(lambda x: x / targets, gradients)
        return nats / targets, gradients, memory_after, jax.lax.pmean(losses.statistics, "lanes")

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.random.split(key, config.data.lanes)
        loss, gradients, memory, statistics = gradients_of(state.params, state.memory, batch, keys)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "resets": jnp.sum(batch["tokens"] == vocab.SOS),
            **statistics._asdict(),
        }
        return TrainState(params, optimizer_state, memory, state.step + 1, state.key), metrics

    # The state keeps its sharding; otherwise the next step would be another program.
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_sharding(mesh), None))


def make_loss(graphdef: nnx.GraphDef, config: cfg.Config, mesh: Mesh) -> Callable[[dict, Corpus, np.ndarray], float]:
    """A function of (params, corpus, songs): the total loss in nats over whole songs from empty memories."""

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(REPLICATED, LANES, LANES),
        out_specs=(LANES, REPLICATED),
        check_vma=False,
    )
    def read(params: dict, memory: mem.Memory, batch: Batch) -> tuple[mem.Memory, Array]:
        losses, memory = read_segments(nnx.merge(graphdef, params), memory, batch)
        return memory, jax.lax.psum(losses.nats, "lanes")

    one_step = jax.jit(read, donate_argnums=1)
    empty = jax.jit(mem.init_memory, static_argnums=(0, 1), out_shardings=NamedSharding(mesh, LANES))

    def total_loss(params: dict, corpus: Corpus, songs: np.ndarray) -> float:
        memory = empty(config, config.data.lanes)
        all_nats, tokens = [], config.data.segment * config.data.segments
        rows = host_rows(config)
        for batch in loader.whole_songs(corpus, songs, n_lanes=config.data.lanes, tokens_per_step=tokens, rows=rows):
            memory, nats = one_step(params, memory, put_batch(batch, mesh))
            all_nats.append(nats)
        return float(np.sum(jax.device_get(all_nats), dtype=np.float64))

    return total_loss
