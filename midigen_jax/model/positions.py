"""Relative positions in attention: T5 position bias, and rotary embeddings of tokens' distances or of musical ones.

Letters of shapes are those of `shapes`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Float, Int

BUCKETS, MAX_DISTANCE = 32, 128  # of the T5 relative position bias
ROTARY_BASE = 10_000
BAR_PERIODS, BEAT_PERIODS, PITCH_PERIODS = (2, 128), (0.25, 8), (2, 128)  # shortest and longest; beats, semitones


def t5_bucket(distance: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Bucket of a distance back in time (Raffel et al. 2020): exact up to 15, logarithmic up to 128 and beyond."""
    exact = BUCKETS // 2
    logarithm = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(MAX_DISTANCE / exact)
    coarse = exact + (logarithm * (BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, jnp.maximum(distance, 0), jnp.minimum(coarse, BUCKETS - 1))


def initial_bias(heads: int) -> Float[Array, "buckets H"]:
    """The table before training: a slope per head that falls with distance (Press et al. 2022, "ALiBi").

    A table of zeros makes heads learn to tell near from far first, one bucket at a time. On the demo's music, after
    256,000 tokens, zeros reached 2.13 nats per token on validation songs and slopes 1.72, all else equal.
    """
    exact = BUCKETS // 2
    beyond = exact * (MAX_DISTANCE / exact) ** (jnp.arange(exact) / exact)
    distances = jnp.concatenate([jnp.arange(exact), beyond])
    slopes = 2.0 ** (-8 * jnp.arange(1, heads + 1) / heads)
    return -distances[:, None] * slopes


def position_bias(
    table: Float[Array, "buckets H"], first: int, queries: int, slots: int
) -> Float[Array, "1 H {queries} {slots}"]:
    """What each head adds to a score for the distance between query and slot.

    Args:
        first: the window slot of the first query; a query at slot w has distance 0 to slot w.
    """
    # Row t is the row before it shifted by one slot. Gathering all rows would have a scatter as its gradient, which
    # takes longer than the attention itself; instead, all rows are cut from one repeated row that is one slot longer.
    period = slots + queries
    row_distance = jnp.concatenate([first - jnp.arange(slots), first + jnp.arange(queries, 0, -1)])
    row = table[t5_bucket(row_distance)].T
    rows = jnp.tile(row, queries)[:, : queries * (period - 1)].reshape(-1, queries, period - 1)
    return rows[None, :, :, :slots]


class Rotation(NamedTuple):
    """By how much each pair of a vector's features is rotated."""

    cos: Float[Array, "#B Q half"]
    sin: Float[Array, "#B Q half"]


def token_rotation(position: Int[Array, "#B Q"], head_width: int) -> Rotation:
    """Rotary positions (Su et al. 2021, "RoFormer")."""
    half = head_width // 2
    angle = position[..., None] * ROTARY_BASE ** (-jnp.arange(half) / half)
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def musical_rotation(
    bar: Int[Array, "B Q"], position: Int[Array, "B Q"], pitch: Int[Array, "B Q"], steps_per_beat: int, head_width: int
) -> Rotation:
    """Rotary positions in musical time and pitch (Schön and Tompits 2026, "Rotary informational embeddings").

    About three eighths of the features turn with the bar, and as many of the others with the position in it as with the
    pitch.

    Args:
        position: in the bar, in grid steps.
        pitch: 0 for tokens without a note.
    """
    half = head_width // 2
    of_bar, of_position = half * 3 // 8, half * 5 // 16
    turns = (
        (bar, BAR_PERIODS, of_bar),
        (position / steps_per_beat, BEAT_PERIODS, of_position),
        (pitch, PITCH_PERIODS, half - of_bar - of_position),
    )
    # NumPy's constants: in float32, bar 1,000 would turn by another angle if XLA computed them with another rounding.
    angle = jnp.concatenate(
        [x[..., None] * np.float32(2 * np.pi / np.geomspace(low, high, n)) for x, (low, high), n in turns], -1
    )
    # By the tangent of half the angle: cosines and sines XLA's CPU compiler would compute again in every layer for each
    # head, the tangent it computes once.
    t = jnp.tan(angle / 2)
    return Rotation((1 - t * t) / (1 + t * t), 2 * t / (1 + t * t))


def rotate(x: Float[Array, "B H Q Dh"], rotation: Rotation) -> Array:
    """The inner product of two rotated vectors depends on the difference of their positions."""
    half = x.shape[-1] // 2
    cos, sin = (y[:, None] for y in rotation)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
