"""Songs from MIDI files, and to MIDI files."""

from itertools import count
from pathlib import Path

import mido
import numpy as np

from .. import vocab
from ..errors import InputError
from ..kernels import beats, meter, score, smf
from ..miditok_vocab import MidiTokVocabulary
from ..vocab import Scheme, Vocabulary
from . import miditok
from .midi_file import TICKS_PER_BEAT, Event, write_tracks
from .song import Song, make_song


def read_song(path: Path, scheme: Scheme) -> Song:
    """Reads a MIDI file onto the grid.

    Raises:
        InputError: the file can't be read, is not a MIDI file, or holds no notes that the scheme keeps.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give the path of a MIDI file") from None
    code, division, notes, meters, tempos = smf.read_smf(data)
    if code != smf.OK:
        raise InputError(f"{path}: {smf.ERRORS[code]}; give a Standard MIDI File (.mid)")
    if scheme.align_beats:
        meters = np.vstack([meters, np.zeros((1, 3), np.int32)])
        n_meters, _ = beats.align(notes, meters, len(meters) - 1, tempos, division)
        meters = meters[:n_meters]
    grid = score.quantize(notes, division, scheme)
    if len(grid) == 0:
        drums = "" if scheme.multi else " other than drums"
        raise InputError(f"{path}: holds no notes{drums}; give a MIDI file with a melody or chords")
    meters, tempos = (rows[: meter.on_grid(rows, division, scheme.steps_per_beat)] for rows in (meters, tempos))
    return make_song(grid, meters, tempos, scheme)


def read_with(path: Path, vocabulary: Vocabulary) -> Song:
    """Reads a MIDI file as its tokens are made: MidiTok's by MidiTok.

    Raises:
        InputError: the file can't be read, is not a MIDI file, or holds no notes that the vocabulary keeps.
    """
    song = read_song(path, vocabulary.scheme)
    if not isinstance(vocabulary, MidiTokVocabulary):
        return song
    try:
        tokens = miditok.tokens_of_file(path.read_bytes(), vocabulary)
    except ValueError as error:
        raise InputError(f"{path}: {error}; give another MIDI file") from None
    notes, _, meters = miditok.read(tokens, vocabulary)
    return make_song(notes, meters, song.tempos, vocabulary.scheme)


def _layers(song: Song) -> dict[tuple[int, int], list[list[int]]]:
    """The song's notes by (instrument, layer); overlapping notes of one pitch are in different layers."""
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

    Overlapping notes of one pitch and instrument go to different tracks, so reading the file gives the same notes.
    Each track has its own channel, drums have channel 10; from the 16th track on a second port is used.
    """
    ticks = TICKS_PER_BEAT // song.scheme.steps_per_beat
    head: list[Event] = []
    for time, numerator, denominator in song.meters.tolist():
        message = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
        head.append((time * ticks, 0, message))
    for time, tempo in song.tempos.tolist():
        head.append((time * ticks, 0, mido.MetaMessage("set_tempo", tempo=tempo)))
    tracks = [head]
    n_channels = 0
    for (instrument, _), notes in _layers(song).items():
        channel = smf.DRUM_CHANNEL
        events: list[Event] = []
        if instrument != vocab.DRUMS:
            port, channel = divmod(n_channels, 15)
            port %= 256  # the number has one byte; only crafted songs have more ports
            channel += channel >= smf.DRUM_CHANNEL
            n_channels += 1
            if port:
                events.append((0, 0, mido.MetaMessage("midi_port", port=port)))
            if song.scheme.multi:
                events.append((0, 0, mido.Message("program_change", channel=channel, program=instrument)))
        for onset, duration, pitch, _, loudness in notes:
            for time, order, velocity in ((onset, 2, loudness), (onset + duration, 1, 0)):  # ends precede onsets
                message = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
                events.append((time * ticks, order, message))
        tracks.append(events)
    write_tracks(path, tracks)
