"""Measures trained models on songs that they were not trained on, and what their memories contribute.

    midigen evaluate runs/mine --data corpora/mine
    midigen evaluate runs/both runs/xl-only runs/none --data corpora/mine --out compared

Writes report.html, one self-contained page with plots, piano rolls and players, and the same figures as report.json, to
the first run's folder or to --out; beside them the first continuation as sample.mid, .png and .wav, and
listening.html, on which continuations are told which is better without knowing whose they are. Each song is read
whole from its own empty memory, and again with memories hidden, or with another song's kNN memory in place of its own.
Intervals are 95 % confidence intervals over songs.
"""

import argparse
import shlex
import sys
from pathlib import Path

from .. import files
from ..data.folders import check_midi_folder
from ..errors import InputError
from ..run.folder import check_model
from ..sampling.settings import check_seed
from . import command
from .command import option

LEAST = {
    "songs": 1,
    "takes": 1,
    "prompt_bars": 1,
    "bars": 1,
    "long_takes": 0,
    "long_bars": 1,
    "checkpoints": 1,
    "listening": 0,
    "themes": 0,
    "furthest": 0.5,
}


def make_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="runs, or files that midigen export wrote; the first is compared with the others",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="the music that they were trained on"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="the songs to read")
    parser.add_argument("--songs", type=int, metavar="N", help="read at most this many of them; else all")
    parser.add_argument("--takes", type=int, default=16, metavar="N", help="continue this many of them")
    parser.add_argument("--prompt-bars", type=int, default=8, metavar="N", help="bars of each song in the prompt")
    parser.add_argument("--bars", type=int, default=32, metavar="N", help="bars to add")
    parser.add_argument(
        "--long-takes", type=int, default=16, metavar="N", help="takes without a prompt, and as many with one; 0: none"
    )
    parser.add_argument("--long-bars", type=int, default=64, metavar="N", help="bars of each of these")
    parser.add_argument(
        "--checkpoints", type=int, default=4, metavar="N", help="checkpoints of a run in its originality curve, at most"
    )
    parser.add_argument("--listening", type=int, default=8, metavar="N", help="songs in listening.html; 0: no page")
    parser.add_argument("--themes", type=int, default=16, metavar="N", help="themes of the recall probe; 0: no probe")
    parser.add_argument(
        "--furthest", type=float, default=32, metavar="N", help="the probe's longest filler, in contexts"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report; else the first run")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    for name, least in LEAST.items():
        if (value := getattr(args, name)) is not None and not value >= least:
            raise InputError(f"{option(name)} {value}: give at least {least}")
    check_seed(args.seed)
    if args.themes == 1:
        raise InputError("--themes 1: the control needs another theme; give at least 2, or 0")
    for run in args.runs:
        check_model(run)
    check_midi_folder(args.data)  # or a corpus, which is a folder too
    out = args.out or args.runs[0]
    if out.is_file():
        raise InputError(f"{out}: is a file; give a folder for the report with --out")
    files.check_writable(out / "report.html")

    # Imported here: bad arguments are reported without waiting for JAX.
    from ..evaluation.evaluate import Options, evaluate
    from ..run.runtime import enable_compilation_cache

    enable_compilation_cache()
    options = Options(
        split=args.split,
        max_songs=args.songs,
        continuations=args.takes,
        prompt_bars=args.prompt_bars,
        bars=args.bars,
        long_takes=args.long_takes,
        long_bars=args.long_bars,
        checkpoints=args.checkpoints,
        listening=args.listening,
        themes=args.themes,
        furthest=args.furthest,
        seed=args.seed,
    )
    evaluate(args.runs, args.data, out, options, command=shlex.join(["midigen", "evaluate", *sys.argv[1:]]))
    n_runs = len(args.runs)
    beside = "are sample.mid and listening.html" if args.listening else "is sample.mid"
    print(f"{out / 'report.html'}: {n_runs} run{'s' * (n_runs > 1)}; open it in a browser. Beside it {beside}")
