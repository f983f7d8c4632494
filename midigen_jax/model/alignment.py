"""Memory by alignment: the song so far is compared with itself at every lag, in any key.

Each lag has a score: how well the last tokens agree with those that were read so many tokens earlier. A token that
agrees adds to it, one that does not takes a share of it away, so that a changed note does not end a match. Each lag has
a shift too, in semitones: pitches agree if they differ by it. The tokens that followed the best matches, shifted, are
candidates for the next token. Comparing a sequence with itself along its diagonals, with scores that survive
differences, is how self-similarity matrices and sequence alignments find what returns (Foote 1999, "Visualizing music
and audio using self-similarity"; Smith and Waterman 1981, "Identification of common molecular subsequences").

Scores are whole numbers and follow from the tokens alone: they are the same on every device, whether a song is read
by segments or token by token, and have no gradient. Letters of shapes are those of `shapes`; M are lags.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Bool, Int
from ..vocab import NO_SONG, Vocabulary

ONE = 16  # the score of one token that agrees
HIGHEST = 64 * ONE
KEPT = 5  # eighths of its score that a lag keeps after a token that does not agree
MAX_LAGS = (1 << 31) // (HIGHEST + 1)  # scores and lags share a number of 32 bits
NO_TOKEN = -1
EMPTY = np.iinfo(np.uint16).max  # the class of what was never read


class AlignmentMemory(NamedTuple):
    """The last M tokens of each lane's song, newest first, and the scores of the lags 1 to M."""

    token_class: Int[Array, "B M"]  # transposition classes (`vocab.Transposition`); EMPTY before the song began
    pitch: Int[Array, "B M"]
    position: Int[Array, "B M"]  # in the bar, in grid steps
    score: Int[Array, "B M"]
    pitch_score: Int[Array, "B M"]  # the same, of pitches alone
    shift: Int[Array, "B M"]  # semitones from the earlier passage to this one
    song: Int[Array, " B"]  # of the last token
    drums: Int[Array, " B"]  # 1 if they play after it, else 0


class Candidates(NamedTuple):
    """Tokens that followed the best matches, in no order; all else is undefined where the token is below 0."""

    token: Int[Array, "B *Q k"]
    score: Int[Array, "B *Q k"]
    pitch_score: Int[Array, "B *Q k"]
    shift: Int[Array, "B *Q k"]
    lag: Int[Array, "B *Q k"]
    same_position: Bool[Array, "B *Q k"]  # the match is as far into its bar


def init_alignment(lanes: int, lags: int) -> AlignmentMemory:
    token_class = jnp.full((lanes, lags), EMPTY, jnp.uint16)
    pitch, position, score, pitch_score, shift = (jnp.zeros((lanes, lags), jnp.int16) for _ in range(5))
    song, drums = jnp.full(lanes, NO_SONG, jnp.int32), jnp.zeros(lanes, jnp.int32)
    return AlignmentMemory(token_class, pitch, position, score, pitch_score, shift, song, drums)


def without_scores(memory: AlignmentMemory) -> AlignmentMemory:
    """What was read, before anything is compared with it."""
    zeros = jnp.zeros_like(memory.score)
    return memory._replace(score=zeros, pitch_score=zeros, shift=zeros)


def read_tokens(
    memory: AlignmentMemory,
    tokens: Int[Array, "B Q"],
    position: Int[Array, "B Q"],
    song: Int[Array, "B Q"],
    vocabulary: Vocabulary,
    k: int,
    *,
    remembers: bool = True,
) -> tuple[AlignmentMemory, Candidates]:
    """`read_token` for one token after the other."""

    def one_token(memory: AlignmentMemory, xs: tuple[Array, Array, Array]) -> tuple[AlignmentMemory, Candidates]:
        return read_token(memory, *xs, vocabulary, k, remembers=remembers)

    memory, candidates = jax.lax.scan(one_token, memory, (tokens.T, position.T, song.T))
    return memory, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), candidates)


def read_token(
    memory: AlignmentMemory,
    token: Int[Array, " B"],
    position: Int[Array, " B"],
    song: Int[Array, " B"],
    vocabulary: Vocabulary,
    k: int,
    *,
    remembers: bool = True,
) -> tuple[AlignmentMemory, Candidates]:
    """The memory after a token, and candidates for the next one. Tokens of NO_SONG leave the memory as it is.

    Args:
        position: in the bar, in grid steps.
        k: number of candidates; the best of every k-th lag, so that none displaces its neighbours.
        remembers: whether later tokens are compared with this one.
    """
    tables = vocabulary.transposition
    begins, reads = song != memory.song, song != NO_SONG
    drums = jnp.where(begins, 0, memory.drums)
    new_class, new_pitch, position = (
        x.astype(memory.score.dtype)[:, None]
        for x in (jnp.asarray(tables.token_class)[drums, token], jnp.asarray(tables.pitch)[drums, token], position)
    )
    new_class = new_class.astype(memory.token_class.dtype)
    old_class = jnp.where(begins[:, None], jnp.uint16(EMPTY), memory.token_class)
    score, pitch_score, shift = (
        jnp.where(begins[:, None], 0, x) for x in (memory.score, memory.pitch_score, memory.shift)
    )

    same_class, pitched = old_class == new_class, new_pitch >= 0
    difference = new_pitch - memory.pitch
    other_pitch = same_class & pitched & (difference != shift)

    def after(score: Array, added: Array | int) -> Array:
        agrees = same_class & ~other_pitch
        return jnp.where(agrees, jnp.minimum(score + added, HIGHEST), score * KEPT >> 3).astype(score.dtype)

    score, pitch_score = after(score, ONE), after(pitch_score, jnp.where(pitched, ONE, 0).astype(score.dtype))
    # A lag whose pitches no longer agree tries another shift.
    shift = jnp.where(other_pitch & (pitch_score < ONE // 2), difference, shift)

    def pushed(old: Array, new: Array | int) -> Array:
        return jnp.concatenate([jnp.broadcast_to(new, (len(old), 1)).astype(old.dtype), old[:, :-1]], 1)

    token_class = pushed(old_class, new_class if remembers else EMPTY)
    pitch = pushed(memory.pitch, new_pitch)
    lags = _best_lags(jnp.where(token_class == EMPTY, 0, score), k)
    at_lags = partial(jnp.take_along_axis, indices=lags, axis=1)
    candidate_class, candidate_pitch, shifts = at_lags(token_class), at_lags(pitch), at_lags(shift)
    shifted = jnp.where(candidate_pitch >= 0, candidate_pitch + shifts, 0)
    exists = (at_lags(score) > 0) & (candidate_class != EMPTY) & (shifted >= 0) & (shifted < tables.token.shape[1])
    candidates = Candidates(
        jnp.where(exists, jnp.asarray(tables.token)[candidate_class, shifted], NO_TOKEN),
        at_lags(score),
        at_lags(pitch_score),
        shifts,
        lags + 1,
        at_lags(memory.position) == position,
    )
    drums_after = jnp.asarray(tables.drums_after, jnp.int32)[drums, token]
    history = token_class, pitch, pushed(memory.position, position)
    new = AlignmentMemory(*history, score, pitch_score, shift, song, drums_after)
    kept = jax.tree.map(lambda n, o: jnp.where(reads.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, memory)
    return kept, candidates


def _best_lags(score: Int[Array, "B M"], k: int) -> Int[Array, "B k"]:
    """The index of the highest score of every k-th lag, the shortest of equals."""
    lags = score.shape[1]
    assert lags <= MAX_LAGS
    newer = jnp.arange(lags - 1, -1, -1, dtype=jnp.int32)
    key = jnp.pad(score.astype(jnp.int32) * lags + newer, ((0, 0), (0, -lags % k)), constant_values=-1)
    return lags - 1 - key.reshape(len(key), -1, k).max(1) % lags
