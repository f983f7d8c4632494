"""Says what the songs of an encoded corpus hold, or writes them back to MIDI.

    python -m midigen_jax.decode CORPUS                    lists the songs
    python -m midigen_jax.decode CORPUS SONG --bars 4      what a song says, bar by bar
    python -m midigen_jax.decode CORPUS SONG --midi DIR    writes it as a MIDI file

A SONG is its name or its number in the list of songs.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np

from . import cli, vocab
from .cli import InputError
from .corpus import SPLITS, Corpus, open_corpus
from .kernels import meter
from .midi import write_song
from .song import Song, pitch_name


def label(corpus: Corpus, i: int) -> str:
    """The name of a song, and of a transposed copy by how many semitones: a.mid, a.mid+2."""
    return corpus.names[i] + (f"{int(corpus.semitones[i]):+d}" if corpus.semitones[i] else "")


def find_song(corpus: Corpus, song: str) -> int:
    """The index of a song by its label or number.

    Raises:
        InputError: there is none.
    """
    labels = [label(corpus, i) for i in range(len(corpus.names))]
    if song in labels:
        return labels.index(song)
    if song.isdecimal() and int(song) < len(labels):
        return int(song)
    alike = [name for name in labels if song in name]
    hint = f"such as {alike[0]}" if alike else f"or a number from 0 to {len(labels) - 1}"
    raise InputError(f"{song}: no such song in {corpus.path}; give a name that the list of songs has, {hint}")


def title(corpus: Corpus, i: int) -> str:
    """One line on a song."""
    minutes, seconds = divmod(round(float(corpus.seconds[i])), 60)
    n_tokens = corpus.offsets[i + 1] - corpus.offsets[i]
    return (
        f"{i:6}  {label(corpus, i)}  {SPLITS[corpus.splits[i]]}  {corpus.notes[i]:,} notes  {n_tokens:,} tokens  "
        f"{minutes}:{seconds:02}"
    )


def midi_path(corpus: Corpus, i: int, folder: Path) -> Path:
    """Where a song's MIDI file goes: by its label, so that no two songs share one.

    Raises:
        InputError: the file exists, or the song's name leads out of the folder.
    """
    name = label(corpus, i)
    path = folder / (name if name.lower().endswith(".mid") else f"{name}.mid")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{corpus.path / 'songs.csv'}: the name {name} leads out of {folder}; mend or remove its line")
    if path.exists():
        raise InputError(f"{path}: exists; give another folder, or move it elsewhere")
    return path


def _in_beats(steps: int, steps_per_beat: int) -> str:
    whole, rest = divmod(Fraction(int(steps), steps_per_beat), 1)
    return " ".join(str(part) for part in (whole, rest) if part) or "0"


def describe(song: Song, bars: int | None = None) -> list[str]:
    """What a song says: a line for each step with notes, under the heads of their bars.

    Args:
        bars: as many of them; None: all.
    """
    scheme, lines, last_bar = song.scheme, list[str](), -1
    onsets = song.notes[:, 0]
    bar, in_bar = meter.bar_positions(onsets, song.bars)
    signature, tempo = (np.searchsorted(rows[:, 0], onsets, side="right") for rows in (song.meters, song.tempos))
    last_onset = -1
    for i, (onset, duration, pitch, part, velocity) in enumerate(song.notes.tolist()):
        if bars is not None and bar[i] >= bars:
            break
        if bar[i] != last_bar:
            if bar[i] > last_bar + 1:
                silent = f"bars {last_bar + 2} to {bar[i]}" if bar[i] > last_bar + 2 else f"bar {bar[i]}"
                lines.append(f"{silent}, nothing begins")
            _, numerator, denominator = song.meters[signature[i] - 1].tolist() if signature[i] else (0, 4, 4)
            per_quarter = int(song.tempos[tempo[i] - 1, 1]) if tempo[i] else meter.DEFAULT_TEMPO
            lines.append(f"bar {bar[i] + 1}, {numerator}/{denominator}, {6e7 / per_quarter:.0f} quarters a minute")
        name = pitch_name(pitch)
        if scheme.multi:
            name = f"drum {pitch}" if part == vocab.DRUMS else f"program {part} {name}"
        if scheme.velocities:
            name += f" velocity {velocity}"
        note = f"{name} for {_in_beats(duration, scheme.steps_per_beat)}"
        if onset != last_onset or bar[i] != last_bar:
            lines.append(f"  beat {_in_beats(in_bar[i] + scheme.steps_per_beat, scheme.steps_per_beat):6}  {note}")
        else:
            lines[-1] += f", {note}"
        last_bar, last_onset = int(bar[i]), onset
    return lines


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="a corpus folder, such as RUN/corpus")
    parser.add_argument("songs", nargs="*", metavar="SONG", help="names or numbers of songs; none: list them all")
    parser.add_argument("--bars", type=int, help="say the first bars only")
    parser.add_argument("--tokens", action="store_true", help="the names of the tokens instead of words")
    parser.add_argument("--midi", type=Path, metavar="DIR", help="write the songs as MIDI files to this folder")
    args = parser.parse_args()
    if args.bars is not None and args.bars < 1:
        raise InputError(f"--bars {args.bars}: give at least 1")
    corpus = open_corpus(args.corpus)
    chosen = [find_song(corpus, song) for song in args.songs]
    if args.midi and not chosen:
        chosen = list(range(len(corpus.names)))
    if not chosen:
        print("\n".join(title(corpus, i) for i in range(len(corpus.names))))
    for i in chosen:
        if args.midi:
            path = midi_path(corpus, i, args.midi)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_song(path, corpus.song(i))
            print(path)
            continue
        print(title(corpus, i))
        if args.tokens:
            here = slice(corpus.offsets[i], corpus.offsets[i + 1])
            shown = corpus.bar[here] < (args.bars or 1 << 16)
            print(" ".join(corpus.vocabulary.names[token] for token in corpus.tokens[here][shown]))
        else:
            print("\n".join(describe(corpus.song(i), args.bars)))


if __name__ == "__main__":
    cli.run(main)
