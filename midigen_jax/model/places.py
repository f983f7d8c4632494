"""The same place some bars earlier: what was played there is what returns when a phrase begins again.

Matches with the past (`alignment`) tell that a passage is being repeated only once its first tokens were. At the
distances at which phrases return, the token that came next at the same time in the bar, and behind the same note of a
chord, is a candidate even before; and it stays at its place in time where a note was added or left out (Yu et al. 2022,
"Museformer", attends to these bars for the same reason).

A place is a time and a rank: tokens of one time are in the order of their instruments and of their notes, and the rest
behind them comes last; a bar, its meter and a position, where these are tokens, come first. Letters of shapes are those
of `shapes`; M are lags, C the contexts of `vocab.Clock`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import vocab
from ..shapes import Array, Bool, Int, Integer
from ..vocab import NO_INSTRUMENT, SAME_CONTEXT, SOUNDS, Clock, Kind, Vocabulary

DISTANCES = (1, 2, 4, 8, 12, 16, 24, 32)  # bars, as in Museformer
NO_TOKEN = -1
EMPTY = np.iinfo(np.uint16).max  # the transposition class of what was never read
ONE = 16  # the score of one token that agrees
HIGHEST = 64 * ONE
KEPT = 5  # eighths of a score that are kept after a token that does not agree

# Below the ranks of the instruments: those of what comes before the notes of one time, and of a time that just began.
_LEADING = {Kind.BAR: -4, Kind.METER: -3, Kind.POSITION: -2}
NO_RANK = -5
_CONTINUES = -6  # instead of a rank: the token goes on with the event before it
_STAGES = 3  # of a note: pitch, velocity, duration
_SPAN = 1 + 128 * _STAGES  # ranks of an instrument; the first is that of its name
_REST = _SPAN * vocab.N_INSTRUMENTS  # above the ranks of all notes; then comes the rest's duration
_ROUNDS = 4  # of a search among all lags
_ANY = _REST  # ranks by which the next token may be further


class Place(NamedTuple):
    """Where each lane's song is after its last token."""

    instrument: Int[Array, " B"]  # the one that plays, or NO_INSTRUMENT
    time: Int[Array, " B"]  # of the next token, in grid steps from the song's start
    rank: Int[Array, " B"]  # of the last token at that time, or NO_RANK
    context: Int[Array, " B"]  # after the last token (`vocab.Clock`)
    bar_start: Int[Array, " B"]  # where tokens lead from bar to bar


class OfTokens(NamedTuple):
    """Of each token that was read."""

    instrument: Int[Array, "B Q"]  # the one that played before it
    time: Int[Array, "B Q"]
    rank: Int[Array, "B Q"]
    after: Place  # it, with arrays [B, Q]


class Past(NamedTuple):
    """Tokens that were read, newest first."""

    token_class: Integer[Array, "B M"]  # transposition classes (`vocab.Transposition`); EMPTY: none, or not remembered
    pitch: Int[Array, "B M"]
    bar: Int[Array, "B M"]
    position: Int[Array, "B M"]  # in the bar, in grid steps
    time: Int[Array, "B M"]  # from the song's start, in grid steps
    rank: Int[Array, "B M"]  # among the tokens of one time


def look_back(x: Integer[Array, "B M"], at_token: Int[Array, " Q"], lag: Int[Array, "B Q *d"]) -> Int[Array, "B Q *d"]:
    """What an array of `Past` has for the tokens that were read some tokens before others.

    Args:
        at_token: where in `x` the others are.
    """
    index = lag + at_token.reshape(-1, *[1] * (lag.ndim - 2))
    return jnp.take_along_axis(x, index.reshape(len(x), -1), 1, mode="clip").reshape(index.shape).astype(jnp.int32)


class Found(NamedTuple):
    """For each token and distance: what came next at the same place; undefined where the token is NO_TOKEN."""

    token: Int[Array, "B Q d"]
    lag: Int[Array, "B Q d"]  # to the token before it
    same_position: Bool[Array, "B Q d"]  # an event began at that time


class Tracks(NamedTuple):
    """How well what was found at each distance has agreed with the song lately."""

    token: Int[Array, "B d"]  # found after the last token
    score: Int[Array, "B d"]
    pitch_score: Int[Array, "B d"]  # the same, of pitches alone


class _Tables(NamedTuple):
    """Of each token."""

    first: np.ndarray  # int32 [V], rank of its first event within the instrument; or _CONTINUES
    last: np.ndarray  # int32 [V], rank of its last note within the instrument, if no rest follows; or NO_RANK
    first_instrument: np.ndarray  # int32 [V], with which it begins, or NO_INSTRUMENT
    last_instrument: np.ndarray  # int32 [V], `Vocabulary.named_instruments`
    room: np.ndarray  # int32 [V], ranks by which the next token may be further, so that it ends the event


def _tables(vocabulary: Vocabulary) -> _Tables:
    size, kinds = vocabulary.size, vocabulary.kinds
    first, last = np.full((2, size), NO_RANK, np.int32)
    first_instrument, room = (np.full(size, x, np.int32) for x in (NO_INSTRUMENT, _ANY))
    for token in range(size):
        parts = vocabulary.parts(token)
        for i, (kind, value) in enumerate(parts):
            rank = _CONTINUES
            if kind in (Kind.REST, Kind.SHIFT):
                rank, last[token] = _REST, NO_RANK
            elif kind in _LEADING:
                rank = last[token] = _LEADING[kind]
            elif kind in SOUNDS:
                rank = 1 + (value if vocabulary.rises else 127 - value) * _STAGES
                last[token] = rank + _STAGES - 1 if len(parts) > 1 else NO_RANK
            elif kind == Kind.INSTRUMENT:
                rank = 0
                if i == 0:
                    first_instrument[token] = value
            if i == 0:
                first[token] = rank
    rooms = {Kind.NOTE: 1, Kind.DRUM: 1, Kind.VELOCITY: 1, Kind.INSTRUMENT: _SPAN - 1, Kind.BAR: 1}
    rooms[Kind.POSITION] = _REST - 1
    for kind, number in rooms.items():
        room[: len(kinds)][kinds == kind] = number
    return _Tables(first, last, first_instrument, vocabulary.named_instruments, room)


def token_of(
    token_class: Integer[Array, "B Q n"],
    pitch: Int[Array, "B Q n"],
    instrument: Int[Array, "B Q"],
    vocabulary: Vocabulary,
) -> Int[Array, "B Q n"]:
    """The token of a transposition class at a pitch; NO_TOKEN if there is none, or if it would be of another class.

    The drums' notes and those of other instruments share their tokens, but only the latter have a key.

    Args:
        pitch: 0 for a class without pitches.
        instrument: the one that plays.
    """
    tables = vocabulary.transposition
    exists = (token_class != EMPTY) & (pitch >= 0) & (pitch < tables.token.shape[1])
    token = jnp.where(exists, jnp.asarray(tables.token)[token_class, pitch], NO_TOKEN)
    drums = (instrument == vocab.DRUMS).astype(jnp.int32)[..., None]
    return jnp.where(jnp.asarray(tables.token_class)[drums, token] == token_class, token, NO_TOKEN)


def init_place(lanes: int) -> Place:
    return Place(*(jnp.full(lanes, x, jnp.int32) for x in (NO_INSTRUMENT, 0, NO_RANK, 0, 0)))


def moved(clock: Clock, context: Array, token: Array, time: Array, bar_start: Array) -> tuple[Array, Array]:
    """The time after tokens, and the start of its bar where tokens lead from bar to bar.

    Args:
        context, time, bar_start: before the tokens.
    """
    steps = jnp.asarray(clock.steps)[context, token]
    if not clock.from_bar.any():
        return time + steps, bar_start
    bar_start += jnp.asarray(clock.line)[context, token]
    return jnp.where(jnp.asarray(clock.from_bar)[token], bar_start, time) + steps, bar_start


def follow(
    place: Place,
    tokens: Int[Array, "B Q"],
    begins: Bool[Array, "B Q"],
    reads: Bool[Array, "B Q"],
    vocabulary: Vocabulary,
) -> tuple[Place, OfTokens]:
    """The place after the tokens, and the places of all.

    Args:
        begins: which tokens are the first of their song.
        reads: which are read; the others leave the place as it is.
    """
    tables, clock = jax.tree.map(jnp.asarray, _tables(vocabulary)), vocabulary.clock
    start = init_place(len(tokens))
    start = start._replace(context=start.context + clock.start_context, bar_start=start.bar_start + clock.start)

    def first_of(instrument: Array) -> Array:
        """The first rank of an instrument; without any, that of the first one."""
        return _SPAN * jnp.where(instrument == NO_INSTRUMENT, 0, instrument)

    def one_token(place: Place, xs: tuple[Array, Array, Array]) -> tuple[Place, OfTokens]:
        token, begins, reads = xs
        before = jax.tree.map(lambda new, old: jnp.where(begins, new, old), start, place)
        named, also_named = tables.first_instrument[token], tables.last_instrument[token]
        instrument = jnp.where(named == NO_INSTRUMENT, before.instrument, named)
        first, last = tables.first[token], tables.last[token]
        rank = jnp.where((first < 0) | (first == _REST), first, first + first_of(instrument))
        time, bar_start = moved(clock, before.context, token, before.time, before.bar_start)
        own_time, own_rank = before.time, before.rank
        if clock.arrives.any():
            led = moved(clock, before.context, jnp.asarray(clock.first)[token], before.time, before.bar_start)[0]
            own_time = jnp.where(jnp.asarray(clock.arrives)[token], led, own_time)
            own_rank = jnp.where(own_time > before.time, NO_RANK, own_rank)
        # Unisons have one rank; what is not in order gets that of the token before.
        rank = jnp.where(first == _CONTINUES, own_rank + 1, jnp.maximum(rank, own_rank))
        instrument_after = jnp.where(also_named == NO_INSTRUMENT, instrument, also_named)
        last = jnp.where(last < 0, last, last + first_of(instrument_after))
        rank_after = jnp.where(time > own_time, last, jnp.maximum(rank, last))
        context = jnp.asarray(clock.context)[token]
        if (clock.context == SAME_CONTEXT).any():
            context = jnp.where(context == SAME_CONTEXT, before.context, context)
        after = Place(instrument_after, time, rank_after, context, bar_start)
        after = jax.tree.map(lambda new, old: jnp.where(reads, new, old), after, place)
        return after, OfTokens(before.instrument, own_time, rank, after)

    place, of_tokens = jax.lax.scan(one_token, place, (tokens.T, begins.T, reads.T))
    return place, jax.tree.map(lambda x: x.T, of_tokens)


def _furthest(holds: Callable[[Array], Array], limit: Int[Array, "B Q d"], most: int) -> Int[Array, "B Q d"]:
    """The highest lag up to `limit` for which a condition holds that, once it does not, holds no more; 0 at least.

    Args:
        holds: of lags [B, Q, d, n].
        most: at least any limit.
    """
    # Halving would compare least, but while one token is read, each round takes as long as starting it does.
    branches = math.ceil((most + 1) ** (1 / _ROUNDS))
    lag = jnp.zeros_like(limit)
    for spacing in (branches**i for i in reversed(range(_ROUNDS))):
        further = lag[..., None] + spacing * jnp.arange(1, branches)
        lag += spacing * jnp.sum((further <= limit[..., None]) & holds(further), -1)
    return lag


def find(
    past: Past,
    at_token: Int[Array, " Q"],
    of_tokens: OfTokens,
    tokens: Int[Array, "B Q"],
    within: Int[Array, "B Q"],
    vocabulary: Vocabulary,
) -> Found:
    """What came next at the same place DISTANCES bars before.

    Args:
        past: up to the last of the tokens, and perhaps room before it.
        at_token: where in it the tokens are.
        within: how many lags lead to tokens that are of the same song and still known.
    """
    lanes, queries = tokens.shape
    distances = jnp.asarray(DISTANCES)

    def at(x: Integer[Array, "B M"], lag: Int[Array, "B Q *d"]) -> Int[Array, "B Q *d"]:
        return look_back(x, at_token, lag)

    here, after = jnp.zeros((lanes, queries, 1), jnp.int32), of_tokens.after
    bar = at(past.bar, here)

    def bars_since(lag: Int[Array, "B Q d *n"]) -> Int[Array, "B Q d *n"]:
        since = bar.reshape(lanes, queries, *[1] * (lag.ndim - 2)) - at(past.bar, lag)
        return since.astype(jnp.int16)  # right also where bars have exceeded 16 bits

    limit = jnp.broadcast_to(within[..., None], (lanes, queries, len(DISTANCES)))
    most = past.bar.shape[1]
    first = _furthest(lambda lag: bars_since(lag) <= distances[:, None], limit, most)
    bar_start = at(past.time, first) - at(past.position, first)
    time = bar_start + at(past.position, here) + (after.time - of_tokens.time)[..., None]
    context = after.context[..., None]
    # Only the length of a rest that has begun may come next; where rests are single tokens, none is awaited.
    rests = jnp.asarray(vocabulary.awaits_rest)[context]
    rank = jnp.where(rests, _REST + 1, after.rank[..., None])

    def is_later(lag: Int[Array, "B Q d n"]) -> Bool[Array, "B Q d n"]:
        other, same = at(past.time, lag), time[..., None]
        return (other > same) | ((other == same) & (at(past.rank, lag) > rank[..., None]))

    following = _furthest(is_later, limit, most)
    token_class, next_time = at(past.token_class, following), at(past.time, following)
    token = token_of(token_class, jnp.maximum(at(past.pitch, following), 0), after.instrument, vocabulary)
    exists = (bars_since(first) == distances) & is_later(following[..., None])[..., 0] & (token_class != EMPTY)
    same_time = next_time == time
    room = jnp.asarray(_tables(vocabulary).room)[tokens][..., None]
    goes_on = same_time & (at(past.rank, following) <= rank + room)
    # Where nothing began, or nothing more, time passes up to what began next. A token that leads to a position in the
    # bar is right from wherever it is.
    if (longest := vocabulary.clock.rest.shape[1] - 1) >= 0:
        rest = jnp.asarray(vocabulary.clock.rest)[context, jnp.clip(next_time - time, 0, longest)]
        token = jnp.where(same_time & ~rests, token, rest)
    exists &= (token >= 0) & (rests | goes_on | (room == _ANY))
    return Found(jnp.where(exists, token, NO_TOKEN), following + 1, same_time)


def init_tracks(lanes: int) -> Tracks:
    shape = lanes, len(DISTANCES)
    return Tracks(jnp.full(shape, NO_TOKEN, jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def compare(
    tracks: Tracks,
    found: Int[Array, "B Q d"],
    tokens: Int[Array, "B Q"],
    pitched: Bool[Array, "B Q"],
    begins: Bool[Array, "B Q"],
    reads: Bool[Array, "B Q"],
) -> tuple[Tracks, Tracks]:
    """The tracks after the tokens, and after each of them [B, Q, d].

    Args:
        found: the tokens of `Found`.
        pitched: which tokens have a pitch.
        begins, reads: as in `follow`.
    """

    def one_token(tracks: Tracks, xs: tuple[Array, ...]) -> tuple[Tracks, Tracks]:
        found, *of_token = xs
        token, pitched, begins, reads = (x[:, None] for x in of_token)

        def after(score: Array) -> Array:
            agreed = jnp.where(tracks.token == token, jnp.minimum(score + ONE, HIGHEST), score * KEPT >> 3)
            return jnp.where(begins, 0, agreed)

        pitch_score = jnp.where(pitched | begins, after(tracks.pitch_score), tracks.pitch_score)
        new = Tracks(found, after(tracks.score), pitch_score)
        new = jax.tree.map(lambda new, old: jnp.where(reads, new, old), new, tracks)
        return new, new

    xs = jnp.moveaxis(found, 1, 0), tokens.T, pitched.T, begins.T, reads.T
    tracks, after = jax.lax.scan(one_token, tracks, xs)
    return tracks, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), after)
