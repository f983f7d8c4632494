"""A song on the grid, and its tokens."""

import re
from typing import NamedTuple

import numpy as np

from . import vocab
from .cli import InputError
from .kernels import encode, merges, meter, score
from .vocab import Scheme, Vocabulary


class Song(NamedTuple):
    """A song on the grid. Times are in steps."""

    notes: np.ndarray  # int32 [N, 5]: onset, duration, pitch, part, velocity (`score.quantize`)
    bars: np.ndarray  # int64 [n, 3]: first step, steps a bar, number of the first bar (`meter.meter_map`)
    meters: np.ndarray  # int32 [n, 3]: step, numerator, denominator
    tempos: np.ndarray  # int32 [n, 2]: step, microseconds per quarter note
    scheme: Scheme

    @property
    def n_steps(self) -> int:
        """Steps from the start to the last note's end."""
        return int((self.notes[:, 0] + self.notes[:, 1]).max()) if len(self.notes) else 0

    def bar_start(self, bar: int) -> int:
        """The step at which a bar begins, counted from 0; the last meter goes on for ever."""
        first_step, length, first_bar = self.bars[np.searchsorted(self.bars[:, 2], bar, side="right") - 1]
        return int(first_step + (bar - first_bar) * length)

    def bar_of(self, step: int) -> int:
        """The bar in which a step lies, counted from 0."""
        return int(meter.bar_positions(np.array([step]), self.bars)[0][0])

    def seconds_at(self, step: int) -> float:
        """When a step sounds, at the song's tempos."""
        return float(meter.seconds_at(step, self.tempos, self.scheme.steps_per_beat))

    def step_at(self, seconds: float) -> int:
        """The first step that sounds at this time or later."""
        tempos = np.vstack([[[0, meter.DEFAULT_TEMPO]], self.tempos])
        starts = [self.seconds_at(int(step)) for step in tempos[:, 0]]
        i = max(int(np.searchsorted(starts, seconds, side="right")) - 1, 0)
        step, per_quarter = tempos[i].tolist()
        per_step = per_quarter / self.scheme.steps_per_beat / 1e6
        return step + int(np.ceil(round((seconds - self.seconds_at(step)) / per_step, 6)))

    def bar_lines(self, until: int) -> np.ndarray:
        """The steps at which bars begin, up to and including `until`."""
        ends = [*self.bars[1:, 0], until + 1]
        return np.concatenate(
            [np.arange(start, end, length) for (start, length, _), end in zip(self.bars, ends, strict=True)]
        )


_PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 8, 9, 10, 11),
}


def _pitch_class(name: str) -> int | None:
    """0 for C; None for what is no name of a pitch class."""
    letter, accidentals = name[:1].upper(), name[1:].replace("♯", "#").replace("♭", "b")
    if letter not in _PITCH_CLASSES or accidentals.strip("#b"):
        return None
    return (_PITCH_CLASSES[letter] + accidentals.count("#") - accidentals.count("b")) % 12


def parse_pitch(text: str) -> int:
    """A MIDI number, or a name such as C4 (60), F#3 or Bb-1.

    Raises:
        InputError: it is neither.
    """
    number = int(text) if text.isdecimal() else -1
    if found := re.fullmatch(r"([A-Ga-g][#b♯♭]*)(-?\d)", text):
        pitch_class = _pitch_class(found[1])
        assert pitch_class is not None
        number = 12 * (int(found[2]) + 1) + pitch_class
    if not 0 <= number <= 127:
        raise InputError(f"{text}: no pitch; give a MIDI number from 0 to 127, or a name such as C4 or F#3")
    return number


def parse_key(text: str) -> tuple[int, ...]:
    """The pitch classes of a key such as "C major", "F# minor" (natural), "F# harmonic minor" or "F# melodic minor".

    Raises:
        InputError: it is no key.
    """
    tonic, _, mode = text.strip().partition(" ")
    pitch_class, steps = _pitch_class(tonic), _MODES.get(mode.strip().lower() or "major")
    if pitch_class is None or steps is None:
        raise InputError(f'{text}: no key; give one such as "C major" or "F# minor"')
    return tuple(sorted((pitch_class + step) % 12 for step in steps))


def parse_instruments(text: str) -> tuple[int, ...]:
    """Programs such as "0,32,drums".

    Raises:
        InputError: they are no programs.
    """
    programs = []
    for word in text.split(","):
        word = word.strip()
        if word != "drums" and not (word.isdecimal() and int(word) < vocab.DRUMS):
            raise InputError(f"{text}: give programs from 0 to 127, and drums, such as 0,32,drums")
        programs.append(vocab.DRUMS if word == "drums" else int(word))
    return tuple(programs)


def pitch_name(pitch: int) -> str:
    """A MIDI pitch's name: 60 is C4, 61 is C♯4."""
    octave, step = divmod(int(pitch), 12)
    return ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")[step] + str(octave - 1)


def make_song(notes: np.ndarray, meters: np.ndarray, tempos: np.ndarray, scheme: Scheme) -> Song:
    """A song of notes, meters and tempos on the grid."""
    counted = meters[:0] if scheme.faithful else meters  # the faithful mode has bars of four beats only
    return Song(notes, meter.meter_map(counted, scheme.steps_per_beat), meters, tempos, scheme)


def new_song(scheme: Scheme) -> Song:
    """An empty song in 4/4 at 120 beats a minute."""
    meters = np.array([[0, meter.BEATS_PER_BAR, 4]], np.int32)
    tempos = np.array([[0, meter.DEFAULT_TEMPO]], np.int32)
    return make_song(np.empty((0, 5), np.int32), meters, tempos, scheme)


class Prompt(NamedTuple):
    """The beginning of a song, to go on from."""

    song: Song
    end: int  # the step at which what is new begins
    heard: Song | None = None  # another song, which the memories hold as if this one went on from it


def cut(song: Song, bars: int) -> Prompt:
    """The song's first bars as a prompt.

    Kept are the notes that begin in these bars, and meters and tempos up to their end; a meter that begins there holds
    for what follows. A shorter song ends at the end of the bar in which its last note begins.

    Raises:
        InputError: no note begins in these bars.
    """
    bars = min(bars, song.bar_of(song.n_steps) + 1)  # any number may be given
    notes = song.notes[song.notes[:, 0] < song.bar_start(max(bars, 0))]
    if len(notes) == 0:
        raise InputError(f"no note begins in the prompt's first {bars} bars; give more of them")
    last_bar = song.bar_of(int(notes[-1, 0]))
    end = song.bar_start(min(bars, last_bar + 1))
    kept = {name: getattr(song, name) for name in ("bars", "meters", "tempos")}
    return Prompt(song._replace(notes=notes, **{name: rows[rows[:, 0] <= end] for name, rows in kept.items()}), end)


def stretch(song: Song, bar: int, bars: int) -> Song:
    """So many bars from one on, as a song of their own that begins at step 0.

    Notes that began before are left out, and those that go on after are cut.
    """
    start, end = song.bar_start(bar), song.bar_start(bar + bars)
    notes = song.notes[(song.notes[:, 0] >= start) & (song.notes[:, 0] < end)].copy()
    notes[:, 1] = np.minimum(notes[:, 1], end - notes[:, 0])
    notes[:, 0] -= start

    def moved(table: np.ndarray) -> np.ndarray:
        before = np.count_nonzero(table[:, 0] <= start)
        rows = table[max(before - 1, 0) : np.count_nonzero(table[:, 0] < end)].copy()
        rows[:, 0] = np.maximum(rows[:, 0] - start, 0)
        return rows

    return make_song(notes, moved(song.meters), moved(song.tempos), song.scheme)


class Tape(NamedTuple):
    """A song as a model reads it: uint16 [n] each, from sos to eos."""

    tokens: np.ndarray
    bar: np.ndarray  # that each token begins in
    step: np.ndarray  # within the bar


def tokens_of(song: Song, vocabulary: Vocabulary) -> Tape:
    """A song's tokens, as in a corpus."""
    tokens, bar, step = encode.encode_grid(song.notes, song.bars, song.scheme)
    if vocabulary.merges:
        trie = merges.table(*vocabulary.expansions)
        tokens, starts = merges.merge(tokens, trie, vocabulary.scheme.size)
        bar, step = bar[starts], step[starts]
    return Tape(tokens, bar, step)


def notes_of(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The notes, int32 [N, 5], that any stream of the vocabulary's tokens stands for."""
    if vocabulary.merges:
        tokens = merges.expand(tokens, *vocabulary.expansions, vocabulary.scheme.size)
    return score.notes_from_tokens(tokens, vocabulary.scheme)
