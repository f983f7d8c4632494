"""The evaluation of runs: losses by ablation, the recall probe, generated music, and the report of all of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from .. import files
from ..data.corpus import Corpus
from ..data.encode import open_or_encode
from ..data.folders import is_corpus
from ..errors import InputError
from ..music.song import Song, TokenSequence
from ..run import environment, trained
from ..run.trained import TrainedModel
from ..sampling.sampler import Sampler
from ..vocab import SOUNDS, Kind, Vocabulary
from . import ablations, copying, generation_metrics, listening, originality, repeats, report, takes
from .ablations import SongReader, difference_name
from .bootstrap import Interval, ratio
from .generation_metrics import EXCERPTS, EvaluationPrompt, Pair
from .recall_probe import Themes, find_themes, probe
from .retrieval_analysis import analyse_retrieval
from .targets import targets

BARS = (("0 to 15", 0, 16), ("16 to 31", 16, 32), ("32 to 63", 32, 64), ("64 and beyond", 64, math.inf))
# Differences in loss, each below 0 where the first is better.
DIFFERENCES = (
    (ablations.XL, ablations.NONE),
    (ablations.KNN, ablations.XL),
    (ablations.OTHER_KNN, ablations.XL),
    (ablations.KNN, ablations.OTHER_KNN),
)
PITCH, DURATION, REST, OTHER = "pitches", "durations", "rests", "others"
MATRICES, PLAYED = 3, 3  # songs whose bar matrices are drawn, and whose continuations the report plays
ANALYSED = 32  # songs at most whose retrieval is analysed
PACKAGES = ("jax", "flax", "numpy", "faiss-cpu", "faiss-gpu")

Nats = dict[str, list[np.ndarray]]  # by ablation or run, for each song [N - 1]
MeanLosses = dict[str, Interval | None]


@dataclass(frozen=True)
class Options:
    split: str = "test"
    max_songs: int | None = None
    continuations: int = 16
    prompt_bars: int = 8
    bars: int = 32
    themes: int = 16  # 0: no recall probe
    furthest: float = 32  # the longest filler, in contexts
    long_takes: int = 16  # without a prompt, and as many with one; 0: none
    long_bars: int = 64
    checkpoints: int = 4  # of each run, at most, in the originality curve
    listening: int = 8  # songs on the listening page; 0: no page
    seed: int = 0


def token_types(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The type of each base token but the first: PITCH, DURATION of a note, REST or other token of time, or OTHER."""
    kinds = vocabulary.kinds[tokens]
    before, kinds = kinds[:-1], kinds[1:]
    duration = kinds == Kind.DURATION
    passing = np.isin(kinds, (Kind.REST, Kind.SHIFT, Kind.BAR, Kind.POSITION))
    return np.select(
        [passing | (duration & (before == Kind.REST)), np.isin(kinds, SOUNDS), duration], [REST, PITCH, DURATION], OTHER
    )


def mean_losses(
    nats: Nats, counted: list[np.ndarray], differences: Sequence[tuple[str, str]] = DIFFERENCES
) -> MeanLosses:
    """Nats per token in each ablation, and the differences between them, over the tokens that are counted.

    Args:
        counted: bool [N - 1] for each song.
    """
    counts = np.array([here.sum() for here in counted])
    sums = {
        name: np.array([x[here].sum() for x, here in zip(rows, counted, strict=True)]) for name, rows in nats.items()
    }
    found: MeanLosses = {name: ratio(x, counts) for name, x in sums.items()}
    for one, other in differences:
        if one in sums and other in sums:
            found[difference_name(one, other)] = ratio(sums[one] - sums[other], counts)
    return found


class Songs(NamedTuple):
    """The songs that are read."""

    corpus: Corpus
    numbers: np.ndarray  # in the corpus
    sequences: list[TokenSequence]
    kinds: list[np.ndarray]  # for each song [N - 1]: the kind of the bar that each token is in
    copiers: dict[str, list[list[copying.Level]]]  # by name, for each song

    @property
    def groups(self) -> dict[str, dict[str, list[np.ndarray]]]:
        """Tokens that are counted together: bool [N - 1] for each song."""
        bars = [sequence.bar[1:] for sequence in self.sequences]
        by_type = {}
        if not self.corpus.vocabulary.merges:  # a merged token may be of several types
            types = [token_types(sequence.tokens, self.corpus.vocabulary) for sequence in self.sequences]
            by_type = {"by token type": {name: [x == name for x in types] for name in (PITCH, DURATION, REST, OTHER)}}
        return {
            **by_type,
            "by bars": {name: [(x >= low) & (x < high) for x in bars] for name, low, high in BARS},
            "by repetition": {name: [x == name for x in self.kinds] for name in repeats.KINDS},
        }


def read_songs(corpus: Corpus, index: np.ndarray, reach: int) -> Songs:
    """The songs, and which of their bars are repeats.

    Args:
        reach: in tokens; what was read longer ago is far (`repeats.kinds_of_bars`).
    """
    sequences = [corpus.sequence_of(song) for song in index.tolist()]
    kinds = [
        repeats.kinds_of_tokens(corpus.song(song), sequence.bar, reach)
        for song, sequence in zip(index.tolist(), sequences, strict=True)
    ]
    levels = [copying.copiers(sequence.tokens, corpus.vocabulary) for sequence in sequences]
    copiers = {name: [of_song[name] for of_song in levels] for name in levels[0]} if levels else {}
    return Songs(corpus, index, sequences, kinds, copiers)


def score(nats: Nats, songs: Songs, differences: Sequence[tuple[str, str]] = DIFFERENCES) -> dict[str, Any]:
    """All figures that follow from the losses, in nats per token unless a name says otherwise."""
    corpus = songs.corpus
    bits = {name: np.array([x.sum() for x in rows]) / math.log(2) for name, rows in nats.items()}
    units = {"note": corpus.notes, "beat": corpus.beats, "second": corpus.seconds}
    return {
        "all": mean_losses(nats, [np.ones(len(x), bool) for x in songs.kinds], differences),
        **{
            f"bits per {unit}": {name: ratio(x, n[songs.numbers]) for name, x in bits.items()}
            for unit, n in units.items()
        },
        **{
            group: {name: mean_losses(nats, counted, differences) for name, counted in parts.items()}
            for group, parts in songs.groups.items()
        },
    }


def table(name: str, scores: dict[str, Any]) -> str:
    """The scores of a run as text."""
    rows = {"bits per note": scores["bits per note"], "nats per token": scores["all"]}
    rows |= {f"bars {bars}": row for bars, row in scores["by bars"].items()}
    rows |= {f"bars, {kind}": row for kind, row in scores["by repetition"].items()}
    lines = [name]
    for title, row in rows.items():
        values = [f"    {ablation:44} {value}" for ablation, value in row.items() if value is not None]
        lines += [f"  {title}", *values] if values else []
    return "\n".join(lines)


def open_runs(runs: Sequence[Path], data: Path) -> tuple[dict[str, TrainedModel], Corpus]:
    """The newest checkpoint of each run, or an exported model, by its name, and the corpus that they share.

    Raises:
        InputError: a run or the corpus can't be used, or they don't belong together.
    """
    models: dict[str, TrainedModel] = {}
    for run in runs:
        name = run.resolve().stem if run.is_file() else run.resolve().name
        if name in models:
            raise InputError(f"{run}: another run has the name {name} too; give each run once, and rename one")
        models[name] = trained.load(run)
    if not is_corpus(data) and not is_corpus(runs[0] / "corpus"):
        raise InputError(f"{data}: no corpus; give the one that {runs[0]} was trained on")
    corpus = open_or_encode(data, runs[0])
    for run, model in zip(runs, models.values(), strict=True):
        if model.vocabulary != corpus.vocabulary:
            raise InputError(f"{data}: has another vocabulary than {run}; give the corpus that it was trained on")
        if model.corpus != corpus.fingerprint:
            raise InputError(
                f"{data}: is not the corpus that {run} was trained on, or is split differently, so {run} may have been "
                "trained on its test songs; give that corpus"
            )
    return models, corpus


def about(model: TrainedModel) -> dict[str, Any]:
    """The size of a model and of its training."""
    data, memory = model.config.data, model.config.memory
    return {
        "steps": model.step,
        "tokens": model.step * data.lanes * data.segment * data.segments,
        "parameters": int(sum(x.size for x in jax.tree.leaves(model.params))),
        "XL memory": memory.xl,
        "kNN memory": memory.knn,
        "segment": data.segment,
    }


class Measured(NamedTuple):
    """The results of one run."""

    figures: dict[str, Any]
    nats: Nats  # with all memories, by what was copied: "" for nothing
    pairs: list[Pair]
    long_takes: dict[str, Any] | None
    older: dict[int, list[Song]]  # by step: the same songs, continued by earlier checkpoints


class Prompts(NamedTuple):
    """What is continued."""

    continued: list[EvaluationPrompt]
    long: list[EvaluationPrompt]
    limits: takes.Limits


def measure(
    name: str,
    model: TrainedModel,
    songs: Songs,
    themes: Themes | None,
    prompts: Prompts,
    options: Options,
    progress: tqdm,
) -> Measured:
    """All that is measured of one run."""
    progress.set_description(f"{name}: reading songs")
    reader = SongReader(model)
    usable = [x for x in reader.ablations if x != ablations.OTHER_KNN or len(songs.sequences) > 1]
    nats = {ablation: reader.nats(songs.sequences, ablation) for ablation in usable}
    progress.set_description(f"{name}: copying")
    copied = {"": nats[reader.complete]}
    copied |= {copier: copying.with_copying(copied[""], levels) for copier, levels in songs.copiers.items()}
    with_copier = {copying.copied_name(reader.complete, copier): x for copier, x in copied.items() if copier}
    differences = (*DIFFERENCES, *((copier, reader.complete) for copier in with_copier))
    figures: dict[str, Any] = {"about": about(model), "losses": score(nats | with_copier, songs, differences)}
    figures["complete"] = reader.complete
    progress.write(table(name, figures["losses"]))
    progress.update()
    progress.set_description(f"{name}: analysing the retrieval")
    if reader.complete == ablations.KNN and model.config.memory.backend != "dense":
        sequences, kinds = songs.sequences[:ANALYSED], songs.kinds[:ANALYSED]
        figures["retrieval analysis"] = analyse_retrieval(reader, sequences, kinds, MATRICES)
    progress.update()
    progress.set_description(f"{name}: recall probe")
    sampler = Sampler(model)
    if themes is not None:
        figures["probe"] = probe(sampler, themes, furthest=options.furthest, seed=options.seed)
    progress.update()
    progress.set_description(f"{name}: continuing songs")
    pairs = generation_metrics.continue_songs(sampler, prompts.continued, bars=options.bars, seed=options.seed)
    progress.update()
    progress.set_description(f"{name}: long takes")
    long_takes = None
    if options.long_takes:
        num, bars = options.long_takes, options.long_bars
        long_takes = takes.write_takes(sampler, prompts.long, num, prompts.limits, bars=bars, seed=options.seed)
    progress.update()
    progress.set_description(f"{name}: continuing songs at earlier checkpoints")
    older = originality.continue_at_steps(
        sampler, prompts.continued, options.checkpoints - 1, bars=options.bars, seed=options.seed
    )
    progress.update()
    return Measured(figures, copied, pairs, long_takes, older)


def evaluate(runs: Sequence[Path], data: Path, out: Path, options: Options, *, command: str) -> None:
    """Measures all runs and writes the report, its figures and a sample to `out`.

    Args:
        command: the command line, for the report.

    Raises:
        InputError: a run or the corpus can't be used, or has too few songs.
    """
    here = environment.environment(PACKAGES)  # first, since the source may change meanwhile
    models, corpus = open_runs(runs, data)
    index = corpus.songs_of(options.split)[: options.max_songs]
    if len(index) == 0:
        raise InputError(f"{data}: the {options.split} split has no songs; give --split validation, or more songs")
    reach = max(repeats.reach_of(model.config) for model in models.values())
    songs = read_songs(corpus, index, reach)
    continued, long = (
        generation_metrics.choose_prompts(corpus, index, num, prompt_bars=options.prompt_bars, bars=bars) if num else []
        for num, bars in ((options.continuations, options.bars), (options.long_takes, options.long_bars))
    )
    prompts = Prompts(continued, long, takes.limits_of(corpus, index))
    themes = None
    if options.themes:
        themes = find_themes([corpus.song(i) for i in index.tolist()], options.themes, seed=options.seed)
    with tqdm(total=6 * len(models), unit="part") as progress:
        measured = {
            name: measure(name, model, songs, themes, prompts, options, progress) for name, model in models.items()
        }
    nats, pairs = ({name: getattr(x, what) for name, x in measured.items()} for what in ("nats", "pairs"))
    first, *others = measured
    metrics = generation_metrics.compare_with_real(continued, pairs, corpus, bars=options.bars)
    long_takes = None
    if options.long_takes:
        long_takes = {
            "bars": options.long_bars,
            "limits": prompts.limits._asdict(),
            "songs": takes.describe_songs(corpus, index, long, prompts.limits, bars=options.long_bars),
            "written": {name: x.long_takes for name, x in measured.items()},
        }
    result = {
        "date": date.today().isoformat(),
        "command": command,
        "environment": here,
        "corpus": {
            "fingerprint": corpus.fingerprint,
            "split": options.split,
            "songs": len(index),
            "tokens": int(sum(map(len, songs.kinds))),
            "names": [corpus.names[i] for i in index],
            "reach": reach,
            "tokens by repetition": {kind: int(sum((x == kind).sum() for x in songs.kinds)) for kind in repeats.KINDS},
        },
        "runs": {name: x.figures for name, x in measured.items()},
        "comparison": {
            difference_name(first, other): score({x: nats[x][""] for x in (first, other)}, songs, [(first, other)])
            for other in others
        },
        "comparison with copiers": {
            difference_name(first, name): score({first: nats[first][""], name: x}, songs, [(first, name)])
            for other in measured
            for name, x in ((copying.copied_name(other, copier), x) for copier, x in nats[other].items() if copier)
        },
        "generation metrics": metrics,
        "long takes": long_takes,
        "targets": {name: [x._asdict() for x in targets(name, metrics, long_takes)] for name in measured},
        "originality": originality.curves(
            {name: x.older for name, x in measured.items()},
            {name: (models[name].step, found.get(EXCERPTS, [])) for name, found in metrics["written"].items()},
            metrics["real"].get(EXCERPTS, []),
            corpus,
        ),
    }
    files.write_text(out / "report.json", json.dumps(result, allow_nan=False) + "\n")
    titles = [corpus.names[prompt.song] for prompt in continued]
    pairs[first][0].continuation.save(out / "sample", title=f"{titles[0]}, continued")
    played = {name: some[:PLAYED] for name, some in pairs.items()}
    files.write_text(out / "report.html", report.page(result, played, titles))
    if options.listening:
        heard = {name: some[: options.listening] for name, some in pairs.items()}
        files.write_text(out / "listening.html", listening.page(heard, corpus, titles, seed=options.seed))
