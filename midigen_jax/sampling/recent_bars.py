"""Logits processors against loops, silence and too many notes, by what the last bars hold.

A loop is a passage in which each bar is like the one 1 to 4 bars before it, though a note or so may change: two bars
are alike if they are equally long and share at least ALIKE of the notes that either has (`music.loops`). Once a loop is
as long as it may be, the next bar may take over only MOST_SHARED of the notes of the bar that it would repeat.

Letters of shapes are those of `shapes`; B are rows. Times are in grid steps.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import vocab
from ..music.loops import ALIKE, MAX_PERIOD
from ..shapes import Array, Bool, Int, Integer
from ..vocab import SAME_CONTEXT, SOUNDS, Kind, Scheme, Vocabulary
from .logits_processors import SettingArrays, time_passed

MOST_SHARED = 0.6
BEATS = 12  # of a bar; positions in longer bars begin again from 0
NO_BAR = -2
KEPT = (1 << (MAX_PERIOD + 1)) - 1  # the bits of the current bar and of those before it


class RecentBars(NamedTuple):
    """What the current bar of each row holds, and the bars before it, as far as they were sampled."""

    bar: Int[Array, " B"]  # the current one
    notes: Integer[Array, "B positions 128"]  # bit i is set where a note begins in the bar i bars ago, by its pitch
    sizes: Int[Array, "B 5"]  # such notes in the bar i bars ago
    lengths: Int[Array, "B 5"]  # of these bars
    shared: Int[Array, "B 4"]  # notes that the current bar shares with the one 1 to 4 bars before
    alike: Int[Array, "B 4"]  # how many bars in a row, up to the last whole one, were like the one 1 to 4 bars before
    onset: Int[Array, " B"]  # of the last note


class _Notes(NamedTuple):
    """The notes of each token, n of them at most."""

    pitch: np.ndarray  # int32 [V, n]; -1 behind the last
    from_bar: np.ndarray  # bool [V, n], whether its onset counts from the bar's start; else from the token
    steps: np.ndarray  # int32 [C, V, n], to the onset, in each context of the `Clock`


@lru_cache(maxsize=8)
def _notes_of_tokens(vocabulary: Vocabulary) -> _Notes:
    clock, base = vocabulary.clock, vocabulary.base_tokens
    contexts = np.arange(len(clock.steps))
    found: list[list[tuple[int, bool, np.ndarray]]] = []
    for parts in base:
        notes, context, from_bar, line, steps = [], contexts, False, 0 * contexts, 0 * contexts
        for part, (kind, value) in zip(parts, map(vocabulary.part, parts), strict=True):
            if kind in SOUNDS:
                notes.append((value, from_bar, line + steps))
            from_bar |= bool(clock.from_bar[part])
            line = line + clock.line[context, part]
            steps = clock.steps[context, part] + (0 if clock.from_bar[part] else steps)
            if clock.context[part] != SAME_CONTEXT:
                context = np.full_like(contexts, clock.context[part])
        found.append(notes)
    most = max(map(len, found))
    nothing = -1, False, 0 * contexts
    padded = [note for notes in found for note in [*notes, *[nothing] * (most - len(notes))]]
    pitch, counted, onset = (np.array(column).reshape(len(base), most, -1) for column in zip(*padded, strict=True))
    return _Notes(pitch[..., 0].astype(np.int32), counted[..., 0], np.moveaxis(onset, 2, 0).astype(np.int32))


def holds_note(vocabulary: Vocabulary) -> np.ndarray:
    """Whether a token holds a note: bool [V]."""
    return _notes_of_tokens(vocabulary).pitch[:, 0] >= 0


@lru_cache(maxsize=8)
def _leads_to_note(vocabulary: Vocabulary) -> np.ndarray:
    """Whether a token holds a note, or one must follow before time passes: bool [V]."""
    last = np.array([vocabulary.kinds[parts[-1]] for parts in vocabulary.base_tokens])
    named = vocabulary.named_instruments != vocab.NO_INSTRUMENT
    return holds_note(vocabulary) | named | (last == Kind.POSITION)


def init_recent_bars(time: Int[Array, " B"], scheme: Scheme) -> RecentBars:
    """Nothing is known of the bars before `time`."""
    n = len(time)
    bars, earlier = (jnp.zeros((n, number), jnp.int32) for number in (MAX_PERIOD + 1, MAX_PERIOD))
    return RecentBars(
        bar=jnp.full(n, NO_BAR, jnp.int32),
        notes=jnp.zeros((n, BEATS * scheme.steps_per_beat, 128), jnp.uint8),
        sizes=bars,
        lengths=bars,
        shared=earlier,
        alike=earlier,
        onset=time + 0,
    )


def enter_bar(recent: RecentBars, bar: Int[Array, " B"], length: Int[Array, " B"]) -> RecentBars:
    """The state in the bar of the next token, which may be the current one.

    Args:
        bar, length: its number and its length.
    """
    passed = bar - recent.bar

    def enter(recent: RecentBars) -> RecentBars:
        ours, theirs = recent.sizes[:, :1], recent.sizes[:, 1:]
        either = ours + theirs - recent.shared
        alike = (recent.shared >= ALIKE * either) & (either > 0) & (recent.lengths[:, :1] == recent.lengths[:, 1:])
        # After a bar of silence everything begins anew.
        next_bar, same = (passed == 1)[:, None], (passed == 0)[:, None]
        shifted = (recent.notes << 1) & KEPT

        def later(old: Array, new: Array) -> Array:
            return jnp.where(same, old, jnp.where(next_bar, new, 0))

        return recent._replace(
            bar=bar,
            notes=jnp.where(same[:, None], recent.notes, jnp.where(next_bar[:, None], shifted, 0)),
            sizes=later(recent.sizes, jnp.pad(recent.sizes[:, :-1], ((0, 0), (1, 0)))),
            lengths=later(recent.lengths, jnp.pad(recent.lengths[:, :-1], ((0, 0), (1, 0)))).at[:, 0].set(length),
            shared=jnp.where(same, recent.shared, 0),
            alike=later(recent.alike, jnp.where(alike, recent.alike + 1, 0)),
        )

    return jax.lax.cond((passed != 0).any(), enter, lambda recent: recent, recent)


def update(
    recent: RecentBars,
    token: Int[Array, " B"],
    grammar: Int[Array, " B"],
    time: Int[Array, " B"],
    position: Int[Array, " B"],
    vocabulary: Vocabulary,
) -> RecentBars:
    """The state after a token.

    Args:
        grammar: its state before the token.
        time: before the token.
        position: of this time in the current bar.
    """
    notes_of = _notes_of_tokens(vocabulary)
    pitches = jnp.asarray(notes_of.pitch)[token]  # [B, n]
    at = jnp.asarray(notes_of.steps)[jnp.asarray(vocabulary.state_context)[grammar], token]
    at += jnp.where(jnp.asarray(notes_of.from_bar)[token], 0, position[:, None])
    inside = (pitches >= 0) & (at < recent.lengths[:, :1])  # what a merge writes into the next bar is not counted
    row, at = jnp.arange(len(token))[:, None], at % recent.notes.shape[1]
    bits = recent.notes[row, at, pitches]
    new = (inside & (bits & 1 == 0))[:, :, None]
    earlier = (bits[:, :, None] >> jnp.arange(1, MAX_PERIOD + 1, dtype=jnp.uint8)) & 1 == 1
    # Rows without a note write beyond the array, which is dropped.
    notes = recent.notes.at[row, jnp.where(inside, at, recent.notes.shape[1]), pitches].set(bits | 1, mode="drop")
    return recent._replace(
        notes=notes,
        sizes=recent.sizes.at[:, 0].add(new.sum((1, 2))),
        shared=recent.shared + (new & earlier).sum(1),
        onset=jnp.where(jnp.asarray(holds_note(vocabulary))[token], time, recent.onset),
    )


def excluded_tokens(
    recent: RecentBars,
    grammar: Int[Array, " B"],
    time: Int[Array, " B"],
    position: Int[Array, " B"],
    max_notes: Int[Array, " B"],
    settings: SettingArrays,
    vocabulary: Vocabulary,
) -> Bool[Array, "B V"]:
    """The tokens that would make a loop or a silence too long, or a bar too full.

    Args:
        recent: in the bar of the next token.
        grammar: its state.
        time, position: of the next token.
        max_notes: in a bar.
    """
    period = jnp.arange(1, MAX_PERIOD + 1)
    looping = recent.alike + period >= settings.loop_bars
    looping &= recent.shared + 1 > MOST_SHARED * recent.sizes[:, 1:]
    here = recent.notes[jnp.arange(len(time)), position % recent.notes.shape[1]]  # [B, 128]
    repeated = (here[:, :, None] >> period.astype(jnp.uint8)) & 1 == 1
    notes = _notes_of_tokens(vocabulary)
    begins_with_note = holds_note(vocabulary) & (notes.steps[0, :, 0] == 0) & ~notes.from_bar[:, 0]
    repeated = (repeated & looping[:, None]).any(2)[:, jnp.asarray(vocabulary.first_pitch)] & begins_with_note
    left = (settings.loop_bars * recent.lengths[:, 0] - (time - recent.onset))[:, None]
    begins_rest = np.pad(vocabulary.kinds == Kind.REST, (0, len(vocabulary.merges)))
    every = jnp.arange(vocabulary.size)
    rest = jnp.maximum(time_passed(grammar[:, None], every, position[:, None], vocabulary), begins_rest)
    full = (recent.sizes[:, 0] >= max_notes)[:, None] & _leads_to_note(vocabulary)
    return ((repeated | (rest > left)) & (settings.loop_bars > 0)) | full
