"""A song on the grid, and its tokens."""

from typing import NamedTuple

import numpy as np

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

    def bar_lines(self, until: int) -> np.ndarray:
        """The steps at which bars begin, up to and including `until`."""
        ends = [*self.bars[1:, 0], until + 1]
        return np.concatenate(
            [np.arange(start, end, length) for (start, length, _), end in zip(self.bars, ends, strict=True)]
        )


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


def tokens_of(song: Song, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, uint16 [n] from sos to eos, the bar that each begins in, and its step within the bar, as in a corpus."""
    tokens, bar, step = encode.encode_grid(song.notes, song.bars, song.scheme)
    if vocabulary.merges:
        trie = merges.table(*vocabulary.expansions)
        tokens, starts = merges.merge(tokens, trie, vocabulary.scheme.size)
        bar, step = bar[starts], step[starts]
    return tokens, bar, step


def notes_of(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The notes, int32 [N, 5], that any stream of the vocabulary's tokens stands for."""
    if vocabulary.merges:
        tokens = merges.expand(tokens, *vocabulary.expansions, vocabulary.scheme.size)
    return score.notes_from_tokens(tokens, vocabulary.scheme)
