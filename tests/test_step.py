"""The train step: many devices, activations that are computed again, one compilation."""

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow, thorough
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax.errors import InputError
from midigen_jax.model import memory as mem
from midigen_jax.model import search
from midigen_jax.model.decoder import abstract_decoder, init_params
from midigen_jax.model.reader import read_segments
from midigen_jax.training.sharding import make_mesh, put_batch, state_sharding
from midigen_jax.training.state import TrainState, init_state, make_optimizer
from midigen_jax.training.step import make_loss, make_train_step
from midigen_jax.vocab import SOS, Vocabulary

LANES, SEGMENT, SEGMENTS, STEPS, HEADS = 4, 8, 2, 4, 2
SEARCHES = (
    ("context+alignment", "faiss"),
    *[("context", "faiss"), ("context", "xla"), ("attention", "faiss")] * thorough(),
)


def config(layers: int = 2, retrieval: str = "context", **train) -> cfg.Config:
    return cfg.Config(
        model=cfg.Model(layers=layers, width=32, heads=HEADS, ff_width=16, dropout=0.2),
        memory=cfg.Memory(xl=12, knn=32, retrieval=retrieval, knn_layer=layers, top_k=4, backend="faiss"),
        data=cfg.Data(lanes=LANES, segment=SEGMENT, segments=SEGMENTS),
        train=cfg.Train(steps=10, warmup=1, **train),
    )


def batches(n: int) -> list[dict[str, np.ndarray]]:
    """Steps of lanes in which songs of 50, 40, 30 and 20 tokens follow each other."""
    random = np.random.default_rng(0)
    length = n * SEGMENTS * SEGMENT
    song = np.stack([np.arange(length) // (50 - 10 * lane) for lane in range(LANES)])
    begins = np.diff(song, axis=1, prepend=-1) != 0
    tokens = np.where(begins, SOS, random.integers(4, 389, song.shape))
    targets = np.where(np.roll(begins, -1, 1), -1, np.roll(tokens, -1, 1))
    places = {name: random.integers(0, 96, song.shape) for name in ("bar", "position")}
    tape = {"tokens": tokens, "targets": targets, **places, "song": song}
    parts = ({name: np.split(x.astype(np.int32), n, 1)[i] for name, x in tape.items()} for i in range(n))
    return list(parts)


@cache
def initial_state(retrieval: str) -> TrainState:
    """On the host."""
    return jax.device_get(jax.jit(init_state, static_argnums=(0, 1))(config(1, retrieval), Vocabulary()))


def steps_on(mesh: jax.sharding.Mesh, retrieval: str, backend: str) -> dict[str, np.ndarray]:
    """Metrics of all steps and the memories after them."""
    here = cfg.override(config(1, retrieval), [f"memory.backend={backend}"])
    state = jax.device_put(initial_state(retrieval), state_sharding(mesh))
    # Adam divides by the size of gradients: one that is nothing but rounding would become a step of its own.
    with mock.patch.object(optax, "adamw", partial(optax.adamw, eps=1e-3)):
        step: Any = make_train_step(abstract_decoder(here, Vocabulary()), here, mesh)
    results = []
    for batch in batches(STEPS):
        state, metrics = step(state, put_batch(batch, mesh))
        results.append(jax.device_get(metrics))
    assert step._cache_size() == 1, "compiled more than once"
    paths = jax.tree.leaves_with_path(jax.device_get(state.memory))
    assert all(x.sharding.num_devices == mesh.size for x in jax.tree.leaves(state))
    return {
        **{name: np.stack([metrics[name] for metrics in results]) for name in results[0]},
        **{f"memory{jax.tree_util.keystr(path)}": x for path, x in paths},
    }


def on_four_devices(folder: Path) -> None:
    """What a process with four devices writes."""
    mesh = make_mesh(config())
    for kind in SEARCHES:
        np.savez(folder / f"{'-'.join(kind)}.npz", **steps_on(mesh, *kind))
    uneven = cfg.override(config(), ["data.lanes=6"])
    try:
        make_mesh(uneven)
    except InputError as error:
        (folder / "uneven").write_text(str(error))


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A process with four devices, and the folder into which it writes; it runs beside the tests until it is needed."""
    folder = tmp_path_factory.mktemp("four")
    here = Path(__file__).parent
    code = f"import pathlib, test_step; test_step.on_four_devices(pathlib.Path({str(folder)!r}))"
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        yield process, folder
        process.kill()


@pytest.fixture
def four_devices(child) -> Path:
    process, folder = child
    assert process.wait(timeout=300) == 0
    return folder


@pytest.mark.parametrize("kind", SEARCHES, ids=" ".join)
def test_four_devices_compute_what_one_does(child, kind, request):
    """Dropout included; songs and write indices are the same to the bit. Each compiles the step once."""
    one = steps_on(jax.make_mesh((1,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,)), *kind)
    with np.load(request.getfixturevalue("four_devices") / f"{'-'.join(kind)}.npz") as four:
        assert set(four) == set(one)
        four = dict(four)
    assert (one["hit_rate"][-1][:HEADS] > 0.3).all()
    assert (one["hit_rate"][-1] > 0).all()
    assert one["resets"].tolist() == [LANES, 2, 2, 3]  # songs that begin, in `batches`
    # Sums over a step, of which a process with more devices gives the mean over them.
    for results in (one, four):
        results["age"] = results.pop("ages") / np.maximum(results.pop("hits"), 1e-9)
    for name, x in one.items():
        if np.issubdtype(x.dtype, np.integer):
            assert (x == four[name]).all(), name
        else:
            np.testing.assert_allclose(four[name], x, rtol=1e-5, atol=1e-5, err_msg=name)


def test_lanes_that_devices_cannot_share_are_refused(four_devices):
    assert (four_devices / "uneven").read_text() == (
        "data.lanes=6 can't be shared out evenly among 4 devices; --set data.lanes=8"
    )


def before_a_step(config: cfg.Config):
    """Parameters, the memories after a few segments, and the step that follows."""
    params = jax.jit(lambda: init_params(config, Vocabulary(), seed=0)[1])()
    *earlier, batch = batches(3)
    memory = mem.init_memory(config, LANES)
    keys = jax.random.split(jax.random.key(0), LANES)
    for one in earlier:
        memory = read(params, memory, one, config, keys)[0][1][1]
    return params, memory, batch


@pytest.fixture(scope="module")
def before():
    return before_a_step(config())


@partial(jax.jit, static_argnames="config")
def read(params, memory, batch, config, keys):
    """Loss, the other results and the memory after a step; and the gradients."""

    def loss(params):
        decoder = nnx.merge(abstract_decoder(config, Vocabulary()), params)
        losses, after = read_segments(decoder, memory, batch, keys)
        return losses.nats, (losses, after)

    return jax.value_and_grad(loss, has_aux=True)(params)


def assert_close(one, two):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, two)


@pytest.mark.parametrize("retrieval", ["context+alignment", slow("context"), slow("attention")])
def test_activations_computed_again_change_nothing_and_search_once_a_segment(retrieval, monkeypatch):
    """Loss, gradients, memories and statistics, with dropout, over two segments."""
    before, calls = before_a_step(config(retrieval=retrieval)), []
    faiss = search._faiss()
    knn = faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda *args, **options: calls.append(None) or knn(*args, **options))
    keys = jax.random.split(jax.random.key(1), LANES)
    counts, results = [], []
    for remat in (False, True):
        calls.clear()
        here = config(retrieval=retrieval, remat=remat)
        results.append(jax.block_until_ready(read(*before, here, keys)))
        counts.append(len(calls))
    hit_rate = results[0][0][1][0].statistics.hit_rate
    assert hit_rate[:HEADS].min() > 0.3
    assert hit_rate.min() > 0
    assert_close(*results)
    assert counts[0] > 0
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("remat", "retrieval"),
    [(False, "context"), slow(True, "attention"), slow(True, "context"), slow(False, "attention")],
)
def test_the_step_keeps_no_copy_of_the_ring(remat, retrieval):
    """Beside the state, eight segments need far less memory than the ring, which is much larger than all else."""
    large = config(1, retrieval, remat=remat)
    large = cfg.override(large, ["memory.knn=65536", "data.lanes=1", "data.segments=8"])
    state, graphdef = jax.eval_shape(lambda: init_state(large, Vocabulary())), abstract_decoder(large, Vocabulary())
    ring = sum(x.size * x.dtype.itemsize for x in (state.memory.knn.keys, state.memory.knn.values))
    batch = {name: jax.ShapeDtypeStruct((1, 8 * SEGMENT), jnp.int32) for name in batches(1)[0]}
    step: Any = make_train_step(graphdef, large, make_mesh(large))
    compiled = step.lower(state, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < ring / 4


def test_a_lane_s_dropout_depends_on_no_other_lane(before):
    params, memory, batch = before
    keys = jax.random.split(jax.random.key(1), LANES)
    others = keys.at[1:].set(jax.random.split(jax.random.key(2), LANES - 1))
    (_, (_, one)), _ = read(params, memory, batch, config(), keys)
    (_, (_, two)), _ = read(params, memory, batch, config(), others)
    one, two = (x.xl.values[-1] for x in (one, two))
    assert (one[0] == two[0]).all()
    assert (one[1:] != two[1:]).any((1, 2, 3)).all()


def test_evaluation_is_without_dropout(before, corpus):
    params, songs, losses = before[0], corpus.songs_of("validation")[:2], []
    for rate in (0.0, 0.5):
        here = cfg.override(config(), [f"model.dropout={rate}"])
        total_loss = make_loss(abstract_decoder(here, Vocabulary()), here, make_mesh(here))
        losses.append(total_loss(params, corpus, songs))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_learning_rate_rises_stays_and_falls(share):
    def rates(steps: int, share: float) -> np.ndarray:
        train = cfg.Train(steps=steps, warmup=10, learning_rate=2.0, decay=share)
        _, schedule = make_optimizer(cfg.Config(train=train))
        return np.array([schedule(step) for step in range(steps + 1)])

    long = rates(110, share)
    falling = round(share * 100)
    np.testing.assert_allclose(long[:10], 0.2 * np.arange(10), rtol=1e-6)
    np.testing.assert_allclose(long[10 : 110 - falling], 2.0)
    np.testing.assert_allclose(long[110 - falling :], 1 + np.cos(np.pi * np.arange(falling + 1) / falling), atol=1e-6)
    if share < 1:  # a longer run begins with the same steps
        np.testing.assert_array_equal(rates(210, share)[: 110 - falling], long[: 110 - falling])
