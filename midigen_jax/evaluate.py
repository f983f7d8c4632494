"""Says what runs are worth on songs that they were not trained on, and what their memories add.

    python -m midigen_jax.evaluate runs/mine --data corpora/mine
    python -m midigen_jax.evaluate runs/both runs/xl-only runs/none --data corpora/mine --out compared

Writes report.html, one page with plots, piano rolls and players that needs nothing else, and the same figures as
report.json, in the first run's folder or in --out; beside them the first continuation as sample.mid, .png and .wav.
Each song is read whole from its own empty memory, and again with memories switched off, or with another song's kNN
memory in place of its own. Intervals cover the true value in 95 of 100 collections of songs.
"""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from . import arms, cli, environment, files, likeness, repeats, report, vocab
from .arms import Reader
from .bootstrap import Interval, ratio
from .cli import InputError
from .corpus import SPLITS, Corpus
from .inside import look_inside
from .likeness import Pair
from .probe import find_themes, probe
from .process import keep_programs
from .sampler import Sampler
from .song import Tape
from .train import get_corpus

BARS = (("0 to 15", 0, 16), ("16 to 31", 16, 32), ("32 to 63", 32, 64), ("64 and beyond", 64, math.inf))
# What is compared with what; each difference is below 0 where the first is better.
DIFFERENCES = ((arms.XL, arms.NONE), (arms.KNN, arms.XL), (arms.ANOTHER, arms.XL), (arms.KNN, arms.ANOTHER))
PITCH, DURATION, REST, OTHER = "pitches", "durations", "rests", "others"
MATRICES, LISTENED = 3, 3  # songs whose matrices are drawn, and those that can be listened to
LOOKED_INSIDE = 32  # songs at most
PACKAGES = ("jax", "flax", "numpy", "faiss-cpu", "faiss-gpu", "muspy")

Nats = dict[str, list[np.ndarray]]  # of each arm, for each song [N - 1]
Cells = dict[str, Interval | None]


def parts_of(tokens: np.ndarray) -> np.ndarray:
    """What each token but the first says: PITCH, DURATION of a note, REST with its duration, or OTHER."""
    before, tokens = tokens[:-1], tokens[1:]
    duration = (tokens >= vocab.DURATION_0) & (tokens <= vocab.DURATION_0 + vocab.MAX_DURATION)
    rest = (tokens == vocab.SEP) | (duration & (before == vocab.SEP))
    pitch = (tokens >= vocab.NOTE_0) & (tokens < vocab.DURATION_0)
    return np.select([rest, pitch, duration], [REST, PITCH, DURATION], OTHER)


def cells(nats: Nats, counted: list[np.ndarray], differences: Sequence[tuple[str, str]] = DIFFERENCES) -> Cells:
    """Nats a token in each arm, and the differences between arms, over the tokens that are counted.

    Args:
        counted: bool [N - 1] for each song.
    """
    counts = np.array([here.sum() for here in counted])
    sums = {arm: np.array([x[here].sum() for x, here in zip(rows, counted, strict=True)]) for arm, rows in nats.items()}
    found: Cells = {arm: ratio(x, counts) for arm, x in sums.items()}
    for one, other in differences:
        if one in sums and other in sums:
            found[arms.less(one, other)] = ratio(sums[one] - sums[other], counts)
    return found


class Songs(NamedTuple):
    """The songs that are read."""

    corpus: Corpus
    which: np.ndarray  # of the corpus
    tapes: list[Tape]
    kinds: list[np.ndarray]  # of each song [N - 1]: the kind of the bar that each token is in

    @property
    def groups(self) -> dict[str, dict[str, list[np.ndarray]]]:
        """Tokens that are counted together: bool [N - 1] for each song."""
        bars = [tape.bar[1:] for tape in self.tapes]
        said = {}
        if not self.corpus.vocabulary.merges:  # a merged token may say several things
            parts = [parts_of(tape.tokens) for tape in self.tapes]
            said = {"by what is said": {name: [x == name for x in parts] for name in (PITCH, DURATION, REST, OTHER)}}
        return {
            **said,
            "by bars": {name: [(x >= low) & (x < high) for x in bars] for name, low, high in BARS},
            "by repetition": {name: [x == name for x in self.kinds] for name in repeats.KINDS},
        }


def read_songs(corpus: Corpus, songs: np.ndarray, reach: int) -> Songs:
    """The songs, and which of their bars come back from beyond `reach` tokens."""
    tapes = [corpus.tape_of(song) for song in songs.tolist()]
    kinds = []
    for song, tape in zip(songs.tolist(), tapes, strict=True):
        of_bars = np.array([*repeats.kinds_of_bars(corpus.song(song), tape.bar, reach), repeats.SPARSE])
        kinds.append(of_bars[np.minimum(tape.bar[1:], len(of_bars) - 1)])
    return Songs(corpus, songs, tapes, kinds)


def score(nats: Nats, songs: Songs, differences: Sequence[tuple[str, str]] = DIFFERENCES) -> dict[str, Any]:
    """All figures that follow from the losses; nats a token where nothing else is said."""
    corpus = songs.corpus
    bits = {arm: np.array([x.sum() for x in rows]) / math.log(2) for arm, rows in nats.items()}
    per = {"note": corpus.notes, "beat": corpus.beats, "second": corpus.seconds}
    return {
        "all": cells(nats, [np.ones(len(x), bool) for x in songs.kinds], differences),
        **{f"bits a {name}": {arm: ratio(x, n[songs.which]) for arm, x in bits.items()} for name, n in per.items()},
        **{
            group: {name: cells(nats, counted, differences) for name, counted in parts.items()}
            for group, parts in songs.groups.items()
        },
    }


def table(name: str, found: dict[str, Any]) -> str:
    """The figures of a run's losses as text."""
    rows = {"bits a note": found["bits a note"], "nats a token": found["all"]}
    rows |= {f"bars {bars}": row for bars, row in found["by bars"].items()}
    rows |= {f"bars, {kind}": row for kind, row in found["by repetition"].items()}
    lines = [name]
    for title, row in rows.items():
        said = [f"    {arm:44} {value}" for arm, value in row.items() if value is not None]
        lines += [f"  {title}", *said] if said else []
    return "\n".join(lines)


def open_runs(runs: Sequence[Path], data: Path) -> tuple[dict[str, Sampler], Corpus]:
    """The newest checkpoint of each run, by its name, and the corpus of all.

    Raises:
        InputError: a run or the corpus can't be used, or they don't fit each other.
    """
    samplers: dict[str, Sampler] = {}
    for run in runs:
        name = run.resolve().name
        if name in samplers:
            raise InputError(f"{run}: another run has the name {name} too; give each run once, and rename one")
        samplers[name] = Sampler.from_run(run)
    corpus = get_corpus(data, runs[0])
    for run, sampler in zip(runs, samplers.values(), strict=True):
        if sampler.vocabulary != corpus.vocabulary:
            raise InputError(f"{data}: has another vocabulary than {run}; give the corpus that it was trained on")
        if sampler.corpus != corpus.fingerprint:
            raise InputError(
                f"{data}: is not what {run} was trained on, or has another split, so its songs may be known; give that"
            )
    return samplers, corpus


def read(sampler: Sampler, songs: Songs) -> tuple[Nats, dict[str, Any], Reader]:
    """The songs read in all arms that there are, and the figures that follow."""
    reader = Reader(sampler.config, sampler.params, sampler.vocabulary)
    usable = [arm for arm in reader.arms if arm != arms.ANOTHER or len(songs.tapes) > 1]
    nats = {arm: reader.nats(songs.tapes, arm) for arm in usable}
    return nats, score(nats, songs), reader


def about(sampler: Sampler) -> dict[str, Any]:
    """What a reader wants to know of a run."""
    data, memory = sampler.config.data, sampler.config.memory
    return {
        "steps": sampler.step,
        "tokens": sampler.step * data.lanes * data.segment * data.segments,
        "parameters": int(sum(x.size for x in jax.tree.leaves(sampler.params))),
        "XL memory": memory.xl,
        "kNN memory": memory.knn,
        "segment": data.segment,
    }


def make_parser() -> Any:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs; the first is compared")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="what they were trained on"
    )
    parser.add_argument("--split", choices=SPLITS[1:], default="test", help="the songs to read")
    parser.add_argument("--songs", type=int, metavar="N", help="read at most so many of them; else all")
    parser.add_argument("--takes", type=int, default=16, metavar="N", help="continue so many of them")
    parser.add_argument("--prompt-bars", type=int, default=8, metavar="N", help="bars of each to begin with")
    parser.add_argument("--bars", type=int, default=32, metavar="N", help="bars to add")
    parser.add_argument("--themes", type=int, default=16, metavar="N", help="themes of the recall probe; 0: none")
    parser.add_argument("--furthest", type=float, default=32, metavar="N", help="its longest filler, in contexts")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report; else the first run's")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    for name, least in {"songs": 1, "takes": 1, "prompt_bars": 1, "bars": 1, "themes": 0, "furthest": 0.5}.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: give at least {least}")
    if args.themes == 1:
        raise InputError("--themes 1: another theme is the control; give at least 2, or 0")
    out = args.out or args.runs[0]
    files.check_writable(out / "report.html")
    keep_programs()
    samplers, corpus = open_runs(args.runs, args.data)
    index = corpus.songs_of(args.split)[: args.songs]
    if len(index) == 0:
        raise InputError(f"{args.data}: no song fell to the {args.split} split; give --split validation, or more songs")
    reach = max(sampler.config.memory.xl + sampler.config.data.segment for sampler in samplers.values())
    songs = read_songs(corpus, index, reach)
    begun = likeness.begin_songs(corpus, index, args.takes, prompt_bars=args.prompt_bars, bars=args.bars)
    themes = None
    if args.themes:
        themes = find_themes([corpus.song(i) for i in index.tolist()], args.themes, seed=args.seed)

    runs: dict[str, dict[str, Any]] = {}
    whole: Nats = {}  # with all that a run remembers
    pairs: dict[str, list[Pair]] = {}
    with tqdm(total=4 * len(samplers), unit="part") as progress:
        for name, sampler in samplers.items():
            progress.set_description(f"{name}: reading")
            nats, losses, reader = read(sampler, songs)
            whole[name] = nats[reader.whole]
            runs[name] = {"about": about(sampler), "losses": losses}
            progress.write(table(name, losses))
            progress.update()
            progress.set_description(f"{name}: looking inside")
            if reader.whole == arms.KNN and sampler.config.memory.backend != "dense":
                some = slice(LOOKED_INSIDE)
                runs[name]["inside"] = look_inside(reader, songs.tapes[some], songs.kinds[some], MATRICES)
            progress.update()
            progress.set_description(f"{name}: recall probe")
            if themes is not None:
                runs[name]["probe"] = probe(sampler, themes, furthest=args.furthest, seed=args.seed)
            progress.update()
            progress.set_description(f"{name}: continuing songs")
            pairs[name] = likeness.continue_songs(sampler, begun, bars=args.bars, seed=args.seed)
            progress.update()
    first, *others = whole
    result = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "midigen_jax.evaluate", *sys.argv[1:]]),
        "environment": environment.environment(PACKAGES),
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "split": args.split,
            "songs": len(index),
            "tokens": int(sum(map(len, songs.kinds))),
            "names": [corpus.names[i] for i in index],
            "tokens by repetition": {kind: int(sum((x == kind).sum() for x in songs.kinds)) for kind in repeats.KINDS},
        },
        "runs": runs,
        "comparison": {
            arms.less(first, other): score({x: whole[x] for x in (first, other)}, songs, [(first, other)])
            for other in others
        },
        "likeness": likeness.likeness(begun, pairs, corpus),
    }
    files.write_text(out / "report.json", json.dumps(result, allow_nan=False) + "\n")
    titles = [corpus.names[one.song] for one in begun]
    pairs[first][0].take.save(out / "sample", title=f"{titles[0]}, continued")
    listened = {name: some[:LISTENED] for name, some in pairs.items()}
    files.write_text(out / "report.html", report.page(result, listened, titles))
    print(f"{out / 'report.html'}: {len(runs)} run{'s' * (len(runs) > 1)}; open it in a browser. Beside it sample.mid")


if __name__ == "__main__":
    cli.run(main)
