"""Token ids, their names, their grammar, and how far they move time on.

A song is `sos`, then events, then `eos`. An event is a rest (`sep`) or a note and its duration in steps of the grid;
the notes between two rests begin together. The first 389 ids are those of MIDIGen. Where instruments are kept apart,
a note that another instrument plays than the note before begins with an instrument token; where velocities are
kept, one stands between a note and its duration. What follows them are merges: a token for a run of whole events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

SOS, EOS, PAD, SEP = range(4)
NOTE_0 = 4
DURATION_0 = NOTE_0 + 128
MAX_DURATION = 256  # steps
INSTRUMENT_0 = DURATION_0 + MAX_DURATION + 1  # the 128 programs of General MIDI, then the drums
DRUMS = 128
N_INSTRUMENTS = DRUMS + 1
NO_INSTRUMENT = N_INSTRUMENTS  # where there are none, or before a song's first one
N_VELOCITIES = 32
VELOCITIES_PER_BIN = 128 // N_VELOCITIES

# States of the grammar: what has been written, hence what may come next.
START, START_REST, EVENT, REST, INSTRUMENT, NOTE, VELOCITY, END = range(8)
FORBIDDEN = -1

STEPS_PER_BEAT = (8, 12, 24)

# In arrays of lanes: the song of what belongs to none, and the target of a token that has none.
NO_SONG = NO_TARGET = -1


class Scheme(NamedTuple):
    """How a song's notes are written as base tokens. Kernels take it as it is."""

    steps_per_beat: int = 8  # of the grid of time; a beat is a quarter note
    multi: bool = False  # instruments are kept apart, drums among them; else all parts are one and drums are left out
    velocities: bool = False  # each note has one of 32 velocities
    faithful: bool = False  # the rules of MIDIGen, its defects included
    align_beats: bool = True  # find the beats and bars of files whose own bar lines are wrong (`kernels.beats`)

    @property
    def size(self) -> int:
        """Number of base tokens."""
        return velocity_0(self) + N_VELOCITIES * self.velocities


FAITHFUL = Scheme(faithful=True, align_beats=False)


def velocity_0(scheme: Scheme) -> int:
    """The first velocity token: after the instruments, where there are any."""
    return INSTRUMENT_0 + N_INSTRUMENTS * scheme.multi


class Transposition(NamedTuple):
    """How tokens sound in other keys. Tokens of one transposition class differ in key only.

    What a token means depends on whether the drums play before it (index 1) or not (index 0): drums have no key.
    """

    token_class: np.ndarray  # int32 [2, V]
    pitch: np.ndarray  # int32 [2, V], the lowest that can be transposed; -1 without any
    token: np.ndarray  # int32 [classes, 128], by its class and pitch; that of pitch 0 without any. -1: there is none


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a corpus and of the models trained on it."""

    scheme: Scheme = field(default_factory=Scheme)
    merges: tuple[tuple[int, ...], ...] = ()  # the base tokens of each merged token, whole events all

    @property
    def size(self) -> int:
        return self.scheme.size + len(self.merges)

    @cached_property
    def base_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The base tokens of every token."""
        return (*((token,) for token in range(self.scheme.size)), *self.merges)

    @cached_property
    def names(self) -> tuple[str, ...]:
        names = ["sos", "eos", "pad", "sep"]
        names += [f"n{pitch}" for pitch in range(128)]
        names += [f"d{steps}" for steps in range(MAX_DURATION + 1)]
        if self.scheme.multi:
            names += [*(f"i{program}" for program in range(128)), "drums"]
        if self.scheme.velocities:
            names += [f"v{velocity}" for velocity in range(N_VELOCITIES)]
        names += ["+".join(names[token] for token in merge) for merge in self.merges]
        return tuple(names)

    @cached_property
    def grammar(self) -> tuple[np.ndarray, np.ndarray]:
        """The state that follows each token in each state, and the steps by which the token moves time on.

        Returns:
            next_state: int8 [8, size], FORBIDDEN where the token may not come.
            steps: int32 [8, size]. Only the duration of a rest, and a merge that holds one, moves time on.
        """
        scheme = self.scheme
        next_state = np.full((END + 1, self.size), FORBIDDEN, np.int8)
        steps = np.zeros((END + 1, self.size), np.int32)
        notes = slice(NOTE_0, DURATION_0)
        durations = slice(DURATION_0 + 1, INSTRUMENT_0)  # an event lasts at least one step, so d0 never occurs
        instruments = slice(INSTRUMENT_0, velocity_0(scheme))
        velocities = slice(velocity_0(scheme), scheme.size)
        # Until its first note a song with instruments has none, so that this note needs one.
        for state, rest in ((START, START_REST), (EVENT, REST)):
            next_state[state, SEP] = rest
            next_state[rest, durations] = state
            steps[rest, durations] = np.arange(1, MAX_DURATION + 1)
            next_state[state, instruments] = INSTRUMENT
            if state == EVENT or not scheme.multi:
                next_state[state, notes] = NOTE
        next_state[EVENT, EOS] = END
        next_state[INSTRUMENT, notes] = NOTE
        if scheme.velocities:
            next_state[NOTE, velocities] = VELOCITY
        next_state[VELOCITY if scheme.velocities else NOTE, durations] = EVENT
        for token, merge in enumerate(self.merges, scheme.size):
            for first in (START, EVENT):
                state, passed = first, 0
                for part in merge:
                    if state != FORBIDDEN:
                        passed += int(steps[state, part])
                        state = int(next_state[state, part])
                if state != FORBIDDEN:
                    next_state[first, token], steps[first, token] = state, passed
        return next_state, steps

    @cached_property
    def named_instruments(self) -> np.ndarray:
        """The last instrument that each token names, NO_INSTRUMENT where it names none: int32 [size]."""
        named = np.full(self.size, NO_INSTRUMENT, np.int32)
        if self.scheme.multi:
            for token, parts in enumerate(self.base_tokens):
                for part in parts:
                    if INSTRUMENT_0 <= part < velocity_0(self.scheme):
                        named[token] = part - INSTRUMENT_0
        return named

    @cached_property
    def first_pitch(self) -> np.ndarray:
        """The pitch of each token's first note, of drums too; 0 for tokens without a note: int32 [size]."""
        first = np.zeros(self.size, np.int32)
        for token, parts in enumerate(self.base_tokens):
            first[token] = next((part - NOTE_0 for part in parts if NOTE_0 <= part < DURATION_0), 0)
        return first

    @cached_property
    def begins_with_note(self) -> np.ndarray:
        """Tokens with which a song can begin whose first event is a note: bool [size]."""
        next_state, _ = self.grammar
        first = np.array([parts[0] for parts in self.base_tokens])
        return (next_state[START] >= 0) & (first != SEP)

    @cached_property
    def transposition(self) -> Transposition:
        token_class, pitch = np.zeros((2, 2, self.size), np.int32)
        classes: dict[tuple, int] = {}
        tokens: list[np.ndarray] = []  # of each class, by pitch
        for drums_before in (0, 1):
            for token, parts in enumerate(self.base_tokens):
                drums, notes = bool(drums_before), []
                for part in parts:
                    if self.scheme.multi and INSTRUMENT_0 <= part < velocity_0(self.scheme):
                        drums = part == INSTRUMENT_0 + DRUMS
                    notes.append(NOTE_0 <= part < DURATION_0 and not drums)
                lowest = min((part - NOTE_0 for part, note in zip(parts, notes, strict=True) if note), default=-1)
                relative = tuple(
                    (note, part - lowest if note else part) for part, note in zip(parts, notes, strict=True)
                )
                i = classes.setdefault(relative, len(classes))
                if i == len(tokens):
                    tokens.append(np.full(DURATION_0 - NOTE_0, -1, np.int32))
                tokens[i][max(lowest, 0)] = token
                token_class[drums_before, token], pitch[drums_before, token] = i, lowest
        return Transposition(token_class, pitch, np.stack(tokens))

    @cached_property
    def expansions(self) -> tuple[np.ndarray, np.ndarray]:
        """The base tokens of all merges, uint16 one after the other, and where each begins, int64 [merges + 1]."""
        flat = np.array([token for merge in self.merges for token in merge], np.uint16)
        return flat, np.cumsum([0, *map(len, self.merges)], dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        return {**self.scheme._asdict(), "merges": [list(merge) for merge in self.merges]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Vocabulary":
        """Raises ValueError, KeyError or TypeError for values that are no vocabulary."""
        fields = dict(values)
        merges = tuple(tuple(map(int, merge)) for merge in fields.pop("merges"))
        scheme = Scheme(**fields)
        if scheme.steps_per_beat not in STEPS_PER_BEAT or any(type(option) is not bool for option in scheme[1:]):
            raise ValueError(f"an unknown {scheme}")
        if any(not 0 <= token < scheme.size for merge in merges for token in merge):
            raise ValueError("a merge of unknown tokens")
        vocabulary = cls(scheme, merges)
        if (vocabulary.grammar[0][EVENT, scheme.size :] != EVENT).any():
            raise ValueError("a merge that is no run of whole events")
        return vocabulary


def from_expansions(scheme: Scheme, flat: np.ndarray, offsets: Sequence[int]) -> Vocabulary:
    """The vocabulary of merges as `Vocabulary.expansions` gives them."""
    bounds = pairwise(offsets)
    return Vocabulary(scheme, tuple(tuple(flat[begin:end].tolist()) for begin, end in bounds))
