"""A MIDI file in, a MIDI file out."""

import os
from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np

from .cli import InputError
from .kernels import score, smf

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
TICKS_PER_BEAT = 480
DEFAULT_TEMPO = 500_000  # microseconds per quarter note


class Song(NamedTuple):
    """A song on the grid. Times are in steps."""

    notes: np.ndarray  # int32 [N, 4]: onset, duration, pitch, part; ordered as tokens are
    bars: np.ndarray  # int64 [n, 3]: first step, steps a bar, number of the first bar (`score.meter_map`)
    meters: np.ndarray  # int64 [n, 3]: step, numerator, denominator
    tempos: np.ndarray  # int64 [n, 2]: step, microseconds per quarter note
    steps_per_beat: int

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


def new_song(steps_per_beat: int) -> Song:
    """An empty song in 4/4 at 120 beats a minute."""
    return Song(
        notes=np.empty((0, 4), np.int32),
        bars=np.array([[0, score.BEATS_PER_BAR * steps_per_beat, 0]]),
        meters=np.array([[0, score.BEATS_PER_BAR, 4]]),
        tempos=np.array([[0, DEFAULT_TEMPO]]),
        steps_per_beat=steps_per_beat,
    )


def read_song(path: Path, steps_per_beat: int) -> Song:
    """Reads a MIDI file onto the grid; drums are left out.

    Raises:
        InputError: the file can't be read, is no MIDI file, or holds no notes.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give the path of a MIDI file") from None
    code, division, notes, meters, tempos = smf.read_smf(data)
    if code != smf.OK:
        raise InputError(f"{path}: {smf.ERRORS[code]}; give a Standard MIDI File (.mid)")
    grid = score.quantize(notes, division, steps_per_beat)
    if len(grid) == 0:
        raise InputError(f"{path}: holds no notes (drums aside); give a MIDI file with a melody or chords")
    bars = score.meter_map(meters, division, steps_per_beat)
    for table in (meters, tempos):
        table[:, 0] = np.rint(table[:, 0] * steps_per_beat / division)
    return Song(grid, bars, meters, tempos, steps_per_beat)


def write_song(path: Path, song: Song) -> None:
    """Writes a song as a MIDI file of format 1: a track of tempos and meters, then tracks of piano notes.

    Notes of one pitch that sound together go to different tracks, so that reading the file gives the same notes.
    """
    ticks_per_step = TICKS_PER_BEAT // song.steps_per_beat
    conductor = [
        (
            int(step),
            mido.MetaMessage("time_signature", numerator=int(numerator), denominator=int(denominator)),
        )
        for step, numerator, denominator in song.meters
    ] + [(int(step), mido.MetaMessage("set_tempo", tempo=int(tempo))) for step, tempo in song.tempos]
    layers: list[list[tuple[int, mido.Message]]] = []
    busy_until: list[np.ndarray] = []
    for onset, duration, pitch, _ in song.notes.tolist():
        layer = next((i for i, busy in enumerate(busy_until) if busy[pitch] <= onset), len(layers))
        if layer == len(layers):
            layers.append([])
            busy_until.append(np.zeros(128, np.int64))
        busy_until[layer][pitch] = onset + duration
        channel = layer % 15 if layer % 15 < smf.DRUMS else layer % 15 + 1
        for step, kind in ((onset, "note_on"), (onset + duration, "note_off")):
            layers[layer].append((step, mido.Message(kind, channel=channel, note=pitch, velocity=80)))
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT)
    for events in (conductor, *layers):
        track = mido.MidiTrack()
        file.tracks.append(track)
        now = 0
        # A note's end goes before the next one's start on the same step.
        for step, message in sorted(events, key=lambda event: (event[0], event[1].type == "note_on")):
            track.append(message.copy(time=(step - now) * ticks_per_step))
            now = step
    temporary = path.with_name(path.name + ".tmp")
    file.save(temporary)
    os.replace(temporary, path)
