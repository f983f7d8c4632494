"""Token ids, their names, their grammar, and how far they move time on.

A song is `sos`, then events, then `eos`. An event is a rest (`sep`) or a note and its duration in steps of the grid;
the notes between two rests begin together. The first 389 ids are those of MIDIGen. Where instruments are kept apart,
a note that another instrument plays than the note before begins with an instrument token; where velocities are
kept, one stands between a note and its duration. What follows them are merges: a token for a run of whole events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
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


class Kind(IntEnum):
    """What a base token says. This project's own have the first seven kinds, MidiTok's (`miditok_vocab`) no rest."""

    SPECIAL = 0  # sos, eos and pad
    REST = 1  # that a rest begins, whose duration follows
    NOTE = 2  # a pitch
    DURATION = 3
    INSTRUMENT = 4
    VELOCITY = 5
    DRUM = 6  # a drum, where drums have tokens of their own
    SHIFT = 7  # that so many steps pass
    BAR = 8  # that the next bar begins
    POSITION = 9  # what begins at this position in the bar
    METER = 10


SOUNDS = (Kind.NOTE, Kind.DRUM)

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


class Clock(NamedTuple):
    """How tokens move time on, which may depend on a context C: what went before.

    The context of this project's own tokens is whether a rest has begun, so that a duration is the rest's; that of
    MidiTok's is the meter.
    """

    context: np.ndarray  # int32 [V], after each token; SAME_CONTEXT where it stays as it was
    from_bar: np.ndarray  # bool [V], whether the token leads to a time in a bar; else so many steps on
    line: np.ndarray  # int32 [C, V], from the bar's start to the start of the bar that the token leads to
    steps: np.ndarray  # int32 [C, V], from there on, or from the time before the token
    position: np.ndarray  # int32 [C, V], to which the token leads in the bar that runs; -1 of others
    arrives: np.ndarray  # bool [V], whether the token is at the time to which its first part leads; else before it
    first: np.ndarray  # int32 [V], the first base token of each token
    start: int  # the bar's start before a song begins
    start_context: int
    rest: np.ndarray  # int32 [C, K], the token with which so many steps begin to pass, if nothing else does; or -1


SAME_CONTEXT = -1


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a corpus and of the models trained on it.

    All that the model, the sampler and the evaluation have to know of a token is in the tables below.
    """

    scheme: Scheme = field(default_factory=Scheme)
    merges: tuple[tuple[int, ...], ...] = ()  # the base tokens of each merged token, whole events all

    @property
    def base_size(self) -> int:
        """Number of base tokens."""
        return self.scheme.size

    @property
    def size(self) -> int:
        return self.base_size + len(self.merges)

    @property
    def note_0(self) -> int:
        """The note of pitch 0; those of the other 127 pitches follow."""
        return NOTE_0

    @property
    def velocity_tokens(self) -> range:
        return range(velocity_0(self.scheme), self.base_size)

    @property
    def rises(self) -> bool:
        """Whether the notes of one time and instrument go from the lowest up; else from the highest down."""
        return False

    @property
    def has_unisons(self) -> bool:
        """Whether a pitch may occur several times at one time, in several parts."""
        return not self.scheme.multi

    @cached_property
    def kinds(self) -> np.ndarray:
        """The `Kind` of each base token: int8 [base_size]."""
        kinds = np.full(self.base_size, Kind.SPECIAL, np.int8)
        kinds[SEP] = Kind.REST
        kinds[NOTE_0:DURATION_0] = Kind.NOTE
        kinds[DURATION_0:INSTRUMENT_0] = Kind.DURATION
        kinds[INSTRUMENT_0 : velocity_0(self.scheme)] = Kind.INSTRUMENT
        kinds[velocity_0(self.scheme) :] = Kind.VELOCITY
        return kinds

    @cached_property
    def values(self) -> np.ndarray:
        """What each base token says: a pitch, the number of an instrument, and so on. int32 [base_size]"""
        first = {Kind.NOTE: NOTE_0, Kind.DURATION: DURATION_0, Kind.INSTRUMENT: INSTRUMENT_0}
        first |= {Kind.VELOCITY: velocity_0(self.scheme)}
        return np.array([token - first.get(Kind(kind), token) for token, kind in enumerate(self.kinds)], np.int32)

    @cached_property
    def base_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The base tokens of every token."""
        return (*((token,) for token in range(self.base_size)), *self.merges)

    def part(self, token: int) -> tuple[Kind, int]:
        """The kind and the value of a base token."""
        return Kind(self.kinds[token]), int(self.values[token])

    def parts(self, token: int) -> list[tuple[Kind, int]]:
        """The kinds and values of a token's base tokens."""
        return [self.part(part) for part in self.base_tokens[token]]

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
    def state_context(self) -> np.ndarray:
        """The context (`Clock`) of each state of the grammar: int32 [states]."""
        return np.isin(np.arange(END + 1), (START_REST, REST)).astype(np.int32)

    @property
    def begins_bar(self) -> np.ndarray:
        """The states in which a bar has just begun by a token: bool [states]."""
        return np.zeros(END + 1, bool)

    @property
    def awaits_rest(self) -> np.ndarray:
        """The contexts (`Clock`) in which the length of a rest comes next: bool [C]."""
        return np.array([False, True])

    @cached_property
    def waits(self) -> np.ndarray:
        """Where a token belongs to a rest that may go on after it: bool [states, size]."""
        waits = np.zeros((END + 1, self.size), bool)
        waits[[START, EVENT], SEP] = waits[[START_REST, REST], DURATION_0 + MAX_DURATION] = True
        return waits

    @cached_property
    def clock(self) -> Clock:
        _, steps = self.grammar
        rest = np.full((2, MAX_DURATION + 1), SEP)
        rest[1] = DURATION_0 + np.arange(MAX_DURATION + 1)
        tokens = np.arange(self.size)
        never, steps = np.zeros(self.size, bool), steps[[EVENT, REST]]
        return Clock(
            (tokens == SEP).astype(np.int32),
            never,
            np.zeros_like(steps),
            steps,
            np.full_like(steps, -1),
            never,
            np.array([parts[0] for parts in self.base_tokens], np.int32),
            0,
            0,
            rest.astype(np.int32),
        )

    def walk(self, tokens: np.ndarray) -> tuple[int, int, int]:
        """The grammar's state after a song's first tokens, the time of the last of them, and that of the next token."""
        next_state, steps = self.grammar
        state = time = next_time = 0
        for token in tokens[1:].tolist():
            time, next_time = next_time, next_time + int(steps[state, token])
            state = int(next_state[state, token])
        return state, time, next_time

    @cached_property
    def named_instruments(self) -> np.ndarray:
        """The last instrument that each token names, NO_INSTRUMENT where it names none: int32 [size]."""
        named = np.full(self.size, NO_INSTRUMENT, np.int32)
        for token in range(self.size):
            for kind, value in self.parts(token):
                if kind == Kind.INSTRUMENT:
                    named[token] = value
        return named

    @cached_property
    def first_pitch(self) -> np.ndarray:
        """The pitch of each token's first note, of drums too; 0 for tokens without a note: int32 [size]."""
        first = np.zeros(self.size, np.int32)
        for token in range(self.size):
            first[token] = next((value for kind, value in self.parts(token) if kind in SOUNDS), 0)
        return first

    @cached_property
    def passes_time_first(self) -> np.ndarray:
        """Tokens before whose first note time passes: bool [size]."""
        return np.isin(self.kinds[self.clock.first], (Kind.REST, Kind.SHIFT, Kind.BAR))

    @cached_property
    def transposition(self) -> Transposition:
        token_class, pitch = np.zeros((2, 2, self.size), np.int32)
        classes: dict[tuple, int] = {}
        tokens: list[np.ndarray] = []  # of each class, by pitch
        for drums_before in (0, 1):
            for token, base in enumerate(self.base_tokens):
                drums, notes, parts = bool(drums_before), [], self.parts(token)
                for kind, value in parts:
                    if kind == Kind.INSTRUMENT:
                        drums = value == DRUMS
                    notes.append(kind == Kind.NOTE and not drums)
                lowest = min((value for (_, value), note in zip(parts, notes, strict=True) if note), default=-1)
                relative = tuple(
                    (note, value - lowest if note else part)
                    for part, (_, value), note in zip(base, parts, notes, strict=True)
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
