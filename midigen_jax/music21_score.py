"""Reads a score with music21 as a piece: its parts' notes as they are played, its meters and tempos.

music21's own translation to MIDI shifts parts against each other where a rest is too long in one of them, so
notes are counted from their own measures here.
"""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import mido

from .midi import TICKS_PER_BEAT

_VELOCITY = 80


class Note(NamedTuple):
    """Times in quarters, from the start of its bar in a score and of the piece as it is played.

    `tied`: a notehead that only prolongs the one before of the same pitch.
    """

    start: Fraction
    end: Fraction
    pitch: int
    tied: bool


class Bar(NamedTuple):
    """A bar as it is written: its length in quarters, the meter in force, and each part's noteheads."""

    length: Fraction
    meter: tuple[int, int]
    noteheads: list[list[Note]]
    tempos: list[tuple[Fraction, float]]


class Track(NamedTuple):
    name: str
    program: int
    notes: list[Note]


class Piece(NamedTuple):
    """A piece as it is played; times in quarters, tempos in quarters a minute."""

    tracks: list[Track]
    meters: list[tuple[Fraction, tuple[int, int]]]
    tempos: list[tuple[Fraction, float]]


def read_score(path: Path) -> Piece:
    """Reads a MusicXML or Humdrum score with music21. ValueError says why it makes no piece."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from music21.converter import subConverters

        # The format's own reader, not converter.parse, which leaves a pickle of each score behind.
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
    """The bars, from each part's measures.

    Rests are often too long or missing in one part, which in music21 shifts all that follows in that part. So
    the length of a bar is the one that most parts give it, and notes are counted from their own measure.
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
    """The noteheads of a part's measure, grace notes and chord symbols left out."""
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
    """Indices of the bars as they are played: a repeated section twice, with its first and second ending."""
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
    """Where the length of the played bars changes, and to which meter.

    Two short bars that make up a full one are one bar: the end of a section and the pickup of its repeat.
    The last bar needs no meter of its own.
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
            raise ValueError(f"a bar of {length} quarters")
        if not meters or meters[-1][1] != (beats, unit):
            meters.append((now, (beats, unit)))
        now += length
    return meters


def _notes(bars: list[Bar], part: int) -> list[Note]:
    """A part's notes as played, ties merged; those of one pitch do not overlap."""
    notes: list[Note] = []
    latest: dict[int, int] = {}  # pitch -> index of its latest note
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
    """The tempo marks as played. Without one: 88 quarters a minute, or halves in 2/2 and its like."""
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


def write_midi(piece: Piece, path: Path) -> None:
    """Writes a MIDI file of format 1: a track of meters and tempos, then a track a part."""
    song = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT, charset="utf-8")
    events: list[tuple[int, int, Any]] = []
    for at, (beats, unit) in piece.meters:
        meter = mido.MetaMessage("time_signature", numerator=beats, denominator=unit)
        events.append((_ticks(at), 0, meter))
    for at, bpm in piece.tempos:
        events.append((_ticks(at), 1, mido.MetaMessage("set_tempo", tempo=min(round(6e7 / bpm), 2**24 - 1))))
    song.tracks.append(_track(events))
    for number, track in enumerate(piece.tracks):
        channel = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)[number % 15]  # 9 is the drums'
        events = [
            (0, 0, mido.MetaMessage("track_name", name=track.name)),
            (0, 1, mido.Message("program_change", channel=channel, program=track.program)),
        ]
        for note in track.notes:
            on = mido.Message("note_on", channel=channel, note=note.pitch, velocity=_VELOCITY)
            off = mido.Message("note_off", channel=channel, note=note.pitch, velocity=0)
            events += [(_ticks(note.start), 3, on), (max(_ticks(note.end), _ticks(note.start) + 1), 2, off)]
        song.tracks.append(_track(events))
    song.save(path)


def _ticks(quarters: Fraction) -> int:
    return round(quarters * TICKS_PER_BEAT)


def _track(events: Iterable[tuple[int, int, Any]]) -> mido.MidiTrack:
    """A track of (tick, order within the tick, message)."""
    track, now = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        message.time = tick - now
        track.append(message)
        now = tick
    return track
