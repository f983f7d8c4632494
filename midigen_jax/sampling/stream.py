"""Music while it is sampled: MIDI files that grow, and a MIDI port that plays.

A file is rewritten as a whole under its name again and again, so that it can be played at any moment.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mido

from .. import vocab
from ..errors import InputError
from ..kernels import smf
from ..music.midi import write_song
from ..music.song import Song
from .continuation import Continuation
from .generation import Generation

END, START = range(2)  # the order of messages at one time
REWRITE_SECONDS = 1.0  # between two versions of a file
POLL_SECONDS = 0.1  # between two looks at whether to stop
HEAD_START = 0.2  # seconds between the first notes and their sound


def open_port(name: str) -> Any:
    """A MIDI port to play on.

    Raises:
        InputError: there is none of this name; the message lists the existing ones.
    """
    try:
        names = mido.get_output_names()
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"--port {name}: no MIDI ports can be reached ({error}); pip install python-rtmidi, or use --stream"
        ) from None
    if name not in names:
        found = ", ".join(names) or "none"
        raise InputError(f"--port {name}: no such MIDI port; available: {found}")
    return mido.open_output(name, autoreset=True)  # no note hangs when it is closed, whatever was raised


def stream(
    generation: Generation, stems: Sequence[Path], port: Any = None, *, stopping: Sequence[int] = ()
) -> list[Continuation]:
    """Writes the songs so far to stem.mid, and plays the new notes of the first one.

    Args:
        stopping: as soon as there is something in it, this ends.
    """
    vocabulary = generation.vocabulary
    for stem in stems:
        stem.parent.mkdir(parents=True, exist_ok=True)
    written = -REWRITE_SECONDS
    with port or contextlib.nullcontext(), Player(port, generation.starts[0]) as player:
        for rows in generation:
            if stopping:
                generation.stop()
            if port:
                player.add(rows[0].song_so_far(vocabulary), rows[0].next_time)
            if stems and time.monotonic() - written >= REWRITE_SECONDS:
                for stem, row in zip(stems, rows, strict=True):
                    write_song(stem.with_name(stem.name + ".mid"), row.song_so_far(vocabulary))
                written = time.monotonic()
        takes = generation.continuations()
        if port:
            player.add(takes[0].song, vocab.MAX_DURATION + takes[0].song.end)
            while player.playing and not stopping:
                time.sleep(POLL_SECONDS)
    return takes


class Player:
    """Plays a growing song on a MIDI port, on a thread of its own, so that no message waits for the sampler.

    Leaving its context stops it at once.
    """

    def __init__(self, port: Any, start: int):
        """
        Args:
            start: notes that begin before this time, in grid steps, are not played.
        """
        self.port, self.start = port, start
        self._known = start  # notes that begin before have been taken
        self._due: list[tuple[float, int, mido.Message]] = []  # by seconds since the first note sounded
        self._clock: float | None = None  # when the song's start sounds
        self._closed = False
        self._changed = threading.Condition()
        self._channels: dict[int, int] = {}  # of the programs, the most recently used one last
        self._thread = threading.Thread(target=self._play, name="MIDI player", daemon=True)

    def __enter__(self) -> "Player":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def playing(self) -> bool:
        """Whether messages are left, and someone to send them."""
        with self._changed:
            return bool(self._due) and self._thread.is_alive()

    def add(self, song: Song, next_time: int) -> None:
        """Takes the new notes; no more will begin before `next_time`."""
        new = song.notes[(song.notes[:, 0] >= self._known) & (song.notes[:, 0] < next_time)]
        self._known = max(self._known, next_time)
        origin, due = song.seconds_at(self.start), list[tuple[float, int, mido.Message]]()
        for onset, duration, pitch, part, velocity in new.tolist():
            begins, ends = (song.seconds_at(time) - origin for time in (onset, onset + duration))
            channel = self._channel(part, begins, due) if song.scheme.multi else 0
            on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
            off = mido.Message("note_off", channel=channel, note=pitch)
            due += [(begins, START, on), (ends, END, off)]
        with self._changed:
            self._due = sorted([*self._due, *due], key=lambda x: x[:2])
            if self._due and self._clock is None:
                self._clock = time.monotonic() + HEAD_START
            self._changed.notify()

    def _channel(self, program: int, seconds: float, due: list[tuple[float, int, mido.Message]]) -> int:
        """The program's channel; beyond 15 programs, a new one takes that of the least recently used."""
        if program == vocab.DRUMS:
            return smf.DRUM_CHANNEL
        channel = self._channels.pop(program, None)
        if channel is None:
            free = sorted(set(range(16)) - {smf.DRUM_CHANNEL} - set(self._channels.values()))
            channel = free[0] if free else self._channels.pop(next(iter(self._channels)))
            due.append((seconds, START, mido.Message("program_change", channel=channel, program=program)))
        self._channels[program] = channel
        return channel

    def _play(self) -> None:
        """Sends each message when it is due, until the player is closed."""
        with self._changed:
            while not self._closed:
                if not self._due or self._clock is None:
                    self._changed.wait()
                elif (wait := self._clock + self._due[0][0] - time.monotonic()) > 0:
                    self._changed.wait(wait)
                else:
                    self.port.send(self._due.pop(0)[2])
