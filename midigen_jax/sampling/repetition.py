"""A logits processor against loops and silence: it notices while sampling that a row repeats itself.

Letters of shapes are those of `shapes`; B are rows. Times are in grid steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import vocab
from ..shapes import Array, Bool, Int
from ..vocab import Vocabulary
from .logits_processors import SettingArrays

LAGS = 512  # events (see `_events`) that are remembered: the longest loop
LOOP_PERIOD = 4  # bars: the longest loop
NO_EVENT = -1


class Repetition(NamedTuple):
    """The last events of each row, and how long each lag has repeated."""

    events: Int[Array, "B lags"]  # newest first
    time: Int[Array, "B lags"]  # of the events
    lasts: Int[Array, "B lags"]  # for how long events have equalled those this many events before; -1: they do not
    onset: Int[Array, " B"]  # of the last note


def _events(vocabulary: Vocabulary) -> np.ndarray:
    """The event that each token adds in each grammar state to the sequence that is searched for loops: int32 [8, V].

    Notes, instruments, the lengths of rests, and whole merges count; durations and velocities of notes do not, since a
    loop in which only these change still is one. NO_EVENT where a token adds none.
    """
    scheme, durations = vocabulary.scheme, slice(vocab.DURATION_0, vocab.INSTRUMENT_0)
    events = np.tile(np.arange(vocabulary.size, dtype=np.int32), (vocab.END + 1, 1))
    events[:, : vocab.NOTE_0] = NO_EVENT
    events[[vocab.NOTE, vocab.VELOCITY], durations] = NO_EVENT
    if scheme.velocities:
        events[:, vocab.velocity_0(scheme) : scheme.size] = NO_EVENT
    first: dict[tuple[int, ...], int] = {}
    for token, merge in enumerate(vocabulary.merges, scheme.size):
        state, kept = vocab.EVENT, []
        for part in merge:
            if events[state, part] != NO_EVENT:
                kept.append(part)
            state = int(vocabulary.grammar[0][state, part])
        events[:, token] = first.setdefault(tuple(kept), token)
    return events


def _holds_note(vocabulary: Vocabulary) -> np.ndarray:
    """Whether a token holds a note: bool [V]."""
    return np.array([any(vocab.NOTE_0 <= p < vocab.DURATION_0 for p in parts) for parts in vocabulary.base_tokens])


def init_repetition(time: Int[Array, " B"]) -> Repetition:
    times = jnp.repeat(time[:, None], LAGS, 1)
    return Repetition(jnp.full(times.shape, NO_EVENT, jnp.int32), times, jnp.full(times.shape, -1, jnp.int32), time + 0)


def update(
    repetition: Repetition,
    state: Int[Array, " B"],
    token: Int[Array, " B"],
    time: Int[Array, " B"],
    vocabulary: Vocabulary,
) -> Repetition:
    """The repetition state after a token.

    Args:
        state: of the grammar, before the token.
        time: of the token.
    """
    event = jnp.asarray(_events(vocabulary))[state, token]
    # On a mismatch half of the repetition still counts: a loop with one different note is still a loop.
    longer = jnp.where(repetition.lasts < 0, 0, repetition.lasts + (time[:, None] - repetition.time[:, :1]))
    shorter = jnp.where(repetition.lasts > 0, repetition.lasts // 2, -1)
    lasts = jnp.where(repetition.events == event[:, None], longer, shorter)
    events, times = (
        jnp.concatenate([new[:, None], old[:, :-1]], 1)
        for new, old in ((event, repetition.events), (time, repetition.time))
    )
    adds = (event != NO_EVENT)[:, None]
    onset = jnp.where(jnp.asarray(_holds_note(vocabulary))[token], time, repetition.onset)
    events, times, lasts = (
        jnp.where(adds, new, old)
        for new, old in ((events, repetition.events), (times, repetition.time), (lasts, repetition.lasts))
    )
    return Repetition(events, times, lasts, onset)


def repetition_mask(
    repetition: Repetition,
    state: Int[Array, " B"],
    time: Int[Array, " B"],
    bar: Int[Array, " B"],
    settings: SettingArrays,
    vocabulary: Vocabulary,
) -> Bool[Array, "B V"]:
    """The tokens that would make a loop or a silence too long.

    Args:
        state: of the grammar.
        time: of the token.
        bar: length of its bar.
    """
    longest = settings.loop_bars * bar
    period = time[:, None] - repetition.time
    lasts = repetition.lasts + (time[:, None] - repetition.time[:, :1])
    stuck = (repetition.lasts >= 0) & (period > 0) & (period <= LOOP_PERIOD * bar[:, None])
    stuck &= lasts + period > (longest - bar)[:, None]
    worst = jnp.argmax(jnp.where(stuck, lasts, -1), 1)[:, None]
    looping, event = (jnp.take_along_axis(x, worst, 1) for x in (stuck, repetition.events))
    expected = jnp.where(looping, event, NO_EVENT)
    repeats = (jnp.asarray(_events(vocabulary))[state] == expected) & (expected != NO_EVENT)
    left = (longest - (time - repetition.onset))[:, None]
    rest = jnp.maximum(jnp.asarray(vocabulary.grammar[1])[state], jnp.arange(vocabulary.size) == vocab.SEP)
    return (repeats | (rest > left)) & (settings.loop_bars > 0)
