"""Continues the first bars of a MIDI file, or invents a piece.

    python sample.py RUN --prompt FILE.mid --prompt-bars 8 --bars 16 --num 4

Writes each continuation as a MIDI file, a picture and a WAV file.
"""

import time
from pathlib import Path

import numpy as np

from . import cli, render
from .cli import InputError
from .kernels import meter
from .midi import read_song, write_song
from .sampler import DEFAULT_CONTROLS, Controls, Prompt, Sampler
from .song import Song, new_song


def cut(song: Song, bars: int) -> Prompt:
    """The song's first bars as a prompt.

    Kept are the notes that begin in these bars, and meters and tempos up to their end; a meter that begins there holds
    for what follows. A shorter song ends at the end of the bar in which its last note begins.

    Raises:
        InputError: no note begins in these bars.
    """
    notes = song.notes[song.notes[:, 0] < song.bar_start(bars)]
    if len(notes) == 0:
        raise InputError(f"no note begins in the prompt's first {bars} bars; give a larger --prompt-bars")
    last_bar = int(meter.bar_positions(notes[-1:, 0], song.bars)[0][0])
    end = song.bar_start(min(bars, last_bar + 1))
    kept = {name: getattr(song, name) for name in ("bars", "meters", "tempos")}
    return Prompt(song._replace(notes=notes, **{name: rows[rows[:, 0] <= end] for name, rows in kept.items()}), end)


def write_sample(song: Song, stem: Path, *, prompt_end: int | None, title: str) -> None:
    """Writes stem.mid, stem.png and stem.wav. `prompt_end` is None for an invention."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    midi, picture, sound = (stem.with_name(stem.name + suffix) for suffix in (".mid", ".png", ".wav"))
    write_song(midi, song)
    onset, duration, pitch, *_ = song.notes.T
    render.piano_roll(
        picture,
        onset,
        duration,
        pitch,
        bar_lines=song.bar_lines(song.n_steps),
        prompt_end=prompt_end,
        steps_per_beat=song.scheme.steps_per_beat,
        title=title,
    )
    render.wav(midi, sound)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the lowest validation loss; else the newest"
    )
    parser.add_argument("--prompt", type=Path, metavar="FILE.mid", help="the song to go on with; none: invent one")
    parser.add_argument("--prompt-bars", type=int, default=8, help="bars of the prompt to begin with")
    parser.add_argument("--bars", type=int, default=16, help="bars to add")
    parser.add_argument("--num", type=int, default=4, help="continuations to write")
    parser.add_argument(
        "--temperature", type=float, default=DEFAULT_CONTROLS.temperature, help="below 1 safer, above 1 wilder"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=DEFAULT_CONTROLS.top_p, help="draw from the likeliest tokens of this probability"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens this share as likely as the likeliest"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files")
    args = parser.parse_args()
    for name in ("prompt_bars", "bars", "num"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if args.temperature <= 0 or not 0 < args.top_p <= 1 or not 0 <= args.min_p <= 1:
        raise InputError("--temperature has to be above 0, --top-p above 0 and up to 1, --min-p from 0 to 1")
    sampler = Sampler.from_run(args.run, best=args.best)
    if not 0 <= args.top_k <= sampler.vocabulary.size:
        raise InputError(f"--top-k {args.top_k}: give 0 to {sampler.vocabulary.size}, the size of the vocabulary")
    name = args.prompt.stem if args.prompt else "invention"
    prompt = Prompt(new_song(sampler.vocabulary.scheme), 0)
    if args.prompt:
        try:
            prompt = cut(read_song(args.prompt, sampler.vocabulary.scheme), args.prompt_bars)
        except InputError as error:
            raise InputError(f"--prompt {args.prompt}: {str(error).removeprefix(f'{args.prompt}: ')}") from None
    controls = Controls(args.temperature, args.top_k, args.top_p, args.min_p)
    began = time.perf_counter()
    songs = sampler.continue_songs(
        [prompt] * args.num, bars=args.bars, controls=controls, seed=args.seed, progress=True
    )
    seconds = time.perf_counter() - began
    for i, song in enumerate(songs, 1):
        stem = args.out / f"{name}-{i}"
        title = f"{name}, continuation {i}" if args.prompt else f"{name} {i}"
        write_sample(song, stem, prompt_end=prompt.end if args.prompt else None, title=title)
        new = int(np.sum(song.notes[:, 0] >= prompt.end))
        print(f"{stem}.mid .png .wav: {args.bars} new bars, {new} new notes")
    print(f"sampled in {seconds:.1f} s, compilation included")


if __name__ == "__main__":
    cli.run(main)
