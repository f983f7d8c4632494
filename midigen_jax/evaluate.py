"""Scores runs on songs that they were not trained on, and says what their memories are worth.

    python -m midigen_jax.evaluate runs/mine --data corpora/mine
    python -m midigen_jax.evaluate runs/both runs/xl-only runs/none --data corpora/mine --out compared

Each song is read whole from its own empty memory, and again with memories switched off, or with another song's kNN
memory in place of its own. Figures stand with intervals that cover the true value in 95 of 100 collections of songs.
They are printed and written to report.json, in the first run's folder or in --out.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from . import arms, cli, files, repeats, vocab
from .arms import Reader
from .bootstrap import Interval, ratio
from .cli import InputError
from .corpus import SPLITS, Corpus
from .sampler import Sampler
from .train import get_corpus

BARS = (("0 to 15", 0, 16), ("16 to 31", 16, 32), ("32 to 63", 32, 64), ("64 and beyond", 64, math.inf))
# What is compared with what; each difference is below 0 where the first is better.
DIFFERENCES = ((arms.XL, arms.NONE), (arms.KNN, arms.XL), (arms.ANOTHER, arms.XL), (arms.KNN, arms.ANOTHER))
PITCH, DURATION, REST, OTHER = "pitches", "durations", "rests", "others"

Cells = dict[str, Interval | None]


def parts_of(tokens: np.ndarray) -> np.ndarray:
    """What each token but the first says: PITCH, DURATION of a note, REST with its duration, or OTHER."""
    before, tokens = tokens[:-1], tokens[1:]
    duration = (tokens >= vocab.DURATION_0) & (tokens <= vocab.DURATION_0 + vocab.MAX_DURATION)
    rest = (tokens == vocab.SEP) | (duration & (before == vocab.SEP))
    pitch = (tokens >= vocab.NOTE_0) & (tokens < vocab.DURATION_0)
    return np.select([rest, pitch, duration], [REST, PITCH, DURATION], OTHER)


def cells(nats: dict[str, list[np.ndarray]], counted: list[np.ndarray]) -> Cells:
    """Nats a token in each arm, and the differences between arms, over the tokens that are counted.

    Args:
        nats: of each arm, for each song [N - 1].
        counted: bool [N - 1] for each song.
    """
    counts = np.array([here.sum() for here in counted])
    sums = {arm: np.array([x[here].sum() for x, here in zip(rows, counted, strict=True)]) for arm, rows in nats.items()}
    found: Cells = {arm: ratio(x, counts) for arm, x in sums.items()}
    for one, other in DIFFERENCES:
        if one in sums and other in sums:
            found[f"{one} less {other}"] = ratio(sums[one] - sums[other], counts)
    return found


def score(reader: Reader, corpus: Corpus, songs: np.ndarray) -> dict[str, Any]:
    """All figures of a model; nats a token where nothing else is said."""
    usable = [arm for arm in reader.arms if arm != arms.ANOTHER or len(songs) > 1]
    nats = {arm: reader.nats(corpus, songs, arm) for arm in usable}
    data = reader.config.data
    reach = reader.config.memory.xl + data.segment
    bars = [np.asarray(corpus.bar[corpus.offsets[song] : corpus.offsets[song + 1]]) for song in songs]
    parts = [parts_of(corpus.tokens_of(song)) for song in songs.tolist()]
    kinds = []
    for song, bar in zip(songs.tolist(), bars, strict=True):
        of_bars = np.array([*repeats.kinds_of_bars(corpus.song(song), bar, reach), repeats.SPARSE])
        kinds.append(of_bars[np.minimum(bar[1:], len(of_bars) - 1)])

    bits = {arm: np.array([x.sum() for x in rows]) / math.log(2) for arm, rows in nats.items()}
    per = {"note": corpus.notes, "beat": corpus.beats, "second": corpus.seconds}
    said = (PITCH, DURATION, REST, OTHER)
    return {
        "songs": len(songs),
        "tokens": sum(map(len, parts)),
        "all": cells(nats, [np.ones(len(x), bool) for x in parts]),
        **{f"bits a {name}": {arm: ratio(x, count[songs]) for arm, x in bits.items()} for name, count in per.items()},
        "by what is said": {part: cells(nats, [x == part for x in parts]) for part in said},
        "by bars": {name: cells(nats, [(x[1:] >= low) & (x[1:] < high) for x in bars]) for name, low, high in BARS},
        "by repetition": {kind: cells(nats, [x == kind for x in kinds]) for kind in repeats.KINDS},
        "tokens by repetition": {kind: int(sum((x == kind).sum() for x in kinds)) for kind in repeats.KINDS},
    }


def table(scores: dict[str, dict[str, Any]]) -> str:
    """The figures of runs as text."""
    lines = []
    for run, found in scores.items():
        lines += [f"{run}: {found['songs']} songs, {found['tokens']:,} tokens"]
        rows = {"bits a note": found["bits a note"], "nats a token": found["all"]}
        rows |= {f"bars {name}": row for name, row in found["by bars"].items()}
        rows |= {f"bars, {kind}": row for kind, row in found["by repetition"].items()}
        for name, row in rows.items():
            lines += [f"  {name}"] + [f"    {arm:44} {value}" for arm, value in row.items() if value is not None]
    return "\n".join(lines)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="what they were trained on"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="the songs to read")
    parser.add_argument("--songs", type=int, metavar="N", help="at most so many of them; else all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for report.json; else the first run's")
    args = parser.parse_args()
    if args.songs is not None and args.songs < 1:
        raise InputError(f"--songs {args.songs}: give at least 1")
    scores = {}
    for run in args.runs:
        sampler = Sampler.from_run(run)
        corpus = get_corpus(args.data, run)
        if corpus.vocabulary != sampler.vocabulary:
            raise InputError(f"{args.data}: has another vocabulary than {run}; give the corpus that it was trained on")
        songs = corpus.songs_of(args.split)[: args.songs]
        if len(songs) == 0:
            raise InputError(
                f"{args.data}: no song fell to the {args.split} split; give --split validation, or more songs"
            )
        scores[str(run)] = score(Reader(sampler.config, sampler.params, sampler.vocabulary), corpus, songs)
        print(table({str(run): scores[str(run)]}), flush=True)
    path = (args.out or args.runs[0]) / "report.json"
    files.write_text(path, json.dumps({"split": args.split, "runs": scores}, indent=1) + "\n")
    print(f"{path}: {len(scores)} run{'s' * (len(scores) > 1)}")


if __name__ == "__main__":
    cli.run(main)
