"""Tracks of timed messages to a MIDI file. Imports no Numba."""

from collections.abc import Iterable
from pathlib import Path

import mido

from ..files import atomic_write

TICKS_PER_BEAT = 480

Event = tuple[int, int, mido.Message]  # tick, order among the messages of a tick, message


def write_tracks(path: Path, tracks: Iterable[Iterable[Event]]) -> None:
    """Writes a MIDI file of format 1."""
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT, charset="utf-8")
    for events in tracks:
        track = mido.MidiTrack()
        file.tracks.append(track)
        now = 0
        for tick, _, message in sorted(events, key=lambda event: event[:2]):
            message.time = tick - now
            track.append(message)
            now = tick
    with atomic_write(path) as temporary:
        file.save(temporary)
