"""Memory by alignment: the song so far is compared with itself at every lag, in any key.

Each lag has a score: how well the last tokens agree with those that were read so many tokens earlier. A token that
agrees adds to it, one that does not takes a share of it away, so that a changed note does not end a match. Each lag has
a shift too, in semitones: pitches agree if they differ by it. The tokens that followed the best matches, shifted, are
candidates for the next token; so are those that `places` finds. Comparing a sequence with itself along its diagonals,
with scores that survive differences, is how self-similarity matrices and sequence alignments find what returns (Foote
1999, "Visualizing music and audio using self-similarity"; Smith and Waterman 1981, "Identification of common molecular
subsequences").

Scores are whole numbers and follow from the tokens alone: they are the same on every device, whether a song is read
by segments or token by token, and have no gradient. Letters of shapes are those of `shapes`; M are lags.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..config import MAX_LAGS
from ..shapes import Array, Bool, Int, Integer
from ..vocab import DRUMS, NO_SONG, Vocabulary
from . import places
from .places import EMPTY, HIGHEST, KEPT, NO_TOKEN, ONE, Past, Place, Tracks

LASTING = 8 * ONE  # the least score of a passage that lasts: that of chance matches stays below
# While tokens are read, a lag's score, pitch score and shift are one number of 32 bits; shifts are -127 to 127.
SCORE_BITS, PITCH_SCORE_AT, SCORE_AT = 11, 8, 19
SHIFT_OF_0 = 1 << PITCH_SCORE_AT - 1
PACKED_ZEROS = SHIFT_OF_0
COLUMNS = 8
assert HIGHEST < 1 << SCORE_BITS


class Scores(NamedTuple):
    """Of the lags 1 to M."""

    score: Int[Array, "B M"]
    pitch_score: Int[Array, "B M"]  # the same, of pitches alone
    shift: Int[Array, "B M"]  # semitones from the earlier passage to this one
    began: Int[Array, "B M"]  # the bar from which on the passages have agreed


class AlignmentMemory(NamedTuple):
    past: Past  # the last M tokens of each lane's song
    scores: Scores
    place: Place
    tracks: Tracks
    song: Int[Array, " B"]  # of the last token


class Candidates(NamedTuple):
    """Tokens that followed the best matches, in no order, and then those at the same place some bars before.

    All else is undefined where the token is below 0.
    """

    token: Int[Array, "B *Q k"]
    score: Int[Array, "B *Q k"]
    pitch_score: Int[Array, "B *Q k"]
    shift: Int[Array, "B *Q k"]
    lag: Int[Array, "B *Q k"]
    bars: Int[Array, "B *Q k"]  # from the match to the token that was read
    length: Int[Array, "B *Q k"]  # for how many bars the passages have agreed
    same_position: Bool[Array, "B *Q k"]  # the match is as far into its bar


def init_alignment(lanes: int, lags: int) -> AlignmentMemory:
    def zeros(dtype: type) -> Array:
        return jnp.zeros((lanes, lags), dtype)

    token_class = jnp.full((lanes, lags), EMPTY, jnp.uint16)
    past = Past(token_class, *(zeros(x) for x in (jnp.int16, jnp.int16, jnp.int16, jnp.int32, jnp.int32)))
    scores = Scores(*(zeros(jnp.int16) for _ in Scores._fields))
    song = jnp.full(lanes, NO_SONG, jnp.int32)
    return AlignmentMemory(past, scores, places.init_place(lanes), places.init_tracks(lanes), song)


def without_scores(memory: AlignmentMemory) -> AlignmentMemory:
    """What was read, before anything is compared with it."""
    return memory._replace(scores=jax.tree.map(jnp.zeros_like, memory.scores))


def read_tokens(
    memory: AlignmentMemory,
    tokens: Int[Array, "B Q"],
    bar: Int[Array, "B Q"],
    position: Int[Array, "B Q"],
    song: Int[Array, "B Q"],
    vocabulary: Vocabulary,
    k: int,
    *,
    remembers: bool = True,
) -> tuple[AlignmentMemory, Candidates]:
    """The memory after the tokens, and after each of them candidates for the next one.

    Args:
        bar: in the song, from 0.
        position: in the bar, in grid steps.
        song: NO_SONG behind a lane's last token; what is there leaves the memory as it is.
        k: number of matches among the candidates; the best of every k-th lag, so that none displaces its neighbours.
        remembers: whether later tokens are compared with these.
    """
    (lanes, queries), lags = tokens.shape, memory.past.bar.shape[1]
    reads = song != NO_SONG
    songs = jnp.concatenate([memory.song[:, None], song], 1)
    begins = reads & (song != songs[:, :-1])
    place, of_tokens = places.follow(memory.place, tokens, begins, reads, vocabulary)
    drums_before = (of_tokens.instrument == DRUMS).astype(jnp.int32)
    tables = vocabulary.transposition
    token_class = jnp.asarray(tables.token_class)[drums_before, tokens].astype(jnp.uint16)
    token_pitch = jnp.asarray(tables.pitch)[drums_before, tokens].astype(jnp.int16)
    remembered = token_class if remembers else jnp.full_like(token_class, EMPTY)
    new = Past(remembered, token_pitch, bar, position, of_tokens.time, of_tokens.rank)
    # Newest first, as in the memory: after t tokens the lags 1 to M begin at Q - t.
    past = jax.tree.map(lambda new, old: jnp.concatenate([new[:, ::-1].astype(old.dtype), old], 1), new, memory.past)
    index = jnp.arange(queries)
    began = jax.lax.cummax(jnp.where(begins, index, -1), axis=1)
    # How many lags lead to the same song from each token; all, if it began before them.
    within = jnp.where(began < 0, lags, index - began)

    def one_token(carry: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        """The tokens stay where they are, and the scores, which are those of lags, move along them."""
        packed, agree_from = carry
        *of_token, t = xs
        token_class, pitch, bar, begins, reads, within = (x[:, None] for x in of_token)
        old_class, followed, old_pitch = (
            jax.lax.dynamic_slice_in_dim(x, queries - read, lags, 1)
            for x, read in ((past.token_class, t), (past.token_class, t + 1), (past.pitch, t))
        )
        lag = jnp.arange(1, lags + 1)
        old_class = jnp.where(lag <= within, old_class, EMPTY)
        before = jnp.where(begins, PACKED_ZEROS, packed)
        after = jnp.where(reads, _compare(before, old_class, old_pitch, token_class, pitch), packed)
        agree_from = jnp.where(reads & (before < LASTING << SCORE_AT), bar, agree_from)
        # Only what was not remembered has been followed by nothing.
        best = _best_lags(after if remembers else jnp.where(followed != EMPTY, after, PACKED_ZEROS), k)
        return (after, agree_from), (best, *(jnp.take_along_axis(x, best, 1) for x in (after, agree_from)))

    xs = *(x.T for x in (token_class, token_pitch, bar.astype(jnp.int16), begins, reads, within)), index
    carry, of_best = jax.lax.scan(one_token, (_pack(memory.scores), memory.scores.began), xs)
    scores = _unpack(*carry)
    best, *packed_at_best = (jnp.moveaxis(x, 0, 1) for x in of_best)
    at_best = _unpack(*packed_at_best)

    def at(x: Array, read: Array) -> Integer[Array, "B Q k"]:
        """What the best lags lead to from where so many tokens are read."""
        return jnp.take_along_axis(x, (best + (queries - read)[:, None]).reshape(lanes, -1), 1).reshape(best.shape)

    followed = at(past.token_class, index + 1), at(past.pitch, index + 1)
    same_position = at(past.position, index) == position[..., None]
    bar = bar[..., None].astype(jnp.int16)
    bars, length = bar - at(past.bar, index), bar - at_best.began
    candidates = _candidates(best, at_best, *followed, bars, length, same_position, vocabulary)
    known = jnp.minimum(jnp.sum(memory.past.token_class != EMPTY, 1)[:, None] + index, lags - 1)
    found = places.find(past, of_tokens, tokens, jnp.minimum(within, known), vocabulary)
    tracks, after = places.compare(memory.tracks, found.token, tokens, token_pitch >= 0, begins, reads)
    candidates = _with_places(candidates, found, after)

    n_read = reads.sum(1)

    def newest(x: Array) -> Array:
        return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=lags))(x, queries - n_read)

    last = jnp.maximum(n_read - 1, 0)[:, None]
    of_song = jnp.where(n_read[:, None] > 0, jnp.take_along_axis(within, last, 1) + 1, lags)
    past = jax.tree.map(newest, past)
    past = past._replace(token_class=jnp.where(jnp.arange(lags) < of_song, past.token_class, EMPTY))
    last_song = jnp.take_along_axis(songs, n_read[:, None], 1)[:, 0]
    return AlignmentMemory(past, scores, place, tracks, last_song), candidates


def read_token(
    memory: AlignmentMemory,
    token: Int[Array, " B"],
    bar: Int[Array, " B"],
    position: Int[Array, " B"],
    song: Int[Array, " B"],
    vocabulary: Vocabulary,
    k: int,
) -> tuple[AlignmentMemory, Candidates]:
    """`read_tokens` for one token."""
    memory, candidates = read_tokens(
        memory, token[:, None], bar[:, None], position[:, None], song[:, None], vocabulary, k
    )
    return memory, jax.tree.map(lambda x: x[:, 0], candidates)


def _pack(scores: Scores) -> Int[Array, "B M"]:
    """Score, pitch score and shift in one number, so that each token reads and writes it once."""
    score, pitch_score, shift = (x.astype(jnp.int32) for x in scores[:3])
    return score << SCORE_AT | pitch_score << PITCH_SCORE_AT | shift + SHIFT_OF_0


def _unpack(packed: Int[Array, "*B M"], began: Int[Array, "*B M"]) -> Scores:
    score, pitch_score, shift = (x.astype(jnp.int16) for x in _fields(packed))
    return Scores(score, pitch_score, shift - SHIFT_OF_0, began)


def _fields(packed: Int[Array, "*B M"]) -> tuple[Array, Array, Array]:
    """Score, pitch score, and shift + SHIFT_OF_0."""
    return packed >> SCORE_AT, packed >> PITCH_SCORE_AT & (1 << SCORE_BITS) - 1, packed & (1 << PITCH_SCORE_AT) - 1


def _compare(
    packed: Int[Array, "B M"],
    old_class: Integer[Array, "B M"],
    old_pitch: Int[Array, "B M"],
    new_class: Integer[Array, "B 1"],
    new_pitch: Int[Array, "B 1"],
) -> Int[Array, "B M"]:
    """The packed scores of all lags after a token; the old tokens are those before it, newest first."""
    score, pitch_score, shift = _fields(packed)
    same_class, pitched = old_class == new_class, new_pitch >= 0
    new_shift = (new_pitch - old_pitch).astype(jnp.int32) + SHIFT_OF_0
    other_pitch = same_class & pitched & (new_shift != shift)
    agrees = same_class & ~other_pitch

    def after(score: Array, added: Array | int) -> Array:
        return jnp.where(agrees, jnp.minimum(score + added, HIGHEST), score * KEPT >> 3)

    score, pitch_score = after(score, ONE), after(pitch_score, jnp.where(pitched, ONE, 0))
    # A lag whose pitches no longer agree tries another shift.
    shift = jnp.where(other_pitch & (pitch_score < ONE // 2), new_shift, shift)
    return score << SCORE_AT | pitch_score << PITCH_SCORE_AT | shift


def _candidates(
    best: Int[Array, "B *Q k"],
    at_best: Scores,
    token_class: Integer[Array, "B *Q k"],
    pitch: Int[Array, "B *Q k"],
    bars: Int[Array, "B *Q k"],
    length: Int[Array, "B *Q k"],
    same_position: Bool[Array, "B *Q k"],
    vocabulary: Vocabulary,
) -> Candidates:
    """The tokens that followed the best lags, shifted.

    Args:
        token_class, pitch: of these tokens.
    """
    tables, (score, pitch_score, shift) = vocabulary.transposition, at_best[:3]
    shifted = jnp.where(pitch >= 0, pitch + shift, 0)
    exists = (score > 0) & (token_class != EMPTY) & (shifted >= 0) & (shifted < tables.token.shape[1])
    token = jnp.where(exists, jnp.asarray(tables.token)[token_class, shifted], NO_TOKEN)
    return Candidates(token, score, pitch_score, shift, best + 1, bars, length, same_position)


def _with_places(candidates: Candidates, found: places.Found, tracks: Tracks) -> Candidates:
    """Both kinds of candidates."""
    zeros = jnp.zeros_like(found.token)
    bars = jnp.broadcast_to(jnp.asarray(places.DISTANCES), zeros.shape)
    of_places = Candidates(
        found.token, tracks.score, tracks.pitch_score, zeros, found.lag, bars, zeros, found.same_position
    )
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y.astype(x.dtype)], -1), candidates, of_places)


def _best_lags(packed: Int[Array, "B M"], k: int) -> Int[Array, "B k"]:
    """The index of the highest score of every k-th lag, the shortest of equals."""
    lags, low = packed.shape[1], MAX_LAGS - 1
    assert lags <= MAX_LAGS <= 1 << 31 - SCORE_BITS
    newer = jnp.arange(lags - 1, -1, -1, dtype=jnp.int32)
    key = jnp.pad((packed >> SCORE_AT) * MAX_LAGS | newer, ((0, 0), (0, -lags % (COLUMNS * k))), constant_values=-1)
    # In two steps: over few columns alone, XLA's maximum on a CPU is slow.
    highest = key.reshape(len(key), -1, COLUMNS * k).max(1).reshape(len(key), COLUMNS, k).max(1)
    return lags - 1 - (highest & low)
