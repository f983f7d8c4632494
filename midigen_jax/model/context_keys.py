"""Keys of the kNN memory that describe the musical context: the last tokens and the position in the bar.

The keys of a layer's attention describe a token for the layers above and change while the model learns; searches with
them found few passages that return. A context key depends on what was played only: the more two places share, the more
similar their keys, from the first training step on. Letters of shapes are those of `shapes`.
"""

from math import gcd

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import config as cfg
from ..shapes import Array, Float, Int
from ..vocab import NO_SONG, Vocabulary
from .attention import normalize
from .memory import XLMemory

LENGTH = cfg.CONTEXT_LENGTH  # tokens that a key describes
HORIZONS = (2.0, 16.0)  # tokens after which a token's weight has fallen to 1/e, in the first and the last head


def rotation(head_width: int) -> int:
    """By how many features each token's vector is rotated per token of distance.

    At least 5 and coprime to the width, so that all LENGTH rotations differ in every head that is at least LENGTH wide.
    """
    return next(stride for stride in range(5, 2 * head_width + 5) if gcd(stride, head_width) == 1)


class ContextKeys(nnx.Module):
    """A vector for every token and for every position in the bar; a key is the sum of those of its context.

    A token's vector is rotated by its distance, so that the order of the tokens counts.
    """

    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, positions: int, *, rngs: nnx.Rngs):
        heads, head_width = config.model.heads, config.model.width // config.model.heads
        direction = nnx.initializers.normal(head_width**-0.5)
        self.token = nnx.Param(direction(rngs.params(), (vocabulary.size, heads, head_width)))
        self.position = nnx.Param(direction(rngs.params(), (positions, heads, head_width)))
        self.horizons = tuple(np.geomspace(*HORIZONS, heads).tolist())

    def of_segment(
        self, tokens: Int[Array, "B Q"], song: Int[Array, "B Q"], position: Int[Array, "B Q"], xl: XLMemory
    ) -> Float[Array, "B H Q Dh"]:
        """Keys of a segment's tokens, which XL memory precedes."""

        def with_last(old: Array, new: Array) -> Array:
            padded = jnp.pad(old, ((0, 0), (LENGTH - 1, 0)), constant_values=NO_SONG)
            return jnp.concatenate([padded[:, -(LENGTH - 1) :], new], 1)

        return jnp.swapaxes(self(with_last(xl.token, tokens), with_last(xl.song, song), position), 1, 2)

    def __call__(
        self, tokens: Int[Array, "B slots"], song: Int[Array, "B slots"], position: Int[Array, "B Q"]
    ) -> Float[Array, "B Q H Dh"]:
        """Keys of length 1 for the last Q tokens.

        Args:
            tokens, song: these tokens and the LENGTH - 1 before them; tokens of another song are ignored.
            position: position in the bar, in grid steps.
        """
        queries = position.shape[1]
        x, table = self.token[...][tokens], self.position[...]
        y, own = table[position % len(table)], song[:, LENGTH - 1 :]
        stride = rotation(x.shape[-1])
        decay = jnp.exp(-1 / jnp.asarray(self.horizons))[:, None]
        for distance in range(LENGTH):
            here = slice(LENGTH - 1 - distance, LENGTH - 1 - distance + queries)
            shifted = jnp.roll(x[:, here], stride * distance, -1) * decay**distance
            y = y + jnp.where((song[:, here] == own)[..., None, None], shifted, 0)
        return normalize(y)
