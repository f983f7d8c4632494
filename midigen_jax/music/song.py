"""A song on the grid, and its tokens."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..kernels import encode, merges, meter, score
from ..miditok_vocab import MidiTokVocabulary
from ..vocab import Kind, Scheme, Vocabulary
from . import miditok

PITCHES = 128


class Song(NamedTuple):
    """A song on the grid. Times and durations are in grid steps."""

    notes: np.ndarray  # int32 [N, 5]: onset, duration, pitch, part, velocity (`score.quantize`)
    bars: np.ndarray  # int64 [n, 3]: start, length of its bars, number of its first bar (`meter.meter_map`)
    meters: np.ndarray  # int32 [n, 3]: time, numerator, denominator
    tempos: np.ndarray  # int32 [n, 2]: time, microseconds per quarter note
    scheme: Scheme

    @property
    def end(self) -> int:
        """The time at which the last note ends."""
        return int((self.notes[:, 0] + self.notes[:, 1]).max()) if len(self.notes) else 0

    def bar_start(self, bar: int) -> int:
        """The time at which a bar begins, counted from 0; the last meter has no end."""
        start, length, first_bar = self.bars[np.searchsorted(self.bars[:, 2], bar, side="right") - 1]
        return int(start + (bar - first_bar) * length)

    def bar_of(self, time: int) -> int:
        """The number of the bar at a time, counted from 0."""
        return int(meter.bar_positions(np.array([time]), self.bars)[0][0])

    def seconds_at(self, time: int) -> float:
        """The second at which a time sounds, at the song's tempos."""
        return float(meter.seconds_at(time, self.tempos, self.scheme.steps_per_beat))

    def time_at(self, seconds: float) -> int:
        """The first time that sounds at this second or later."""
        tempos = np.vstack([[[0, meter.DEFAULT_TEMPO]], self.tempos])
        starts = [self.seconds_at(int(time)) for time in tempos[:, 0]]
        i = max(int(np.searchsorted(starts, seconds, side="right")) - 1, 0)
        time, per_quarter = tempos[i].tolist()
        per_step = per_quarter / self.scheme.steps_per_beat / 1e6
        return time + int(np.ceil(round((seconds - self.seconds_at(time)) / per_step, 6)))

    def bar_lines(self, until: int) -> np.ndarray:
        """The times at which bars begin, up to and including `until`."""
        meters = self.bars[self.bars[:, 0] <= until]
        ends = [*meters[1:, 0], until + 1]
        lines = [np.arange(start, end, length) for (start, length, _), end in zip(meters, ends, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *lines])


def make_song(notes: np.ndarray, meters: np.ndarray, tempos: np.ndarray, scheme: Scheme) -> Song:
    """A song from notes, meters and tempos on the grid."""
    counted = meters[:0] if scheme.faithful else meters  # faithful mode has only bars of four beats
    return Song(notes, meter.meter_map(counted, scheme.steps_per_beat), meters, tempos, scheme)


def new_song(scheme: Scheme) -> Song:
    """An empty song in 4/4 at 120 beats per minute."""
    meters = np.array([[0, meter.BEATS_PER_BAR, 4]], np.int32)
    tempos = np.array([[0, meter.DEFAULT_TEMPO]], np.int32)
    return make_song(np.empty((0, score.COLUMNS), np.int32), meters, tempos, scheme)


class Prompt(NamedTuple):
    """The beginning of a song, to be continued."""

    song: Song
    end: int  # the time at which the continuation begins
    context: Song | None = None  # another song, which the memories hold as if it came before this one


def cut(song: Song, bars: int) -> Prompt:
    """The song's first bars as a prompt.

    It has the notes that begin in these bars, and the meters and tempos up to their end; a meter that begins there
    applies to the continuation. A shorter song ends with the bar in which its last note begins.

    Raises:
        InputError: no note begins in these bars.
    """
    bars = min(bars, song.bar_of(song.end) + 1)  # any number may be given
    notes = song.notes[song.notes[:, 0] < song.bar_start(max(bars, 0))]
    if len(notes) == 0:
        raise InputError(f"no note begins in the prompt's first {bars} bars; give more bars")
    last_bar = song.bar_of(int(notes[-1, 0]))
    end = song.bar_start(min(bars, last_bar + 1))
    kept = {name: getattr(song, name) for name in ("bars", "meters", "tempos")}
    return Prompt(song._replace(notes=notes, **{name: rows[rows[:, 0] <= end] for name, rows in kept.items()}), end)


def excerpt(song: Song, bar: int, bars: int) -> Song:
    """`bars` bars from number `bar` on, as a song that begins at time 0.

    Notes that began earlier are left out; notes that last longer are shortened.
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


class TokenSequence(NamedTuple):
    """A song as a model reads it: uint16 [n] each, from sos to eos."""

    tokens: np.ndarray
    bar: np.ndarray  # the bar in which each token's event begins
    position: np.ndarray  # and its position in the bar, in grid steps


def tokens_of(song: Song, vocabulary: Vocabulary) -> TokenSequence:
    """A song's tokens, as in a corpus.

    Raises:
        InputError: the tokens are MidiTok's, which is not installed.
    """
    if isinstance(vocabulary, MidiTokVocabulary):
        tokens = miditok.tokens_of_notes(song.notes, song.meters, vocabulary)
        bar, position = miditok.places_of(tokens, song.bars, vocabulary)
        return with_merges(TokenSequence(tokens, bar, position), vocabulary)
    tokens, bar, position = encode.encode_grid(song.notes, song.bars, song.scheme)
    return with_merges(TokenSequence(tokens, bar, position), vocabulary)


@lru_cache(maxsize=4)
def _trie(vocabulary: Vocabulary) -> merges.Trie:
    return merges.table(*vocabulary.expansions)


def with_merges(song: TokenSequence, vocabulary: Vocabulary) -> TokenSequence:
    """A song of base tokens, with the merges that the vocabulary has."""
    if not vocabulary.merges:
        return song
    if isinstance(vocabulary, MidiTokVocabulary):
        tokens, starts = miditok.merge(song.tokens, vocabulary)
    else:
        tokens, starts = merges.merge(song.tokens, _trie(vocabulary), vocabulary.base_size)
    return TokenSequence(tokens, song.bar[starts], song.position[starts])


def notes_of(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The notes, int32 [N, 5], of any sequence of the vocabulary's tokens."""
    if isinstance(vocabulary, MidiTokVocabulary):
        return miditok.read(miditok.expand(tokens, vocabulary), vocabulary)[0]
    if vocabulary.merges:
        tokens = merges.expand(tokens, *vocabulary.expansions, vocabulary.scheme.size)
    return score.notes_from_tokens(tokens, vocabulary.scheme)


def pitched(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Which base tokens, of one song or several, are pitched notes, that is, not of drums: bool [n]."""
    if isinstance(vocabulary, MidiTokVocabulary):
        return vocabulary.kinds[tokens] == Kind.NOTE
    return score.pitched(tokens, vocabulary.scheme)


def transpose(tokens: np.ndarray, semitones: int, vocabulary: Vocabulary) -> np.ndarray:
    """A song's base tokens this many semitones higher, drums unchanged; empty if a note would leave the 128 pitches."""
    which = pitched(tokens, vocabulary)
    shifted = tokens.astype(int) + semitones * which
    notes = shifted[which] - vocabulary.note_0
    if notes.min(initial=0) < 0 or notes.max(initial=0) >= PITCHES:
        return tokens[:0]
    return shifted.astype(tokens.dtype)
