"""The vocabularies of MidiTok's tokenizers: what `vocab` says of this project's own tokens, of REMI and of TSD.

MidiTok itself (`music.miditok`) is needed only to encode music: a vocabulary holds the names of its tokens, such as
Pitch_60, and which type may follow which, and all tables follow from these. A song is `BOS`, MidiTok's tokens, `EOS`.

REMI (Huang and Yang 2020, "Pop Music Transformer") writes a bar as `Bar` and its meter, and before the notes of one
time their position in the bar. TSD (Fradet et al. 2023, "Byte pair encoding for symbolic music") writes the time that
passes between them. Times of both are in beats of the meter: in 6/8 an eighth has as many positions as a quarter in
3/4, so the grid has the steps of the shortest beat.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from . import vocab
from .vocab import FORBIDDEN, SAME_CONTEXT, STEPS_PER_BEAT, Clock, Kind, Scheme, Vocabulary

TOKENIZATIONS = {"REMI": {"Bar", "Position"}, "TSD": {"TimeShift"}}  # and the types of their tokens of time
SPECIAL = ("BOS_None", "EOS_None", "PAD_None")  # with the ids of `vocab.SOS`, `vocab.EOS` and `vocab.PAD`

KINDS = {
    "BOS": Kind.SPECIAL,
    "EOS": Kind.SPECIAL,
    "PAD": Kind.SPECIAL,
    "Bar": Kind.BAR,
    "Position": Kind.POSITION,
    "TimeShift": Kind.SHIFT,
    "TimeSig": Kind.METER,
    "Program": Kind.INSTRUMENT,
    "Pitch": Kind.NOTE,
    "PitchDrum": Kind.DRUM,
    "Velocity": Kind.VELOCITY,
    "Duration": Kind.DURATION,
}
_BEGIN, _END = "BOS", "EOS"  # the types before a song and after it
# What MidiTok never writes, though its graph of types allows it.
_ONLY_AFTER = {"TimeSig": ("Bar", _BEGIN), "EOS": ("Duration",)}
_ONLY_BEFORE = {
    _BEGIN: ("Bar", "TimeSig"),
    "Program": ("Pitch", "PitchDrum"),
    "Position": ("Pitch", "PitchDrum", "Program"),
    "TimeSig": ("Bar", "Position", "TimeShift", "Pitch", "PitchDrum", "Program"),
}


class Reading(NamedTuple):
    """What a kernel has to know of base tokens to read them (`kernels.miditok`)."""

    kinds: np.ndarray  # int8 [base]
    values: np.ndarray  # int32 [base]
    steps: np.ndarray  # int32 [meters, base]: of a duration or a time shift, or of a position from the bar's start
    bar_steps: np.ndarray  # int32 [meters]
    common_time: int  # the meter 4/4
    velocities: bool


@dataclass(frozen=True)
class MidiTokVocabulary(Vocabulary):
    """The tokens of a tokenizer of MidiTok.

    The scheme's steps are those of the finest grid. A merge is any run of tokens that byte-pair encoding found.
    """

    parameters: str = ""  # of the tokenizer, as MidiTok writes them (JSON, its keys in order)
    tokens: tuple[str, ...] = ()  # the names of the base tokens
    graph: tuple[tuple[str, tuple[str, ...]], ...] = ()  # of each type of token, those that may follow it

    @property
    def tokenization(self) -> str:
        return str(json.loads(self.parameters)["tokenization"])

    @property
    def base_size(self) -> int:
        return len(self.tokens)

    @property
    def note_0(self) -> int:
        return self.tokens.index("Pitch_0")

    @property
    def velocity_tokens(self) -> range:
        found = np.flatnonzero(self.kinds == Kind.VELOCITY)
        return range(int(found[0]), int(found[-1]) + 1) if len(found) else range(0)

    @property
    def rises(self) -> bool:
        return True

    @property
    def has_unisons(self) -> bool:
        return False

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (*self.tokens, *("+".join(self.tokens[part] for part in merge) for merge in self.merges))

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The type of each base token."""
        return tuple(token.split("_")[0] for token in self.tokens)

    @cached_property
    def kinds(self) -> np.ndarray:
        return np.array([KINDS[kind] for kind in self.types], np.int8)

    @cached_property
    def meters(self) -> tuple[tuple[int, int], ...]:
        """Numerator and denominator of each meter."""
        found = (token.split("_")[1] for token, kind in zip(self.tokens, self.types, strict=True) if kind == "TimeSig")
        return tuple((int(top), int(bottom)) for top, bottom in (meter.split("/") for meter in found))

    @cached_property
    def values(self) -> np.ndarray:
        """A pitch, a velocity, a position, the number of an instrument or of a meter; else the token."""
        values, meters = np.arange(self.base_size, dtype=np.int32), 0
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in ("Pitch", "PitchDrum", "Velocity", "Position"):
                values[i] = int(token.split("_")[1])
            elif kind == "Program":
                program = int(token.split("_")[1])
                values[i] = vocab.DRUMS if program < 0 else program
            elif kind == "TimeSig":
                values[i], meters = meters, meters + 1
        return values

    @cached_property
    def reading(self) -> Reading:
        beats = np.array([4 * self.scheme.steps_per_beat // bottom for _, bottom in self.meters])
        positions = max(bottom for _, bottom in self.meters) * beats // (4 * self.scheme.steps_per_beat)
        steps = np.zeros((len(self.meters), self.base_size), np.int32)
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in ("Duration", "TimeShift"):
                beat, part, parts = map(int, token.split("_")[1].split("."))
                steps[:, i] = (beat * parts + part) * beats // parts
            elif kind == "Position":
                steps[:, i] = int(token.split("_")[1]) * positions
        bar_steps = np.array([4 * self.scheme.steps_per_beat * top // bottom for top, bottom in self.meters], np.int32)
        common_time = self.meters.index((4, 4))
        return Reading(self.kinds, self.values, steps, bar_steps, common_time, self.scheme.velocities)

    @cached_property
    def _types_in_order(self) -> list[str]:
        """The types of which the grammar has states. Each has one for each meter."""
        return [_BEGIN, *(kind for kind in dict.fromkeys(self.types) if KINDS[kind] != Kind.SPECIAL), _END]

    @cached_property
    def _may_follow(self) -> np.ndarray:
        """Whether a type may follow another: bool [types, types]."""
        order, graph = self._types_in_order, dict(self.graph)
        found = np.zeros((len(order), len(order)), bool)
        for i, kind in enumerate(order):
            for j, following in enumerate(order):
                found[i, j] = (
                    following in graph.get(kind, ())
                    and kind in _ONLY_AFTER.get(following, (kind,))
                    and following in _ONLY_BEFORE.get(kind, (following,))
                )
        return found

    @cached_property
    def state_context(self) -> np.ndarray:
        return np.tile(np.arange(len(self.meters), dtype=np.int32), len(self._types_in_order))

    @property
    def awaits_rest(self) -> np.ndarray:
        return np.zeros(len(self.meters), bool)

    @cached_property
    def begins_bar(self) -> np.ndarray:
        """The states in which a bar has just begun: bool [states]."""
        begun = [kind in ("Bar", "TimeSig") for kind in self._types_in_order]
        return np.repeat(begun, len(self.meters)) & (self.tokenization == "REMI")

    @cached_property
    def grammar(self) -> tuple[np.ndarray, np.ndarray]:
        """The state that follows each token in each state, and the steps by which the token moves time on (`Clock`).

        A state is the type of the last token, for each meter; a token that would change the meter is forbidden.

        Returns:
            next_state: int16 [states, size], FORBIDDEN where the token may not come.
            steps: int32 [states, size].
        """
        order, n_meters, reading = self._types_in_order, len(self.meters), self.reading
        number = {kind: i for i, kind in enumerate(order)}
        number_of = np.array([number.get(kind, FORBIDDEN) for kind in self.types])
        meter = np.tile(np.arange(n_meters), len(order))
        # Of each base token, in each state: whether it may come, and the state after it.
        after = np.full((len(order) * n_meters, self.base_size), FORBIDDEN, np.int16)
        for part in np.flatnonzero(number_of >= 0).tolist():
            may = np.repeat(self._may_follow[:, number_of[part]], n_meters)
            if self.kinds[part] == Kind.METER:
                may &= meter == self.values[part]
            elif self.kinds[part] == Kind.POSITION:
                may &= reading.steps[meter, part] < reading.bar_steps[meter]
            after[may, part] = number_of[part] * n_meters + meter[may]
        next_state = np.full((len(after), self.size), FORBIDDEN, np.int16)
        for token, parts in enumerate(self.base_tokens):
            state = np.arange(len(after))
            for part in parts:
                state = np.where(state >= 0, after[state, part], FORBIDDEN)
            next_state[:, token] = state
        return next_state, self.clock.steps[self.state_context]

    @cached_property
    def waits(self) -> np.ndarray:
        passing = np.isin(self.kinds, (Kind.BAR, Kind.METER, Kind.SHIFT))
        waits = np.array([all(passing[part] for part in parts) for parts in self.base_tokens])
        return np.broadcast_to(waits, (len(self.state_context), self.size))

    @cached_property
    def clock(self) -> Clock:
        """The context is the meter."""
        reading, n_meters = self.reading, len(self.meters)
        context, from_bar = np.full(self.size, SAME_CONTEXT, np.int32), np.zeros(self.size, bool)
        line, steps = np.zeros((2, n_meters, self.size), np.int32)
        position = np.full((n_meters, self.size), -1, np.int32)
        for token, parts in enumerate(self.base_tokens):
            meter = np.arange(n_meters)  # after the parts so far, by the meter before them
            for part in parts:
                kind = self.kinds[part]
                if kind == Kind.BAR:
                    from_bar[token] = True
                    line[:, token] += reading.bar_steps[meter]
                    steps[:, token] = 0
                elif kind == Kind.POSITION:
                    if not from_bar[token]:
                        position[:, token] = reading.steps[meter, part]
                    from_bar[token] = True
                    steps[:, token] = reading.steps[meter, part]
                elif kind == Kind.SHIFT:
                    steps[:, token] += reading.steps[meter, part]
                elif kind == Kind.METER:
                    context[token] = self.values[part]
                    meter = np.full(n_meters, self.values[part])
        first = np.array([parts[0] for parts in self.base_tokens], np.int32)
        arrives = np.isin(self.kinds[first], (Kind.BAR, Kind.POSITION))
        start = -int(reading.bar_steps[reading.common_time]) if "Bar" in self.types else 0
        where = context, from_bar, line, steps, position, arrives, first
        return Clock(*where, start, reading.common_time, self._rests)

    @cached_property
    def _rests(self) -> np.ndarray:
        """The time shift with which MidiTok begins to let so many steps pass: the longest that is no longer."""
        shifts = np.flatnonzero(self.kinds == Kind.SHIFT)
        if len(shifts) == 0:
            return np.zeros((len(self.meters), 0), np.int32)
        steps = self.reading.steps[:, shifts]
        rests = np.full((len(self.meters), steps.max() + 1), -1, np.int32)
        for meter, of_meter in enumerate(steps):
            for n_steps, token in sorted(zip(of_meter.tolist(), shifts.tolist(), strict=True)):
                rests[meter, n_steps:] = token
        return rests

    def walk(self, tokens: np.ndarray) -> tuple[int, int, int]:
        clock, state_of = self.clock, {kind: i for i, kind in enumerate(self._types_in_order)}
        context, bar_start, time, next_time = clock.start_context, clock.start, 0, 0

        def moved(token: int) -> tuple[int, int]:
            start = bar_start + int(clock.line[context, token])
            return start, (start if clock.from_bar[token] else next_time) + int(clock.steps[context, token])

        for token in tokens[1:].tolist():
            _, arrived = moved(int(clock.first[token]))
            time = arrived if clock.arrives[token] else next_time
            bar_start, next_time = moved(token)
            context = context if clock.context[token] == SAME_CONTEXT else int(clock.context[token])
        last = _BEGIN if len(tokens) < 2 else self.types[self.base_tokens[tokens[-1]][-1]]
        return state_of[last] * len(self.meters) + context, time, next_time

    def to_json(self) -> dict[str, Any]:
        return {
            "miditok": json.loads(self.parameters),
            "scheme": self.scheme._asdict(),
            "tokens": list(self.tokens),
            "graph": {kind: list(following) for kind, following in self.graph},
            "merges": [list(merge) for merge in self.merges],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "MidiTokVocabulary":
        """Raises ValueError, KeyError or TypeError for values that are no vocabulary."""
        try:
            with np.errstate(all="raise"):
                return cls._checked(values)
        except (ArithmeticError, AttributeError, IndexError) as error:  # of crafted ones
            raise ValueError(str(error)) from None

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> "MidiTokVocabulary":
        scheme, parameters = Scheme(**values["scheme"]), values["miditok"]
        tokens = tuple(map(str, values["tokens"]))
        graph = tuple(
            (str(kind), tuple(map(str, following))) for kind, following in sorted(dict(values["graph"]).items())
        )
        merges = tuple(tuple(map(int, merge)) for merge in values["merges"])
        if parameters["tokenization"] not in TOKENIZATIONS:
            raise ValueError(f"MidiTok's {parameters['tokenization']}")
        types = {token.split("_")[0] for token in tokens}
        timing = {"Bar", "Position", "TimeShift"} & types
        if tokens[: len(SPECIAL)] != SPECIAL or len(set(tokens)) < len(tokens) or not types <= set(dict(graph)):
            raise ValueError("tokens that are not MidiTok's")
        if timing != TOKENIZATIONS[parameters["tokenization"]]:
            raise ValueError(f"tokens that are not those of {parameters['tokenization']}")
        if any(not len(SPECIAL) <= token < len(tokens) for merge in merges for token in merge) or () in merges:
            raise ValueError("a merge of unknown tokens")
        vocabulary = cls(scheme, merges, json.dumps(parameters, sort_keys=True), tokens, graph)
        finest = max(bottom for _, bottom in vocabulary.meters)
        if any(finest % bottom or top < 1 for top, bottom in vocabulary.meters):
            raise ValueError("meters of other beats")
        if 4 * scheme.steps_per_beat not in [steps * finest for steps in STEPS_PER_BEAT] or any(
            type(option) is not bool for option in scheme[1:]
        ):
            raise ValueError(f"an unknown {scheme}")
        notes = tokens[vocabulary.note_0 : vocabulary.note_0 + 128]
        if notes != tuple(f"Pitch_{pitch}" for pitch in range(128)):
            raise ValueError("pitches that are not in order")
        kinds, found, reading = vocabulary.kinds, vocabulary.values, vocabulary.reading
        few = np.isin(kinds, (Kind.NOTE, Kind.DRUM, Kind.VELOCITY))
        timed = np.isin(kinds, (Kind.DURATION, Kind.SHIFT))
        if (found < 0).any() or (found[few] > 127).any() or (found[kinds == Kind.INSTRUMENT] > vocab.DRUMS).any():
            raise ValueError("tokens with values that MidiTok's have not")
        if (reading.steps[:, timed] <= 0).any() or (reading.bar_steps <= 0).any():
            raise ValueError("tokens or meters without length")
        return vocabulary


def vocabulary_from_json(values: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a corpus or a model, of this project's own tokens or of MidiTok's.

    Raises:
        ValueError, KeyError or TypeError: the values are no vocabulary.
    """
    return (MidiTokVocabulary if "miditok" in values else Vocabulary).from_json(values)
