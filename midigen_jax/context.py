"""Keys of the kNN memory: the last tokens before a place in the music, so that the same turn is found again.

The keys of attention say what a token is to the layers above, and change while a model learns; few of them find a
passage that comes back. These say what was heard and at which step of the bar, from the first step of training on: the
more of it two places share, the more alike they are. Letters of shapes are those of `shapes`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import config as cfg
from .shapes import Array, Float, Int
from .vocab import Vocabulary

LENGTH = 16  # tokens that a key says something of
HORIZONS = (2.0, 16.0)  # tokens after which their weight has fallen to 1/e, in the first and the last head
TURN = 5  # how far the features of a token are turned for each token that it lies back


def normalize(x: Array) -> Array:
    """To length 1, per head, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(jnp.square(y), -1, keepdims=True) + 1e-6)).astype(x.dtype)


class Context(nnx.Module):
    """A direction for every token and for every step in the bar; a key is the sum of those of a place.

    A token's features are turned around by its distance, which makes another direction of it, so that the order counts.
    """

    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, steps: int, *, rngs: nnx.Rngs):
        heads, head_width = config.model.heads, config.model.width // config.model.heads
        direction = nnx.initializers.normal(head_width**-0.5)
        self.token = nnx.Param(direction(rngs.params(), (vocabulary.size, heads, head_width)))
        self.step = nnx.Param(direction(rngs.params(), (steps, heads, head_width)))
        self.horizons = tuple(np.geomspace(*HORIZONS, heads).tolist())

    def __call__(
        self, tokens: Int[Array, "B slots"], song: Int[Array, "B slots"], step: Int[Array, "B Q"]
    ) -> Float[Array, "B Q H Dh"]:
        """Keys of length 1 of the last Q tokens.

        Args:
            tokens, song: these and the LENGTH - 1 before them; those of another song don't count.
        """
        queries = step.shape[1]
        x, table = self.token[...][tokens], self.step[...]
        y, own = table[step % len(table)], song[:, LENGTH - 1 :]
        fading = jnp.exp(-1 / jnp.asarray(self.horizons))[:, None]
        for distance in range(LENGTH):
            here = slice(LENGTH - 1 - distance, LENGTH - 1 - distance + queries)
            heard = jnp.roll(x[:, here], TURN * distance, -1) * fading**distance
            y = y + jnp.where((song[:, here] == own)[..., None, None], heard, 0)
        return normalize(y)
