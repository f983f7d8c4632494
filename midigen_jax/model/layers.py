"""Parts of a block that know nothing of memory: norms, feed-forward layers, dropout. Shapes as in `shapes`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import config as cfg
from ..shapes import Array, Float
from ..vocab import SOUNDS, Vocabulary

PITCH_CLASSES, OCTAVES = 12, 11
EPSILON = 1e-5  # of the norms, as in PyTorch


def _swiglu(x: Array) -> Array:
    gate, x = jnp.split(x, 2, -1)
    return jax.nn.silu(gate) * x


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, "Primer"
    "swiglu": _swiglu,  # Shazeer 2020, "GLU variants improve transformer"
}


def fold_in(keys: Array | None, number: int) -> Array | None:
    """A key for every lane from its key and a number."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(x: Float[Array, "*B F"], rate: float, keys: Array | None) -> Float[Array, "*B F"]:
    """Inverted dropout with one key per lane, so that a lane's mask depends on no other lane and on no device.

    The rate is rounded to 1/256: a byte per value takes a quarter of the random bits of a float.
    """
    kept = max(round(256 * (1 - rate)), 1)
    if keys is None or kept == 256:
        return x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint8))(keys)
    return jnp.where(bits < kept, x * (256 / kept), 0).astype(x.dtype)


def make_norm(model: cfg.Model, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    dtype = jnp.dtype(model.dtype)
    if model.norm == "rms":
        return nnx.RMSNorm(model.width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
    return nnx.LayerNorm(model.width, epsilon=EPSILON, use_bias=model.biases, dtype=dtype, rngs=rngs)


class FeedForward(nnx.Module):
    def __init__(self, model: cfg.Model, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(model.dtype)
        self.activation, self.rate = model.activation, model.dropout
        n_up = 2 if model.activation == "swiglu" else 1
        self.up = nnx.Linear(model.width, n_up * model.ff_width, use_bias=model.biases, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(model.ff_width, model.width, use_bias=model.biases, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"], keys: Array | None) -> Float[Array, "*B D"]:
        return self.down(dropout(_ACTIVATIONS[self.activation](self.up(x)), self.rate, keys))


def pitch_features(vocabulary: Vocabulary) -> Float[Array, "V features"]:
    """How often each token sounds each pitch class and each octave; a merged token may sound several."""
    features = np.zeros((vocabulary.size, PITCH_CLASSES + OCTAVES), np.float32)
    for token in range(vocabulary.size):
        for kind, value in vocabulary.parts(token):
            if kind in SOUNDS:
                octave, pitch_class = divmod(value, PITCH_CLASSES)
                features[token, [pitch_class, PITCH_CLASSES + octave]] += 1
    return jnp.asarray(features)
