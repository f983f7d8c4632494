"""Describes the songs of a corpus in words."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from .. import vocab
from ..errors import InputError
from ..kernels import meter
from ..music.pitches import pitch_name
from ..music.song import Song
from .corpus import SPLITS, Corpus


def label(corpus: Corpus, i: int) -> str:
    """The name of a song; of a transposed copy with its semitones, such as a.mid+2."""
    return corpus.names[i] + (f"{int(corpus.semitones[i]):+d}" if corpus.semitones[i] else "")


def find_song(corpus: Corpus, song: str) -> int:
    """The index of a song by its label, with or without the suffix of its file, or by its number.

    Raises:
        InputError: there is no such song.
    """
    labels = [label(corpus, i) for i in range(len(corpus.names))]
    if song in labels:
        return labels.index(song)
    if (without := [i for i, name in enumerate(labels) if name.rpartition(".")[0] == song]) and len(without) == 1:
        return without[0]
    if song.isdecimal() and int(song) < len(labels):
        return int(song)
    alike = [name for name in labels if song in name]
    hint = f"such as {alike[0]}" if alike else f"or a number from 0 to {len(labels) - 1}"
    raise InputError(f"{song}: no such song in {corpus.path}; give a name from the list of songs, {hint}")


def title(corpus: Corpus, i: int) -> str:
    """One line about a song."""
    minutes, seconds = divmod(round(float(corpus.seconds[i])), 60)
    n_tokens = corpus.offsets[i + 1] - corpus.offsets[i]
    return (
        f"{i:6}  {label(corpus, i)}  {SPLITS[corpus.splits[i]]}  {corpus.notes[i]:,} notes  {n_tokens:,} tokens  "
        f"{minutes}:{seconds:02}"
    )


def midi_path(corpus: Corpus, i: int, folder: Path) -> Path:
    """The path of a song's MIDI file; it is named by the label, so no two songs share it.

    Raises:
        InputError: the file exists, or the song's name leads out of the folder.
    """
    name = label(corpus, i)
    path = folder / (name if name.lower().endswith(".mid") else f"{name}.mid")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{corpus.path / 'songs.csv'}: the name {name} leads out of {folder}; fix or remove its line")
    if path.exists():
        raise InputError(f"{path}: exists; give another folder, or move the file elsewhere")
    return path


def _in_beats(duration: int, steps_per_beat: int) -> str:
    whole, rest = divmod(Fraction(int(duration), steps_per_beat), 1)
    return " ".join(str(part) for part in (whole, rest) if part) or "0"


def describe(song: Song, bars: int | None = None) -> list[str]:
    """A song in words: a heading for each bar and a line for each time at which notes begin.

    Args:
        bars: how many of the first bars; None: all.
    """
    scheme, lines, last_bar = song.scheme, list[str](), -1
    onsets = song.notes[:, 0]
    bar, position = meter.bar_positions(onsets, song.bars)
    signature, tempo = (np.searchsorted(rows[:, 0], onsets, side="right") for rows in (song.meters, song.tempos))
    last_onset = -1
    for i, (onset, duration, pitch, part, velocity) in enumerate(song.notes.tolist()):
        if bars is not None and bar[i] >= bars:
            break
        if bar[i] != last_bar:
            if bar[i] > last_bar + 1:
                silent = f"bars {last_bar + 2} to {bar[i]}" if bar[i] > last_bar + 2 else f"bar {bar[i]}"
                lines.append(f"{silent}: no note begins")
            _, numerator, denominator = song.meters[signature[i] - 1].tolist() if signature[i] else (0, 4, 4)
            per_quarter = int(song.tempos[tempo[i] - 1, 1]) if tempo[i] else meter.DEFAULT_TEMPO
            lines.append(
                f"bar {bar[i] + 1}, {numerator}/{denominator}, {6e7 / per_quarter:.0f} quarter notes per minute"
            )
        name = pitch_name(pitch)
        if scheme.multi:
            name = f"drum {pitch}" if part == vocab.DRUMS else f"program {part} {name}"
        if scheme.velocities:
            name += f" velocity {velocity}"
        note = f"{name} for {_in_beats(duration, scheme.steps_per_beat)}"
        if onset != last_onset or bar[i] != last_bar:
            lines.append(f"  beat {_in_beats(position[i] + scheme.steps_per_beat, scheme.steps_per_beat):6}  {note}")
        else:
            lines[-1] += f", {note}"
        last_bar, last_onset = int(bar[i]), onset
    return lines
