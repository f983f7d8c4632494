"""On an NVIDIA GPU: JAX_PLATFORMS=cuda python -m pytest -q -m gpu"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_model import batch_of, changed
from test_search import K, assert_same_but_for_ties, case

from midigen_jax import model
from midigen_jax.search import search
from midigen_jax.step import init_state, make_mesh, make_train_step, put_batch, state_sharding
from midigen_jax.vocab import Vocabulary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="for a GPU: JAX_PLATFORMS=cuda python -m pytest -m gpu"),
]


def skip_without_faiss(backend):
    if backend == "faiss" and not hasattr(pytest.importorskip("faiss"), "StandardGpuResources"):
        pytest.skip("this is Faiss for the CPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["faiss", "xla"])
def test_search_on_the_gpu_agrees_with_numpy(backend, dtype):
    skip_without_faiss(backend)
    queries, keys, start, count, scores, expected = case(K, dtype)
    hits = jax.jit(search, static_argnums=(5, 6))(queries, keys, -keys, start, count, K, backend)
    assert_same_but_for_ties(hits.slots, expected, scores)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_on_the_gpu(small, dtype):
    """One program for all steps, the same first loss with every backend, and the loss falls."""
    losses = {}
    for backend in ("xla", "faiss", "dense"):
        try:
            skip_without_faiss(backend)
        except pytest.skip.Exception:
            continue
        config = changed(small, model__dtype=dtype, memory__dtype=dtype, memory__backend=backend, memory__top_k=64)
        mesh = make_mesh(config)
        begin = jax.jit(init_state, static_argnums=(0, 1), out_shardings=state_sharding(mesh))
        state = begin(config, Vocabulary())
        step = make_train_step(model.abstract(config, Vocabulary()), config, mesh)
        batch = put_batch({name: np.asarray(x) for name, x in batch_of(config, 2, [[32]] * 3).items()}, mesh)
        losses[backend] = []
        for _ in range(20):
            state, metrics = step(state, batch)
            losses[backend].append(float(metrics["loss"]))
        assert step._cache_size() == 1
        assert metrics["hit_rate"] > 0.3
        assert jnp.isfinite(metrics["gradient_norm"])
    for values in losses.values():
        assert values[0] == pytest.approx(losses["xla"][0], rel=0.02)
        assert values[-1] < values[0]
