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
COLUMNS = 8  # times k, over which the best lags are sought first
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


class Best(NamedTuple):
    """The best lag of every k-th, from 0, after each token."""

    lag: Int[Array, "B *Q k"]
    packed: Int[Array, "B *Q k"]  # its scores
    began: Int[Array, "B *Q k"]


class Reading(NamedTuple):
    """A memory that reads a token at a time: what it has read stays where it is, behind room for what will be."""

    past: Past  # arrays [B, Q + M], Q of them room
    packed: Int[Array, "B M"]  # of `_pack`
    began: Int[Array, "B M"]  # of `Scores`
    place: Place
    tracks: Tracks
    song: Int[Array, " B"]  # of the last token
    room: Int[Array, ""]  # tokens that may still be read
    n_read: Int[Array, " B"]
    known: Int[Array, " B"]  # tokens that were remembered before
    of_song: Int[Array, " B"]  # tokens of the last token's song, if it began since; else M or more


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
    queries, lags = tokens.shape[1], memory.past.bar.shape[1]
    reads = song != NO_SONG
    songs = jnp.concatenate([memory.song[:, None], song], 1)
    begins = reads & (song != songs[:, :-1])
    place, of_tokens = places.follow(memory.place, tokens, begins, reads, vocabulary)
    new = _past_of(tokens, bar, position, of_tokens, vocabulary)
    remembered = new if remembers else new._replace(token_class=jnp.full_like(new.token_class, EMPTY))
    # Newest first, as in the memory: what was read before token t begins at Q - t.
    past = jax.tree.map(
        lambda new, old: jnp.concatenate([new[:, ::-1].astype(old.dtype), old], 1), remembered, memory.past
    )
    index = jnp.arange(queries)
    began_at = jax.lax.cummax(jnp.where(begins, index, -1), axis=1)
    # How many lags lead to the same song from each token; all, if it began before them.
    within = jnp.where(began_at < 0, lags, index - began_at)

    def one_token(scores: tuple[Array, Array], xs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Best]:
        *of_token, t = xs
        return _compare(scores, past, queries - t, _OfToken(*of_token), k, remembers=remembers)

    xs = *(x.T for x in (new.token_class, new.pitch, bar, begins, reads, within)), index
    scores, best = jax.lax.scan(one_token, (_pack(memory.scores), memory.scores.began), xs)
    best = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), best)
    limit = jnp.minimum(within, jnp.minimum(_known(memory)[:, None] + index, lags - 1))
    candidates, found = _look_up(past, queries - 1 - index, tokens, of_tokens, best, limit, vocabulary)
    if not remembers:  # what is remembered is another song's, whose bars are not so many before these
        found = found._replace(token=jnp.full_like(found.token, NO_TOKEN))
    tracks, after = places.compare(memory.tracks, found.token, tokens, new.pitch >= 0, begins, reads)
    n_read = reads.sum(1)
    of_last = jnp.take_along_axis(within, jnp.maximum(n_read - 1, 0)[:, None], 1)[:, 0] + 1
    last_song = jnp.take_along_axis(songs, n_read[:, None], 1)[:, 0]
    memory = _memory(past, scores, place, tracks, last_song, n_read, jnp.where(n_read > 0, of_last, lags))
    return memory, _with_places(candidates, found, after)


def begin_reading(memory: AlignmentMemory, room: int) -> Reading:
    """The memory with room for tokens; `end_reading` gives it back.

    Args:
        room: how many tokens are read at most.
    """
    (lanes, lags), none = memory.past.bar.shape, jnp.zeros_like(memory.song)
    past = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros((lanes, room), x.dtype), x], 1), memory.past)
    return Reading(
        past,
        _pack(memory.scores),
        memory.scores.began,
        memory.place,
        memory.tracks,
        memory.song,
        room=jnp.asarray(room, jnp.int32),
        n_read=none,
        known=_known(memory),
        of_song=none + lags,
    )


def read_token(
    reading: Reading,
    token: Int[Array, " B"],
    bar: Int[Array, " B"],
    position: Int[Array, " B"],
    song: Int[Array, " B"],
    vocabulary: Vocabulary,
    k: int,
) -> tuple[Reading, Candidates]:
    """`read_tokens` for one token; a lane that does not read it reads no more."""
    reads, lags = song != NO_SONG, reading.packed.shape[1]
    begins = reads & (song != reading.song)
    tokens, bar, position = token[:, None], bar[:, None], position[:, None]
    place, of_tokens = places.follow(reading.place, tokens, begins[:, None], reads[:, None], vocabulary)
    new = _past_of(tokens, bar, position, of_tokens, vocabulary)
    at = reading.room - 1
    past = jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), at, 1), reading.past, new
    )
    within = jnp.where(begins, 0, jnp.minimum(reading.of_song, lags))
    of_token = new.token_class[:, 0], new.pitch[:, 0], bar[:, 0], begins, reads, within
    scores, best = _compare((reading.packed, reading.began), past, reading.room, _OfToken(*of_token), k)
    best = jax.tree.map(lambda x: x[:, None], best)
    limit = jnp.minimum(within, jnp.minimum(reading.known + reading.n_read, lags - 1))[:, None]
    candidates, found = _look_up(past, at[None], tokens, of_tokens, best, limit, vocabulary)
    tracks, after = places.compare(reading.tracks, found.token, tokens, new.pitch >= 0, begins[:, None], reads[:, None])
    of_song, song = jnp.where(reads, within + 1, reading.of_song), jnp.where(reads, song, reading.song)
    n_read = reading.n_read + reads
    reading = Reading(past, *scores, place, tracks, song, at, n_read, reading.known, of_song)
    return reading, jax.tree.map(lambda x: x[:, 0], _with_places(candidates, found, after))


def end_reading(reading: Reading) -> AlignmentMemory:
    """The memory after what was read."""
    scores = reading.packed, reading.began
    return _memory(reading.past, scores, reading.place, reading.tracks, reading.song, reading.n_read, reading.of_song)


def _known(memory: AlignmentMemory) -> Int[Array, " B"]:
    """How many tokens are remembered."""
    return jnp.sum(memory.past.token_class != EMPTY, 1)


def _past_of(
    tokens: Int[Array, "B Q"],
    bar: Int[Array, "B Q"],
    position: Int[Array, "B Q"],
    of_tokens: places.OfTokens,
    vocabulary: Vocabulary,
) -> Past:
    """The tokens as they will be remembered, but oldest first."""
    tables, drums_before = vocabulary.transposition, (of_tokens.instrument == DRUMS).astype(jnp.int32)
    token_class = jnp.asarray(tables.token_class)[drums_before, tokens].astype(jnp.uint16)
    pitch = jnp.asarray(tables.pitch)[drums_before, tokens].astype(jnp.int16)
    return Past(token_class, pitch, bar, position, of_tokens.time, of_tokens.rank)


def _memory(
    past: Past,
    scores: tuple[Array, Array],
    place: Place,
    tracks: Tracks,
    song: Int[Array, " B"],
    n_read: Int[Array, " B"],
    of_song: Int[Array, " B"],
) -> AlignmentMemory:
    """The memory after tokens.

    Args:
        past: arrays [B, Q + M]; of the first Q the last `n_read` were read.
        scores: packed, and `began`.
        of_song: how many of the last tokens are of one song; those before them are forgotten.
    """
    lags = scores[0].shape[1]
    room = past.bar.shape[1] - lags

    def newest(x: Array) -> Array:
        return jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=lags))(x, room - n_read)

    past = jax.tree.map(newest, past)
    token_class = jnp.where(jnp.arange(lags) < of_song[:, None], past.token_class, EMPTY)
    return AlignmentMemory(past._replace(token_class=token_class), _unpack(*scores), place, tracks, song)


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


class _OfToken(NamedTuple):
    token_class: Integer[Array, " B"]
    pitch: Int[Array, " B"]
    bar: Int[Array, " B"]
    begins: Bool[Array, " B"]  # its song
    reads: Bool[Array, " B"]
    within: Int[Array, " B"]  # how many lags lead to tokens of the same song


def _compare(
    scores: tuple[Int[Array, "B M"], Int[Array, "B M"]],
    past: Past,
    first: Int[Array, ""],
    of_token: _OfToken,
    k: int,
    *,
    remembers: bool = True,
) -> tuple[tuple[Array, Array], Best]:
    """The scores of all lags after a token, and the best.

    The tokens stay where they are, and the scores, which are those of lags, move along them.

    Args:
        scores: packed, and `began`.
        past: the token itself, where it is remembered, is before `first`, and those before it are from there on.
    """
    packed, began = scores
    token_class, pitch, bar, begins, reads, within = (x[:, None] for x in of_token)
    lags = packed.shape[1]
    old_class, old_pitch = (jax.lax.dynamic_slice_in_dim(x, first, lags, 1) for x in (past.token_class, past.pitch))
    before = jnp.where(begins, PACKED_ZEROS, packed)
    score, pitch_score, shift = _fields(before)
    same_class = (old_class == token_class) & (jnp.arange(1, lags + 1) <= within)
    pitched, new_shift = pitch >= 0, (pitch - old_pitch).astype(jnp.int32) + SHIFT_OF_0
    other_pitch = same_class & pitched & (new_shift != shift)
    agrees = same_class & ~other_pitch

    def after(score: Array, added: Array | int) -> Array:
        return jnp.where(agrees, jnp.minimum(score + added, HIGHEST), score * KEPT >> 3)

    score, pitch_score = after(score, ONE), after(pitch_score, jnp.where(pitched, ONE, 0))
    # A lag whose pitches no longer agree tries another shift.
    shift = jnp.where(other_pitch & (pitch_score < ONE // 2), new_shift, shift)
    packed = jnp.where(reads, score << SCORE_AT | pitch_score << PITCH_SCORE_AT | shift, packed)
    began = jnp.where(reads & (before < LASTING << SCORE_AT), bar.astype(began.dtype), began)
    usable = packed
    if not remembers:  # the last token that was remembered has been followed by none
        followed = jax.lax.dynamic_slice_in_dim(past.token_class, first - 1, lags, 1)
        usable = jnp.where(followed != EMPTY, packed, PACKED_ZEROS)
    best = _best_lags(usable, k)
    return (packed, began), Best(best, *(jnp.take_along_axis(x, best, 1) for x in (packed, began)))


def _look_up(
    past: Past,
    at: Int[Array, " Q"],
    tokens: Int[Array, "B Q"],
    of_tokens: places.OfTokens,
    best: Best,
    limit: Int[Array, "B Q"],
    vocabulary: Vocabulary,
) -> tuple[Candidates, places.Found]:
    """What followed the best lags, and what is found at the same place some bars before.

    Args:
        at: where in `past` the tokens are.
        limit: how many lags lead to tokens that are of the same song and still known.
    """
    lag, here = best.lag, jnp.zeros((*tokens.shape, 1), jnp.int32)

    def read(x: Integer[Array, "B M"], lag: Int[Array, "B Q n"]) -> Int[Array, "B Q n"]:
        return places.look_back(x, at, lag)

    bar = read(past.bar, here)
    same_position = read(past.position, lag + 1) == read(past.position, here)
    # In 16 bits, differences are right also where bars have exceeded them.
    bars, length = ((bar - since).astype(jnp.int16) for since in (read(past.bar, lag + 1), best.began))
    score, pitch_score, shift, _ = _unpack(best.packed, best.began)
    token_class, pitch = read(past.token_class, lag), read(past.pitch, lag)  # of the tokens that followed
    shifted = jnp.where(pitch >= 0, pitch + shift, 0)
    token = places.token_of(token_class, shifted, of_tokens.after.instrument, vocabulary)
    token = jnp.where(score > 0, token, NO_TOKEN)
    candidates = Candidates(token, score, pitch_score, shift, lag + 1, bars, length, same_position)
    return candidates, places.find(past, at, of_tokens, tokens, limit, vocabulary)


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
    lags = packed.shape[1]
    assert lags <= MAX_LAGS <= 1 << 31 - SCORE_BITS
    newer = jnp.arange(lags - 1, -1, -1, dtype=jnp.int32)
    key = jnp.pad((packed >> SCORE_AT) * MAX_LAGS | newer, ((0, 0), (0, -lags % (COLUMNS * k))), constant_values=-1)
    # In two steps: over few columns alone, XLA's maximum on a CPU is slow.
    highest = key.reshape(len(key), -1, COLUMNS * k).max(1).reshape(len(key), COLUMNS, k).max(1)
    return lags - 1 - highest % MAX_LAGS
