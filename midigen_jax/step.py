"""The train step: S segments of every lane, on one device or on many.

Everything that belongs to a lane (its tokens, its memories, its dropout) stays on the lane's device; parameters and
optimizer are on all of them, and only gradients travel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from . import config as cfg
from . import data, model, vocab
from . import memory as mem
from .cli import InputError
from .corpus import Corpus
from .kernels.score import pitched
from .recall import Statistics
from .shapes import Array
from .vocab import Vocabulary

Batch = dict[str, Array]

LANES = P("lanes")  # one share of the lanes a device
EVERYWHERE = P()
_DRUM = 1 << 15  # added to a drum's note in device memory, which is not transposed; such corpora have no merged tokens


class TrainState(NamedTuple):
    """All that a step changes."""

    params: dict
    optimizer: optax.OptState
    memory: mem.Memory
    step: Array  # steps done
    key: Array  # data of the random key


def make_mesh(config: cfg.Config) -> Mesh:
    """All devices of all hosts in a row.

    Raises:
        InputError: the lanes can't be shared out evenly.
    """
    devices = len(jax.devices())
    if config.data.lanes % devices:
        raise InputError(
            f"data.lanes={config.data.lanes} can't be shared out evenly among {devices} devices; --set data.lanes="
            f"{-(-config.data.lanes // devices) * devices}"
        )
    return Mesh(np.array(jax.devices()), ("lanes",), axis_types=(AxisType.Auto,))  # those of a host side by side


def state_sharding(mesh: Mesh) -> TrainState:
    """Where each part of the state is."""
    everywhere: Any = NamedSharding(mesh, EVERYWHERE)
    lanes: Any = NamedSharding(mesh, LANES)
    return TrainState(everywhere, everywhere, lanes, everywhere, everywhere)


def host_rows(config: cfg.Config) -> range:
    """The lanes that this host reads: those of its devices."""
    n_rows = config.data.lanes // jax.process_count()
    return range(n_rows * jax.process_index(), n_rows * (jax.process_index() + 1))


def put_batch(rows: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Every host gives its rows, and each device gets its own."""
    sharding = NamedSharding(mesh, LANES)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in rows.items()}


def make_put(config: cfg.Config, corpus: Corpus, mesh: Mesh) -> Callable[[dict[str, np.ndarray]], Batch]:
    """A function that makes what the training loader gives a batch on the devices.

    With `data.location=device` the loader gives places, and the corpus is in the memory of every device.

    Raises:
        InputError: the corpus is too long for that.
    """
    if config.data.location != "device":
        return partial(put_batch, mesh=mesh)
    if len(corpus.tokens) >= 2**31:
        raise InputError(
            f"{corpus.path}: {len(corpus.tokens):,} tokens are too many for data.location=device; --set "
            "data.location=host"
        )
    scheme = corpus.vocabulary.scheme
    tokens = np.array(corpus.tokens)
    if config.data.transpose:
        notes = (tokens >= vocab.NOTE_0) & (tokens < vocab.DURATION_0)
        tokens[notes & ~pitched(tokens, scheme)] |= _DRUM
    everywhere = NamedSharding(mesh, EVERYWHERE)
    arrays = {"tokens": tokens, "bar": np.array(corpus.bar), "step": np.array(corpus.step)}
    tables = {name: jax.device_put(x, everywhere) for name, x in arrays.items()}

    @jax.jit
    def fetch(tables: dict[str, Array], places: dict[str, Array]) -> Batch:
        here = places["index"] != data.NO_TOKEN
        tokens, bar, step = (
            jnp.where(here, tables[name][places["index"]].astype(jnp.int32), fill)
            for name, fill in (("tokens", vocab.PAD), ("bar", 0), ("step", 0))
        )
        if config.data.transpose:
            is_pitched = (tokens >= vocab.NOTE_0) & (tokens < vocab.DURATION_0)
            tokens = jnp.where(is_pitched, tokens + places["semitones"], tokens & ~_DRUM)
        if config.data.louder and scheme.velocities:
            first, end = vocab.velocity_0(scheme), scheme.size
            is_velocity = (tokens >= first) & (tokens < end)
            tokens = jnp.where(is_velocity, jnp.clip(tokens + places["louder"], first, end - 1), tokens)
        return data.with_targets({"tokens": tokens, "bar": bar, "step": step, "song": places["song"]})

    return lambda places: fetch(tables, put_batch(places, mesh))


def make_optimizer(config: cfg.Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW after clipping, warmed up linearly and decayed by cosine; matrices alone decay towards zero."""
    train = config.train
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        train.learning_rate,
        min(train.warmup, train.steps - 1),
        train.steps,
        train.learning_rate * train.final_learning_rate,
    )

    def is_matrix(params: dict) -> Any:
        matrices = ("kernel", "qkv", "out", "output")
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)

    adamw = optax.adamw(schedule, b2=train.beta2, weight_decay=train.weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(train.clip), adamw), schedule


def init_state(config: cfg.Config, vocabulary: Vocabulary) -> TrainState:
    """The state before the first step; trace it with `jax.eval_shape` for its shapes alone."""
    _, params = model.init_params(config, vocabulary, seed=config.train.seed)
    return TrainState(
        params=params,
        optimizer=make_optimizer(config)[0].init(params),
        memory=mem.init_memory(config, config.data.lanes),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(config.train.seed)),
    )


def run_segments(
    decoder: model.Decoder, memory: mem.Memory, batch: Batch, keys: Array | None = None
) -> tuple[Array, tuple[mem.Memory, Array, Statistics]]:
    """Reads a step's segments [B, S * T] one after the other, carrying the memory.

    Args:
        keys: of the dropout, one a lane; none without.

    Returns:
        The summed loss in nats; the memory after the segments, the number of targets, and what the kNN memory did.
    """
    config = decoder.config
    segment = config.data.segment

    def one_segment(memory: mem.Memory, xs: tuple[Batch, Array]) -> tuple[mem.Memory, tuple]:
        tokens, i = xs
        segment_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        output = decoder(tokens["tokens"], tokens["bar"], tokens["step"], tokens["song"], memory, keys=segment_keys)
        counted = tokens["targets"] >= 0
        nats = optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.maximum(tokens["targets"], 0))
        memory = mem.roll(output.window, output.knn, segment)
        return memory, (jnp.sum(nats * counted), jnp.sum(counted), output.recall.statistics)

    if config.train.remat:
        # What the search found is kept: it would be searched for again, and the scan would keep the ring of every
        # segment for that.
        policy = jax.checkpoint_policies.save_only_these_names(mem.HITS)
        one_segment = jax.checkpoint(one_segment, policy=policy, prevent_cse=False)
    segments = {name: jnp.moveaxis(x.reshape(x.shape[0], -1, segment), 1, 0) for name, x in batch.items()}
    n_segments = segments["tokens"].shape[0]
    memory, (nats, counted, statistics) = jax.lax.scan(one_segment, memory, (segments, jnp.arange(n_segments)))
    return nats.sum(), (memory, counted.sum(), jax.tree.map(lambda x: x.mean(0), statistics))


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
        in_specs=(EVERYWHERE, LANES, LANES, LANES),
        out_specs=(EVERYWHERE, EVERYWHERE, LANES, EVERYWHERE),
        check_vma=False,  # a callback's results don't say on which devices they differ; the sums below are all there is
    )
    def gradients_of(
        params: dict, memory: mem.Memory, batch: Batch, keys: Array
    ) -> tuple[Array, dict, mem.Memory, Statistics]:
        def loss(params: dict) -> tuple[Array, tuple[mem.Memory, Array, Statistics]]:
            return run_segments(nnx.merge(graphdef, params), memory, batch, keys if config.model.dropout else None)

        (nats, (new_memory, counted, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        nats, counted, gradients = jax.lax.psum((nats, counted, gradients), "lanes")
        gradients = jax.tree.map(lambda x: x / counted, gradients)
        return nats / counted, gradients, new_memory, jax.lax.pmean(statistics, "lanes")

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

    # The state comes out where it was put, or the next step would be another program.
    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_sharding(mesh), None))


def make_loss(graphdef: nnx.GraphDef, config: cfg.Config, mesh: Mesh) -> Callable[[dict, Corpus, np.ndarray], float]:
    """A function of (params, corpus, songs): total loss in nats over whole songs from empty memories."""

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(EVERYWHERE, LANES, LANES),
        out_specs=(LANES, EVERYWHERE),
        check_vma=False,
    )
    def read(params: dict, memory: mem.Memory, batch: Batch) -> tuple[mem.Memory, Array]:
        nats, (memory, *_) = run_segments(nnx.merge(graphdef, params), memory, batch)
        return memory, jax.lax.psum(nats, "lanes")

    one_step = jax.jit(read, donate_argnums=1)
    empty = jax.jit(mem.init_memory, static_argnums=(0, 1), out_shardings=NamedSharding(mesh, LANES))

    def total_loss(params: dict, corpus: Corpus, songs: np.ndarray) -> float:
        memory = empty(config, config.data.lanes)
        all_nats, tokens = [], config.data.segment * config.data.segments
        rows = host_rows(config)
        for batch in data.whole_songs(corpus, songs, n_lanes=config.data.lanes, tokens_per_step=tokens, rows=rows):
            memory, nats = one_step(params, memory, put_batch(batch, mesh))
            all_nats.append(nats)
        return float(np.sum(jax.device_get(all_nats), dtype=np.float64))

    return total_loss
