"""Music while it is sampled: MIDI files that grow, and a MIDI port that plays.

A file is written whole again and again under its name, so that at any moment it can be played as it is.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mido
import numpy as np

from . import vocab
from .cli import InputError
from .continuation import Continuation
from .kernels import smf
from .midi import write_song
from .playing import Playing
from .song import Song

END, START = range(2)  # the order of what happens at one time
SECONDS = 1.0  # between two versions of a file
PATIENCE = 0.1  # for so many seconds at most it doesn't look whether to stop
HEAD_START = 0.2  # seconds that a port waits for the first notes


def open_port(name: str) -> Any:
    """A MIDI port to play on.

    Raises:
        InputError: there is none of this name; the message names those that there are.
    """
    try:
        names = mido.get_output_names()
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"--port {name}: no MIDI ports can be reached ({error}); pip install python-rtmidi, or use --stream"
        ) from None
    if name not in names:
        found = ", ".join(names) or "none"
        raise InputError(f"--port {name}: no such MIDI port; there are: {found}")
    return mido.open_output(name, autoreset=True)  # no note hangs when it is closed, whatever was raised


def play(
    playing: Playing, stems: Sequence[Path], port: Any = None, *, stopping: Sequence[int] = ()
) -> list[Continuation]:
    """Writes songs as far as they are to stem.mid, and plays the first one's new notes.

    Args:
        stopping: as soon as there is something in it, this comes to its end.
    """
    vocabulary = playing.vocabulary
    for stem in stems:
        stem.parent.mkdir(parents=True, exist_ok=True)
    written = -SECONDS
    with port or contextlib.nullcontext():
        performer = Performer(port, playing.first[0]) if port else None
        for rows in playing:
            if stopping:
                playing.stop()
            if stems and time.monotonic() - written >= SECONDS:
                for stem, row in zip(stems, rows, strict=True):
                    write_song(stem.with_name(stem.name + ".mid"), row.song_so_far(vocabulary))
                written = time.monotonic()
            if performer:
                performer.hear(rows[0].song_so_far(vocabulary), rows[0].now)
                performer.catch_up()
        takes = playing.continuations()
        if performer:
            performer.hear(takes[0].song, vocab.MAX_DURATION + takes[0].song.n_steps)
            performer.finish(stopping)
    return takes


class Performer:
    """Plays a song that grows on a MIDI port, in time."""

    def __init__(self, port: Any, begins: int):
        self.port, self.known = port, begins  # notes that begin before this step have been taken
        self.begins, self.start = begins, float("nan")
        self.due: list[tuple[float, int, mido.Message]] = []
        self.channels: dict[int, int] = {}  # of the programs that play; that which played last is the last

    def hear(self, song: Song, now: int) -> None:
        """Takes the notes that are new; none will come any more that begin before `now`."""
        new = song.notes[(song.notes[:, 0] >= self.known) & (song.notes[:, 0] < now)]
        self.known = max(self.known, now)
        origin = song.seconds_at(self.begins)
        for onset, duration, pitch, part, velocity in new.tolist():
            begins, ends = (song.seconds_at(step) - origin for step in (onset, onset + duration))
            channel = self._channel(part, begins) if song.scheme.multi else 0
            on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
            off = mido.Message("note_off", channel=channel, note=pitch)
            self.due += [(begins, START, on), (ends, END, off)]
        self.due.sort(key=lambda x: x[:2])
        if self.due and np.isnan(self.start):
            self.start = time.monotonic() + HEAD_START

    def _channel(self, program: int, seconds: float) -> int:
        """The program's; of more than 15 a new one takes that of the one which has rested longest."""
        if program == vocab.DRUMS:
            return smf.DRUM_CHANNEL
        channel = self.channels.pop(program, None)
        if channel is None:
            free = sorted(set(range(16)) - {smf.DRUM_CHANNEL} - set(self.channels.values()))
            channel = free[0] if free else self.channels.pop(next(iter(self.channels)))
            self.due.append((seconds, START, mido.Message("program_change", channel=channel, program=program)))
        self.channels[program] = channel
        return channel

    def catch_up(self) -> None:
        """Sends what is due."""
        while self.due and self.start + self.due[0][0] <= time.monotonic():
            self.port.send(self.due.pop(0)[2])

    def finish(self, stopping: Sequence[int] = ()) -> None:
        """Plays what is left, unless there is something in `stopping`."""
        while self.due and not stopping:
            time.sleep(min(max(0.0, self.start + self.due[0][0] - time.monotonic()), PATIENCE))
            self.catch_up()
