"""Continues the first bars of a MIDI file, or invents a piece.

    python sample.py RUN --prompt FILE.mid --prompt-bars 8 --bars 16 --num 4
    python sample.py RUN --prompt FILE.mid --bars 16 --num 1 --save-state moment.state
    python sample.py RUN --load-state moment.state --bars 16 --num 4

RUN is a run's folder, or a file that midigen_jax.export wrote. Each continuation is written as a MIDI file, a picture
and a WAV file. A state holds all that has been heard and written; several continuations can go on from it.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import jax

from . import cli, controls, copies, stream
from . import held as held_state
from .cli import InputError
from .continuation import Continuation, Length
from .controls import Controls
from .corpus import Corpus, is_corpus, open_corpus
from .files import check_writable
from .process import keep_programs
from .sampler import DEFAULTS, Sampler
from .song import Prompt, Song


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint, or an exported model")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
    parser.add_argument("--prompt", type=Path, metavar="FILE.mid", help="the song to go on with; none: invent one")
    parser.add_argument("--prompt-bars", type=int, metavar="N", help="bars of the prompt to begin with (8)")
    parser.add_argument("--prompt-seconds", type=float, metavar="S", help="or seconds of it, up to the next bar line")
    parser.add_argument("--heard", type=Path, metavar="FILE.mid", help="a song that the memories hold from before")
    parser.add_argument("--bars", type=int, metavar="N", help="bars to add (16)")
    parser.add_argument("--seconds", type=float, metavar="S", help="or seconds, up to the next bar line")
    parser.add_argument("--eos", action="store_true", help="let the music end by itself before")
    parser.add_argument("--min-bars", type=int, metavar="N", help="with --eos: not before so many bars")
    parser.add_argument("--min-seconds", type=float, metavar="S", help="with --eos: not before so many seconds")
    parser.add_argument("--num", type=int, metavar="N", help="continuations to write (4; of a state one of each song)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files")
    how = parser.add_argument_group("how notes are drawn")
    how.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="below 1 safer, above 1 wilder")
    how.add_argument("--top-k", type=int, default=DEFAULTS.top_k, help="from so many likeliest tokens; 0: all")
    how.add_argument("--top-p", type=float, default=DEFAULTS.top_p, help="from the likeliest of this probability")
    how.add_argument("--min-p", type=float, default=DEFAULTS.min_p, help="from those this share as likely as the first")
    how.add_argument(
        "--loop-bars", type=int, default=DEFAULTS.loop_bars, help="bars that a loop or silence may last; 0: any"
    )
    how.add_argument(
        "--key", metavar="KEY", help='such as "C major" or "F# harmonic minor"; no other notes are written'
    )
    how.add_argument("--lowest", default="C-1", metavar="PITCH", help="as a MIDI number or a name: 60 is C4")
    how.add_argument("--highest", default="G9", metavar="PITCH", help="the same")
    how.add_argument("--instruments", metavar="LIST", help="programs from 0, and drums, such as 0,32,drums")
    state = parser.add_argument_group("states")
    state.add_argument("--save-state", type=Path, metavar="FILE", help="what all continuations can go on from")
    state.add_argument("--load-state", type=Path, metavar="FILE", help="goes on from there; --num takes them in turn")
    live = parser.add_argument_group("while it plays")
    live.add_argument("--stream", action="store_true", help="each MIDI file grows as notes come, and can be played")
    live.add_argument("--port", metavar="NAME", help="plays the first continuation on a MIDI port")
    parser.add_argument("--data", type=Path, metavar="CORPUS", help="the training songs, to find copies of; RUN knows")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or tpu; else the fastest that JAX finds")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    for name in ("num", "prompt_bars", "prompt_seconds"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise InputError(f"{option(name)} {value}: give a number above 0")
    for one, other in (("prompt_bars", "prompt_seconds"), ("load_state", "prompt"), ("load_state", "heard")):
        if getattr(args, one) is not None and getattr(args, other) is not None:
            raise InputError(f"give {option(one)} or {option(other)}, not both")
    for name in ("prompt_bars", "prompt_seconds"):
        if getattr(args, name) is not None and args.prompt is None:
            raise InputError(f"{option(name)} cuts a prompt; give --prompt FILE.mid too")
    length = Length(args.bars, args.seconds, args.min_bars, args.min_seconds, args.eos)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Controls)}
    settings = Controls.of(**{name: value for name, value in given.items() if value is not None})
    choose_device(args.device)
    keep_programs()
    sampler = Sampler.open(args.run, best=args.best)
    controls.make_rules(settings, sampler.vocabulary)  # says what doesn't fit before anything is read
    port = stream.open_port(args.port) if args.port else None
    corpus = training_songs(sampler, args.data)
    began = time.perf_counter()
    if args.load_state:
        start: Prompt | list[Continuation] = sampler.load_state(args.load_state)
        name, num = args.load_state.stem, args.num
    else:
        start = begin(args, sampler)
        name, num = args.prompt.stem if args.prompt else "invention", args.num or 4
    playing = sampler.extend(start, length=length, num=num, settings=settings, seed=args.seed)
    stems = [args.out / f"{name}-{i}" for i in range(1, len(playing.rows) + 1)]
    for argument, path in (("out", stems[0].with_name(f"{stems[0].name}.mid")), ("save_state", args.save_state)):
        try:
            if path:
                check_writable(path)
        except OSError as error:
            where = f"{option(argument)} {getattr(args, argument)}"
            raise InputError(f"{where}: can't be written ({error.filename}: {error.strerror}); give another") from None
    if args.stream:
        print("these grow, and can be played at any moment:", *(f"{stem}.mid" for stem in stems), flush=True)
    with cli.stop_signals() as stopping:  # what there is by then is written
        if args.stream or port:
            takes = stream.play(playing, stems if args.stream else [], port, stopping=stopping)
        else:
            takes = playing.finish(progress=True, stopping=stopping)
        seconds = time.perf_counter() - began
        for i, (take, stem) in enumerate(zip(takes, stems, strict=True), 1):
            kind = "continuation " if args.prompt or args.load_state else ""
            try:
                take.save(stem, title=f"{name}, {kind}{i}" if kind else f"{name} {i}")
            except InputError as error:  # no notes to draw
                print(f"{stem}: {error}")
                continue
            print(f"{stem}.mid .png .wav: {take.summary()}{copied(take, corpus)}")
        if args.save_state:
            assert playing.held is not None
            held_state.save(args.save_state, playing.held)
            size = args.save_state.stat().st_size / 1e6
            print(f"{args.save_state}: {len(takes)} songs to go on from, {size:.0f} MB")
    print(f"sampled in {seconds:.1f} s, compilation included")
    if stopping:
        sys.exit(128 + stopping[0])


def option(name: str) -> str:
    """As it is written in a command."""
    return f"--{name.replace('_', '-')}"


def choose_device(name: str | None) -> None:
    """
    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return
    platform, before = {"gpu": "cuda"}.get(name, name), jax.config.jax_platforms  # type: ignore[attr-defined]
    jax.config.update("jax_platforms", platform)
    try:
        jax.devices(platform)
    except (RuntimeError, AssertionError):  # the latter where JAX has no such plugin
        jax.config.update("jax_platforms", before)
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise InputError(f"--device {name}: no such device here; there is {found}") from None


def begin(args: argparse.Namespace, sampler: Sampler) -> Prompt:
    """What the arguments say that the song begins with.

    Raises:
        InputError: a file can't be read, or the prompt is silent.
    """

    def read(name: str) -> Song | None:
        path = getattr(args, name)
        try:
            return path and sampler.song(path)
        except InputError as error:
            raise InputError(f"--{name} {path}: {str(error).removeprefix(f'{path}: ')}") from None

    song, heard, bars = read("prompt"), read("heard"), args.prompt_bars or 8
    if song is not None and args.prompt_seconds is not None:
        bars = bars_in(args.prompt_seconds, song)
    try:
        return sampler.prompt(song, prompt_bars=bars, heard=heard)
    except InputError as error:
        raise InputError(f"{args.prompt}: {error}") from None


def bars_in(seconds: float, song: Song) -> int:
    """How many bars begin in the first seconds of a song."""
    last = min(max(song.step_at(seconds), 1), song.n_steps) - 1
    return song.bar_of(last) + 1


def training_songs(sampler: Sampler, data: Path | None) -> Corpus | None:
    """The corpus that the model was trained on, where it is at hand."""
    if data is not None:
        return open_corpus(data)
    if sampler.run is None:
        return None
    path = sampler.run / "corpus"
    return open_corpus(path) if is_corpus(path) else None


def copied(take: Continuation, corpus: Corpus | None) -> str:
    """The longest stretches of notes that were heard before, in words."""
    notes, begins = take.song.notes, take.begins
    new, prompt = notes[notes[:, 0] >= begins], notes[notes[:, 0] < begins]
    said, multi = [], take.vocabulary.scheme.multi
    if len(prompt):
        said.append(f"{copies.longest_copy(new, [prompt], multi=multi).notes} notes with the prompt")
    if corpus is not None:
        songs, others = copies.training_notes(corpus)
        found = copies.longest_copy(new, others, multi=multi)
        source = f" ({corpus.names[songs[found.song]]})" if found.song >= 0 else ""
        said.append(f"{found.notes} with a training song{source}")
    return f"; longest stretch shared: {', '.join(said)}" if said else ""


if __name__ == "__main__":
    cli.run(main)
