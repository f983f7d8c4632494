"""The parts that differ on a GPU: the search and training with each backend. They run on any device.

On an NVIDIA GPU: JAX_PLATFORMS=cuda python -m pytest -q -m gpu
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import batch_of, changed
from test_search import RANGES, RING, K, assert_same_but_for_ties, case

from midigen_jax import config as cfg
from midigen_jax.model.decoder import abstract_decoder
from midigen_jax.model.search import search
from midigen_jax.training.sharding import make_mesh, put_batch, state_sharding
from midigen_jax.training.state import init_state
from midigen_jax.training.step import make_train_step
from midigen_jax.vocab import Vocabulary

pytestmark = pytest.mark.gpu


def has_faiss() -> bool:
    """Whether there is a Faiss for this device."""
    if importlib.util.find_spec("faiss") is None:
        return False
    faiss = importlib.import_module("faiss")
    return jax.default_backend() != "gpu" or hasattr(faiss, "StandardGpuResources")


faiss = pytest.param("faiss", marks=pytest.mark.skipif(not has_faiss(), reason="there is no Faiss for this device"))


def on_gpu(value: Any) -> Any:
    """A parameter that is tried on a GPU only."""
    return pytest.param(value, marks=pytest.mark.skipif(jax.default_backend() != "gpu", reason="for a GPU"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", [faiss, "xla"])
def test_search_agrees_with_numpy(backend, dtype):
    queries, keys, start, count, scores, expected = case(K, dtype)
    tokens = 100 * jnp.arange(len(RANGES), dtype=jnp.int32)[:, None] + jnp.arange(RING, dtype=jnp.int32)
    hits = jax.jit(search, static_argnums=(5, 6))(queries, keys, tokens, start, count, K, backend)
    assert_same_but_for_ties(hits.slots, expected, scores)
    slots, lanes = np.asarray(hits.slots), np.arange(len(RANGES))[:, None, None, None]
    assert (np.asarray(hits.values) == 100 * lanes + slots)[slots >= 0].all()


def train(config: cfg.Config, steps: int) -> list[float]:
    """The losses of training on one batch, all steps with one compiled program."""
    mesh = make_mesh(config)
    init = jax.jit(init_state, static_argnums=(0, 1), out_shardings=state_sharding(mesh))
    state = init(config, Vocabulary())
    step: Any = make_train_step(abstract_decoder(config, Vocabulary()), config, mesh)
    batch = put_batch({name: np.asarray(x) for name, x in batch_of(config, 2, [[32]] * 3).items()}, mesh)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert metrics["hit_rate"].min() > 0.3
    assert jnp.isfinite(metrics["gradient_norm"])
    return losses


# Elsewhere other tests compare the backends.
float32 = pytest.param("float32", marks=[] if jax.default_backend() == "gpu" else pytest.mark.slow)


@pytest.mark.parametrize("retrieval", ["context", "attention"])
@pytest.mark.parametrize("dtype", [float32, on_gpu("bfloat16")])
def test_training_is_the_same_with_every_backend_and_lowers_the_loss(small, dtype, retrieval):
    """With as many neighbours as the ring has slots, the search and the dense memory compute the same."""
    small = changed(small, model__layers=1, model__dtype=dtype, memory__knn_layer=1, memory__dtype=dtype)
    small = changed(small, memory__retrieval=retrieval)
    losses = {}
    for backend in ("xla", "dense", *["faiss"] * has_faiss()):
        losses[backend] = train(changed(small, memory__backend=backend, memory__top_k=small.memory.knn), 20)
    for values in losses.values():
        assert values[0] == pytest.approx(losses["xla"][0], rel=0.02)
        assert values[-1] < values[0]
