"""Reads a score with music21: the notes of its parts as they are played, its meters and tempos.

music21's own conversion to MIDI shifts a part against the others after a rest that is too long. So here the onset of a
note is relative to its own measure.
"""

import contextlib
import io
import warnings
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import mido

from ..music.midi_file import TICKS_PER_BEAT, Event, write_tracks

_VELOCITY = 80


class Note(NamedTuple):
    """A notehead or a note. Times are in quarter notes, from the start of the bar or, as played, of the piece."""

    start: Fraction
    end: Fraction
    pitch: int
    tied: bool  # a notehead that only prolongs the one before it


class Bar(NamedTuple):
    """A bar as written: its length in quarter notes, its meter, the noteheads of each part, and its tempo marks."""

    length: Fraction
    meter: tuple[int, int]
    noteheads: list[list[Note]]
    tempos: list[tuple[Fraction, float]]


class Track(NamedTuple):
    name: str
    program: int
    notes: list[Note]


class Piece(NamedTuple):
    """A piece as played; times are in quarter notes, tempos in quarter notes per minute."""

    tracks: list[Track]
    meters: list[tuple[Fraction, tuple[int, int]]]
    tempos: list[tuple[Fraction, float]]


def read_score(path: Path) -> Piece:
    """Reads a MusicXML or Humdrum score with music21.

    Raises:
        ValueError: it can't be made into a piece; the message says why.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from music21.converter import subConverters

        # The reader of the format, not converter.parse, which leaves behind a pickle of each score.
        humdrum = path.suffix == ".krn"
        reader = subConverters.ConverterHumdrum() if humdrum else subConverters.ConverterMusicXML()
        reader.parseFile(path)
        parts = list(getattr(reader.stream, "parts", ()))
        if len(parts) < 2:
            raise ValueError("one part only")
        for part in parts:
            if any(player.transposition for player in part.getInstruments()):
                part.toSoundingPitch(inPlace=True)
        measures = [list(part.getElementsByClass("Measure")) for part in parts]
        bars = _bars(measures)
        played = [bars[index] for index in _play_order(parts[0], measures[0])]
        names = [(_part_name(part, number), _program(part)) for number, part in enumerate(parts, start=1)]
    tracks = [Track(*name, _notes(played, part)) for part, name in enumerate(names)]
    tracks = [track for track in tracks if track.notes]
    if len(tracks) < 2:
        raise ValueError("one part only")
    return Piece(tracks, _meters(played), _tempos(played))


def _bars(measures: list[list[Any]]) -> list[Bar]:
    """The bars, from the measures of each part.

    Rests are often too long or missing in one part, and music21 then shifts the rest of that part. So the length of a
    bar is that in most parts, and onsets are relative to the measure.
    """
    if not measures[0] or len({len(part) for part in measures}) > 1:
        raise ValueError("its parts differ in their number of bars")
    bars: list[Bar] = []
    meter = (4, 4)
    for index, bar in enumerate(zip(*measures, strict=True), start=1):
        if (signature := bar[0].timeSignature) is not None:
            meter = (signature.numerator, signature.denominator)
        noteheads = [_noteheads(measure) for measure in bar]
        lengths = [Fraction(measure.highestTime) for measure in bar]
        if index == len(measures[0]):
            lengths = [max(lengths)]
        elif len(set(lengths)) > 1:
            full = Fraction(4 * meter[0], meter[1])
            counts = Counter(min(length, full) for length in lengths if length > 0)
            lengths = [max(counts, key=lambda length: (counts[length], length))]
        length = lengths[0] or Fraction(4 * meter[0], meter[1])
        if any(note.end > length for part in noteheads for note in part):
            raise ValueError("its parts differ in the length of a bar")
        tempos = [
            (Fraction(mark.offset), float(bpm))
            for mark in bar[0].getElementsByClass("MetronomeMark")
            if (bpm := mark.getQuarterBPM()) and mark.offset < length
        ]
        bars.append(Bar(length, meter, noteheads, tempos))
    return bars


def _noteheads(measure: Any) -> list[Note]:
    """The noteheads of a part's measure, without grace notes and chord symbols."""
    noteheads = []
    for voice in (measure, *measure.voices):
        begin = Fraction(0 if voice is measure else voice.offset)
        for element in voice.notes:
            start = begin + Fraction(element.offset)
            end = start + Fraction(element.duration.quarterLength)
            if end == start or "Harmony" in element.classes:
                continue
            for note in element.notes if element.isChord else [element]:
                if note.isNote:
                    tie = note.tie or element.tie
                    tied = tie is not None and tie.type in ("stop", "continue")
                    noteheads.append(Note(start, end, note.pitch.midi, tied))
    return sorted(noteheads)


def _play_order(part: Any, measures: list[Any]) -> list[int]:
    """Indices of the bars in the order in which they are played: repeats twice, with first and second endings."""
    endings: dict[int, list[int]] = {}
    for bracket in part.recurse().getElementsByClass("RepeatBracket"):
        for measure in bracket.getSpannedElements():
            endings[measures.index(measure)] = bracket.numberRange
    order: list[int] = []
    section, turn, index = 0, 1, 0
    while index < len(measures):
        measure = measures[index]
        if getattr(measure.leftBarline, "direction", "") == "start" and index != section:
            section, turn = index, 1
        if turn in endings.get(index, [turn]):
            order.append(index)
            if getattr(measure.rightBarline, "direction", "") == "end":
                if turn == 1:
                    turn, index = 2, section
                    continue
                section, turn = index + 1, 1
        index += 1
        if index - 1 in endings and index not in endings:
            section, turn = index, 1
    return order


def _meters(bars: list[Bar]) -> list[tuple[Fraction, tuple[int, int]]]:
    """The meters, wherever the length of the played bars changes.

    Two short bars that add up to a full one become one bar: the end of a section and the pickup of its repeat. The
    last bar needs no meter of its own.
    """
    lengths: list[tuple[Fraction, tuple[int, int]]] = []
    for bar in bars:
        full = Fraction(4 * bar.meter[0], bar.meter[1])
        if len(lengths) > 1 and lengths[-1][1] == bar.meter and lengths[-1][0] + bar.length == full:
            lengths[-1] = (full, bar.meter)
        else:
            lengths.append((bar.length, bar.meter))
    meters: list[tuple[Fraction, tuple[int, int]]] = []
    now = Fraction(0)
    for index, (length, (beats, unit)) in enumerate(lengths):
        if index < len(lengths) - 1 or length > Fraction(4 * beats, unit):
            while (count := length * unit / 4).denominator > 1 and unit < 128:
                unit *= 2
            beats = int(count)
        if unit > 64 or not 0 < beats < 256:
            raise ValueError(f"a bar of {length} quarter notes")
        if not meters or meters[-1][1] != (beats, unit):
            meters.append((now, (beats, unit)))
        now += length
    return meters


def _notes(bars: list[Bar], part: int) -> list[Note]:
    """A part's notes as played, with ties merged; notes of one pitch do not overlap."""
    notes: list[Note] = []
    latest: dict[int, int] = {}  # from pitch to the index of its latest note
    now = Fraction(0)
    for bar in bars:
        for start, end, pitch, tied in bar.noteheads[part]:
            note = Note(now + start, now + end, pitch, False)
            if pitch in latest:
                before = notes[latest[pitch]]
                if before.start == note.start or (tied and before.end == note.start):
                    notes[latest[pitch]] = before._replace(end=max(before.end, note.end))
                    continue
                notes[latest[pitch]] = before._replace(end=min(before.end, note.start))
            latest[pitch] = len(notes)
            notes.append(note)
        now += bar.length
    return notes


def _tempos(bars: list[Bar]) -> list[tuple[Fraction, float]]:
    """The tempo marks as played; by default 88 quarter notes per minute, or half notes in meters such as 2/2."""
    tempos: list[tuple[Fraction, float]] = []
    now = Fraction(0)
    for bar in bars:
        tempos += [(now + at, bpm) for at, bpm in bar.tempos]
        now += bar.length
    if not tempos or tempos[0][0] > 0:
        tempos.insert(0, (Fraction(0), 88.0 * 4 / min(bars[0].meter[1], 4)))
    return tempos


def _part_name(part: Any, number: int) -> str:
    name = str(part.partName or "").strip()
    return name.encode("ascii", "ignore").decode() or f"Part {number}"


def _program(part: Any) -> int:
    player = part.getInstrument(returnDefault=True)
    return player.midiProgram or 0


def write_piece(path: Path, piece: Piece) -> None:
    """Writes a MIDI file of format 1: a track of meters and tempos, then one track per part."""
    head: list[Event] = []
    for at, (beats, unit) in piece.meters:
        head.append((_ticks(at), 0, mido.MetaMessage("time_signature", numerator=beats, denominator=unit)))
    for at, bpm in piece.tempos:
        head.append((_ticks(at), 1, mido.MetaMessage("set_tempo", tempo=min(round(6e7 / bpm), 2**24 - 1))))
    tracks = [head]
    for number, track in enumerate(piece.tracks):
        channel = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)[number % 15]  # channel 9 is for drums
        events: list[Event] = [
            (0, 0, mido.MetaMessage("track_name", name=track.name)),
            (0, 1, mido.Message("program_change", channel=channel, program=track.program)),
        ]
        for note in track.notes:
            on = mido.Message("note_on", channel=channel, note=note.pitch, velocity=_VELOCITY)
            off = mido.Message("note_off", channel=channel, note=note.pitch, velocity=0)
            events += [(_ticks(note.start), 3, on), (max(_ticks(note.end), _ticks(note.start) + 1), 2, off)]
        tracks.append(events)
    write_tracks(path, tracks)


def _ticks(quarters: Fraction) -> int:
    return round(quarters * TICKS_PER_BEAT)
