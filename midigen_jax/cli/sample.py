"""Continues the first bars of a MIDI file, or invents a piece.

    python sample.py RUN --prompt FILE.mid --prompt-bars 8 --bars 16 --num 4
    python sample.py RUN --prompt FILE.mid --bars 16 --num 1 --save-state moment.state
    python sample.py RUN --load-state moment.state --bars 16 --num 4

RUN is a run's folder, or a file that `midigen export` wrote. Each continuation is written as a MIDI file, a picture and
a WAV file. A state holds everything that was read and written; several continuations can start from it.

A prompt of the MIREX task Symbolic Music Generation (a .json file) is continued by the twelve bars that the task asks
for, and each continuation is written as its JSON too: sample_01.json, sample_02.json, ...
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.folders import check_corpus
from ..errors import InputError
from ..files import check_writable
from ..run.folder import check_model
from ..sampling.settings import DEFAULTS, GenerationSettings, Length, check_best_of, check_rows, check_seed
from . import command
from .command import option

if TYPE_CHECKING:
    from ..data.corpus import Corpus
    from ..music.song import Prompt, Song
    from ..sampling.continuation import Continuation
    from ..sampling.sampler import Sampler


def make_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint, or an exported model")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
    parser.add_argument(
        "--prompt", type=Path, metavar="FILE.mid", help="the song to continue, or FILE.json; without it, invent one"
    )
    parser.add_argument("--prompt-bars", type=int, metavar="N", help="bars of the prompt to begin with (8)")
    parser.add_argument("--prompt-seconds", type=float, metavar="S", help="or seconds of it, up to the next bar line")
    parser.add_argument(
        "--context-song", type=Path, metavar="FILE.mid", help="a song that the memories hold before the prompt"
    )
    parser.add_argument("--bars", type=int, metavar="N", help="bars to add (16)")
    parser.add_argument("--seconds", type=float, metavar="S", help="or seconds, up to the next bar line")
    parser.add_argument("--eos", action="store_true", help="let the music end early")
    parser.add_argument("--min-bars", type=int, metavar="N", help="with --eos: not before this many bars")
    parser.add_argument("--min-seconds", type=float, metavar="S", help="with --eos: not before this many seconds")
    parser.add_argument(
        "--num", type=int, metavar="N", help="number of continuations (4; of a state, one of each of its songs)"
    )
    parser.add_argument(
        "--best-of", type=int, default=1, metavar="N", help="sample N for each, and keep the one with the fewest faults"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files")
    how = parser.add_argument_group("how notes are drawn")
    how.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="below 1 safer, above 1 wilder")
    how.add_argument(
        "--copy", type=float, default=DEFAULTS.copy, help="take up its past from 0, never, to 1, as much as fits"
    )
    how.add_argument("--top-k", type=int, default=DEFAULTS.top_k, help="from this many most likely tokens; 0: all")
    how.add_argument("--top-p", type=float, default=DEFAULTS.top_p, help="from the most likely of this probability")
    how.add_argument(
        "--min-p", type=float, default=DEFAULTS.min_p, help="from those this share as likely as the most likely"
    )
    how.add_argument(
        "--phrase-bars",
        type=int,
        metavar="N",
        default=DEFAULTS.phrase_bars,
        help="length of its phrases: the past of so many bars ago, or a multiple, is taken up more readily; 0: of none",
    )
    how.add_argument(
        "--loop-bars", type=int, default=DEFAULTS.loop_bars, help="bars that a loop or silence may last; 0: no limit"
    )
    how.add_argument(
        "--max-density",
        type=float,
        metavar="X",
        default=DEFAULTS.max_density,
        help="notes in a bar, as times those of the fullest bars of the prompt or of the training songs; 0: no limit",
    )
    how.add_argument("--key", metavar="KEY", help='such as "C major" or "F# harmonic minor": write only its notes')
    how.add_argument("--lowest", default="C-1", metavar="PITCH", help="as a MIDI number or a name: 60 is C4")
    how.add_argument("--highest", default="G9", metavar="PITCH", help="the same")
    how.add_argument("--instruments", metavar="LIST", help="programs from 0, and drums, such as 0,32,drums")
    state = parser.add_argument_group("states")
    state.add_argument("--save-state", type=Path, metavar="FILE", help="save the state after all continuations")
    state.add_argument("--load-state", type=Path, metavar="FILE", help="continue it; --num takes its songs in turn")
    live = parser.add_argument_group("while it samples")
    live.add_argument("--stream", action="store_true", help="each MIDI file grows as notes are sampled")
    live.add_argument("--port", metavar="NAME", help="play the first continuation on a MIDI port")
    parser.add_argument(
        "--data", type=Path, metavar="CORPUS", help="the training songs, to look for copies; default: those in RUN"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or tpu; default: the fastest that JAX finds")
    return parser


def check_arguments(args: argparse.Namespace) -> tuple[Length, GenerationSettings]:
    """
    Raises:
        InputError: arguments can't be used; the message names them.
    """
    for name in ("num", "prompt_bars", "prompt_seconds"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise InputError(f"{option(name)} {value}: give a number above 0")
    for one, other in (("prompt_bars", "prompt_seconds"), ("load_state", "prompt"), ("load_state", "context_song")):
        if getattr(args, one) is not None and getattr(args, other) is not None:
            raise InputError(f"give {option(one)} or {option(other)}, not both")
    for name in ("prompt_bars", "prompt_seconds"):
        if getattr(args, name) is not None and args.prompt is None:
            raise InputError(f"{option(name)} cuts a prompt; give --prompt FILE.mid too")
    if is_mirex(args):
        for name in ("prompt_bars", "prompt_seconds", "bars", "seconds"):
            if getattr(args, name) is not None:
                raise InputError(f"{option(name)}: the task of {args.prompt} says how long it is; leave it out")
    for name in ("prompt", "context_song", "load_state"):
        if (path := getattr(args, name)) is not None and not path.exists():
            raise InputError(f"{option(name)} {path}: no such file")
    length = Length(args.bars, args.seconds, args.min_bars, args.min_seconds, args.eos)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(GenerationSettings)}
    settings = GenerationSettings.parse(**{name: value for name, value in given.items() if value is not None})
    check_rows(args.num)
    check_best_of(args.best_of)
    if args.best_of > 1 and (args.stream or args.port or args.save_state):
        raise InputError("--best-of chooses when all are done; leave out --stream, --port and --save-state")
    check_seed(args.seed)
    check_model(args.run, best=args.best)
    if args.data is not None:
        check_corpus(args.data)
    return length, settings


def main() -> None:
    args = make_parser().parse_args()
    length, settings = check_arguments(args)

    # Imported here: bad arguments are reported without waiting for JAX.
    from ..music import mirex
    from ..run.runtime import choose_device, enable_compilation_cache
    from ..run.signals import stop_signals
    from ..sampling import stream
    from ..sampling.logits_processors import make_setting_arrays
    from ..sampling.sampler import Sampler

    choose_device(args.device)
    enable_compilation_cache()
    sampler = Sampler.load(args.run, best=args.best)
    if is_mirex(args):
        length = dataclasses.replace(length, bars=mirex.NEW_BARS)
        if sampler.vocabulary.scheme.multi and not settings.instruments:
            settings = dataclasses.replace(settings, instruments=(mirex.PIANO,))
    make_setting_arrays(settings, sampler.vocabulary)  # reports settings that don't fit before anything is read
    port = stream.open_port(args.port) if args.port else None
    corpus = training_corpus(sampler, args.data)
    began = time.perf_counter()
    if args.load_state:
        prompt: Prompt | list[Continuation] = sampler.load_state(args.load_state)
        name, num = args.load_state.stem, args.num
    else:
        prompt = read_prompt(args, sampler)
        name, num = args.prompt.stem if args.prompt else "invention", args.num or 4
    generation = sampler.generate(
        prompt, length=length, num=num, best_of=args.best_of, settings=settings, seed=args.seed
    )
    stems = [args.out / (f"sample_{i:02}" if is_mirex(args) else f"{name}-{i}") for i in range(1, generation.num + 1)]
    for argument, path in (("out", stems[0].with_name(f"{stems[0].name}.mid")), ("save_state", args.save_state)):
        try:
            if path:
                check_writable(path)
        except OSError as error:
            where = f"{option(argument)} {getattr(args, argument)}"
            raise InputError(f"{where}: can't be written ({error.filename}: {error.strerror}); give another") from None
    if args.stream:
        print("these grow, and can be played at any moment:", *(f"{stem}.mid" for stem in stems), flush=True)
    with stop_signals() as stopping:  # what has been sampled by then is written
        if args.stream or port:
            takes = stream.stream(generation, stems if args.stream else [], port, stopping=stopping)
        else:
            takes = generation.finish(progress=True, stopping=stopping)
        seconds = time.perf_counter() - began
        for i, (take, stem, shared) in enumerate(zip(takes, stems, common_excerpts(takes, corpus), strict=True), 1):
            kind = "continuation " if args.prompt or args.load_state else ""
            try:
                if is_mirex(args):
                    mirex.write_generation(stem.with_name(f"{stem.name}.json"), take.song, take.start)
                take.save(stem, title=f"{name}, {kind}{i}" if kind else f"{name} {i}")
            except InputError as error:  # no notes to draw
                print(f"{stem}: {error}")
                continue
            print(f"{stem}.mid .png .wav{' .json' if is_mirex(args) else ''}: {take.summary()}{shared}")
        if args.save_state:
            assert generation.session is not None
            generation.session.save(args.save_state)
            size = args.save_state.stat().st_size / 1e6
            print(f"{args.save_state}: {len(takes)} songs to continue from, {size:.0f} MB")
    print(f"sampled in {seconds:.1f} s, compilation included")
    if stopping:
        sys.exit(128 + stopping[0])


def is_mirex(args: argparse.Namespace) -> bool:
    """Whether the prompt is one of the MIREX task."""
    return args.prompt is not None and args.prompt.suffix == ".json"


def read_prompt(args: argparse.Namespace, sampler: "Sampler") -> "Prompt":
    """The prompt that the arguments describe.

    Raises:
        InputError: a file can't be read, or the prompt has no notes.
    """

    from ..music import mirex

    def read(name: str) -> "Song | None":
        path = getattr(args, name)
        try:
            return path and sampler.song(path)
        except InputError as error:
            raise InputError(f"{option(name)} {path}: {str(error).removeprefix(f'{path}: ')}") from None

    if is_mirex(args):
        prompt, context_song = mirex.read_prompt(args.prompt, sampler.vocabulary.scheme), read("context_song")
        return prompt._replace(context=context_song)
    song, context_song, bars = read("prompt"), read("context_song"), args.prompt_bars or 8
    if song is not None and args.prompt_seconds is not None:
        bars = bars_in(args.prompt_seconds, song)
    try:
        return sampler.prompt(song, prompt_bars=bars, context_song=context_song)
    except InputError as error:
        raise InputError(f"{args.prompt}: {error}") from None


def bars_in(seconds: float, song: "Song") -> int:
    """How many bars begin in the first seconds of a song."""
    last = min(max(song.time_at(seconds), 1), song.end) - 1
    return song.bar_of(last) + 1


def training_corpus(sampler: "Sampler", data: Path | None) -> "Corpus | None":
    """The corpus that the model was trained on, if it is available."""
    from ..data.corpus import open_corpus
    from ..data.folders import is_corpus

    if data is not None:
        return open_corpus(data)
    if sampler.model.run is None:
        return None
    path = sampler.model.run / "corpus"
    corpus = open_corpus(path) if is_corpus(path) else None
    return corpus if corpus and corpus.fingerprint == sampler.model.corpus else None


def common_excerpts(takes: "list[Continuation]", corpus: "Corpus | None") -> list[str]:
    """The longest excerpts that each continuation shares with its prompt and with a training song, in words."""
    from ..data.corpus import training_notes
    from ..music.excerpts import longest_common_excerpt, longest_common_excerpts

    new = [take.song.notes[take.song.notes[:, 0] >= take.start] for take in takes]
    found: list[list[str]] = [[] for _ in takes]
    for take, notes, texts in zip(takes, new, found, strict=True):
        prompt, multi = take.song.notes[take.song.notes[:, 0] < take.start], take.vocabulary.scheme.multi
        if len(prompt):
            texts.append(f"{longest_common_excerpt(notes, [prompt], multi=multi).notes} notes with the prompt")
    if corpus is not None:
        songs, others = training_notes(corpus)  # read once for all
        excerpts = longest_common_excerpts(new, others, multi=corpus.vocabulary.scheme.multi)
        for excerpt, texts in zip(excerpts, found, strict=True):
            source = f" ({corpus.names[songs[excerpt.song]]})" if excerpt.song >= 0 else ""
            texts.append(f"{excerpt.notes} with a training song{source}")
    return [f"; longest common excerpt: {', '.join(texts)}" if texts else "" for texts in found]
