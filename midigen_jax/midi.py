"""A MIDI file in, a MIDI file out."""

from itertools import count
from pathlib import Path

import mido
import numpy as np

from . import vocab
from .cli import InputError
from .files import renamed
from .kernels import meter, score, smf
from .song import Song, make_song
from .vocab import Scheme

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
TICKS_PER_BEAT = 480


def read_song(path: Path, scheme: Scheme) -> Song:
    """Reads a MIDI file onto the grid.

    Raises:
        InputError: the file can't be read, is no MIDI file, or holds no notes that the scheme keeps.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give the path of a MIDI file") from None
    code, division, notes, meters, tempos = smf.read_smf(data)
    if code != smf.OK:
        raise InputError(f"{path}: {smf.ERRORS[code]}; give a Standard MIDI File (.mid)")
    grid = score.quantize(notes, division, scheme)
    if len(grid) == 0:
        drums = "" if scheme.multi else " (drums aside)"
        raise InputError(f"{path}: holds no notes{drums}; give a MIDI file with a melody or chords")
    meters, tempos = (rows[: meter.on_grid(rows, division, scheme.steps_per_beat)] for rows in (meters, tempos))
    return make_song(grid, meters, tempos, scheme)


def _layers(song: Song) -> dict[tuple[int, int], list[list[int]]]:
    """The song's notes by (instrument, layer): notes of one pitch that sound together lie in different layers."""
    layers: dict[tuple[int, int], list[list[int]]] = {}
    busy_until: dict[tuple[int, int, int], int] = {}
    for note in song.notes.tolist():
        onset, duration, pitch, part, _ = note
        instrument = part if song.scheme.multi else 0
        layer = next(i for i in count() if busy_until.get((instrument, i, pitch), 0) <= onset)
        busy_until[instrument, layer, pitch] = onset + duration
        layers.setdefault((instrument, layer), []).append(note)
    return dict(sorted(layers.items()))


def write_song(path: Path, song: Song) -> None:
    """Writes a song as a MIDI file of format 1: a track of tempos and meters, then the instruments' tracks.

    Notes of one pitch and instrument that sound together go to different tracks, so that reading the file gives the
    same notes. Each track has its own channel, the drums channel 10; more than 15 tracks go on to
    a second port.
    """
    head: list[tuple[int, int, mido.Message]] = []
    for step, numerator, denominator in song.meters.tolist():
        head.append((step, 0, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)))
    for step, tempo in song.tempos.tolist():
        head.append((step, 0, mido.MetaMessage("set_tempo", tempo=tempo)))
    tracks = [head]
    n_channels = 0
    for (instrument, _), notes in _layers(song).items():
        channel = smf.DRUM_CHANNEL
        events: list[tuple[int, int, mido.Message]] = []
        if instrument != vocab.DRUMS:
            port, channel = divmod(n_channels, 15)
            port %= 256  # more than a file can name; only crafted songs have so many
            channel += channel >= smf.DRUM_CHANNEL
            n_channels += 1
            if port:
                events.append((0, 0, mido.MetaMessage("midi_port", port=port)))
            if song.scheme.multi:
                events.append((0, 0, mido.Message("program_change", channel=channel, program=instrument)))
        for onset, duration, pitch, _, velocity in notes:
            for step, order, loud in ((onset, 2, velocity), (onset + duration, 1, 0)):  # ends go before starts
                events.append((step, order, mido.Message("note_on", channel=channel, note=pitch, velocity=loud)))
        tracks.append(events)
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT)
    ticks_per_step = TICKS_PER_BEAT // song.scheme.steps_per_beat
    for events in tracks:
        track = mido.MidiTrack()
        file.tracks.append(track)
        now = 0
        for step, _, message in sorted(events, key=lambda event: event[:2]):
            message.time = (step - now) * ticks_per_step
            track.append(message)
            now = step
    with renamed(path) as temporary:
        file.save(temporary)
