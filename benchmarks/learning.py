"""Learning side by side: this project and its rivals, on the same songs and split, at equal tokens, time and notes.

    python benchmarks/learning.py --data CORPUS_OR_MIDI_DIR

Each trains as it is meant to, with its own batches, optimizer, learning rate and schedule, which ends with the
training: this project's as in its config, MIDIGen's as its author has them, the others' as `_rivals` says. A rival
trains once for each of three budgets, as far as these differ: as many tokens as this project; as long; and as many
notes, which matters where another tokeniser writes more or fewer tokens for a note.

Time is counted by steps that are timed in turn with this project's, with its memory full, so that trainings of
different days compare: `seconds` are what this project's first timing makes of them, compilation included and
evaluation left out. `measured_seconds` is what the training really took.

All are evaluated on whole songs: a few validation songs during training, the test songs at its end. Bits are those of
every token but sos; notes and beats are those that the tokens decode to. The floors need no training (`_ngrams`).

Every run is kept as soon as it is done, and runs that are in the file are not repeated: to train a contestant again,
remove it from the file. The trained models are written to --workdir, from where continuations.py continues songs with
them.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import _ngrams
import _ours
import _shared
import jax
import numpy as np
from _miditok import retokenized
from _ours import Ours, batch_tokens, batches_of, circumstances
from _rivals import RIVALS, Batch, targets_of, training_batches
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.run import runtime, trained
from midigen_jax.training import losses

OURS, BASELINE = "this project", "MIDIGen (PyTorch)"
NEEDS = {OURS: (), BASELINE: ("torch",)} | {name: ("torch", *rival.needs) for name, rival in RIVALS.items()}
PACKAGES = ("torch", "x-transformers", "transformers", "miditok")  # whose versions are kept
BUDGETS = ("tokens", "seconds", "notes")
POINTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the training, at which validation songs are read
WARM_TOKENS = 40_000  # trained on before steps are timed, so that memories are full
ENDLESS = 1_000_000  # steps
TIMED = 15  # steps of each side, in turn


class Contestant(NamedTuple):
    """One in training."""

    corpus: Corpus  # in its tokens
    batches: Iterator[Batch]
    step: Callable[[Batch, float], Any]  # one optimizer step, given the share of the training that is done
    loss: Callable[[np.ndarray], float]  # total loss in nats of these songs
    parameters: int
    save: Callable[[Path], None] | None


def ours(config: cfg.Config, corpus: Corpus) -> Contestant:
    side = Ours(config, corpus.vocabulary)
    return Contestant(
        corpus,
        batches_of(config, corpus, ENDLESS),
        lambda batch, _: side.step(batch),
        lambda songs: side.loss(corpus, songs),
        sum(x.size for x in jax.tree.leaves(side.state.params)),
        lambda path: trained.export(path, side.model(corpus)),
    )


def baseline(config: cfg.Config, corpus: Corpus) -> Contestant:
    """Its blocks are as long as our XL memory, as its author had them; shorter ones would leave out more songs."""
    import _midigen
    import _midigen_training
    import torch

    sizes = dataclasses.replace(_midigen.sizes_of(config, corpus.vocabulary), block=config.memory.xl)
    songs = corpus.songs_of("train")
    kept = _midigen_training.short_songs(corpus, songs, sizes)
    print(f"of {len(songs)} training songs MIDIGen leaves out {len(songs) - len(kept)}, which are too long for it")
    side = _midigen_training.Baseline(sizes, device="cuda" if torch.cuda.is_available() else "cpu")
    return Contestant(
        corpus,
        _midigen_training.training_batches(corpus, songs, sizes),
        lambda batch, _: side.step(batch),
        lambda songs: _midigen_training.evaluate(side.model, corpus, songs),
        sum(x.numel() for x in side.model.parameters()),
        None,
    )


def rival(name: str, config: cfg.Config, corpus: Corpus) -> Contestant:
    import _windowed

    side = _windowed.Learner(name, config, corpus.vocabulary)
    return Contestant(
        corpus,
        training_batches(corpus, config, side.window),
        side.step,
        lambda songs: side.loss(corpus, songs),
        sum(x.numel() for x in side.model.parameters()),
        lambda path: side.save(path, corpus),
    )


def maker_of(name: str, config: cfg.Config, corpus: Corpus) -> Callable[[], Contestant]:
    """Each call makes the contestant anew; its songs are put in its tokens once."""
    if name in (OURS, BASELINE):
        return lambda: (ours if name == OURS else baseline)(config, corpus)
    if tokenizer := RIVALS[name].tokenizer:
        corpus = retokenized(corpus, tokenizer)
    return lambda: rival(name, config, corpus)


class Pace(NamedTuple):
    start_seconds: float  # what the first step takes longer: compilation
    seconds_per_token: float


def step(contestant: Contestant, progress: float) -> tuple[float, int]:
    """One step, its batch included: its seconds, and the tokens that it taught."""
    began = perf_counter()
    batch = next(contestant.batches)
    contestant.step(batch, progress)
    return perf_counter() - began, targets_of(batch)


def warm(contestant: Contestant) -> float:
    """Trains until its memories are full; what its first step took."""
    first, seen = step(contestant, 0.0)
    while seen < WARM_TOKENS:
        seen += step(contestant, 0.0)[1]
    return first


class Clock:
    """This project in training, beside which the others are timed."""

    def __init__(self, contestant: Contestant):
        self.contestant, self.first = contestant, warm(contestant)

    def pace(self) -> Pace:
        """This project's own."""
        seconds, tokens = zip(*(step(self.contestant, 0.0) for _ in range(TIMED)), strict=True)
        return Pace(max(self.first - float(np.median(seconds)), 0.0), float(np.median(np.divide(seconds, tokens))))

    def pace_of(self, other: Contestant, own: Pace) -> Pace:
        """Another's, if this project's is `own`."""
        first = warm(other)
        pairs = [(step(self.contestant, 0.0), step(other, 0.0)) for _ in range(TIMED)]
        ratios = [theirs[0] / theirs[1] / (ours[0] / ours[1]) for ours, theirs in pairs]
        start = first - float(np.median([theirs[0] for _, theirs in pairs]))
        return Pace(max(start, 0.0), float(np.median(ratios)) * own.seconds_per_token)


def budgets_of(tokens: int, pace: Pace, own: Pace, tokens_per_note: float, own_per_note: float) -> dict[int, list[str]]:
    """How many tokens a contestant trains on for each budget; budgets of as many tokens are one."""
    seconds = own.start_seconds + tokens * own.seconds_per_token
    amounts = {
        "tokens": tokens,
        "seconds": round((seconds - pace.start_seconds) / pace.seconds_per_token),
        "notes": round(tokens / own_per_note * tokens_per_note),
    }
    found: dict[int, list[str]] = {}
    for budget, amount in amounts.items():
        found.setdefault(max(amount, 1), []).append(budget)
    return found


def tokens_per_note(corpus: Corpus) -> float:
    songs = corpus.songs_of("train")
    return float((np.diff(corpus.offsets)[songs].sum() - len(songs)) / corpus.notes[songs].sum())


def train(contestant: Contestant, total: int, pace: Pace, few: int) -> dict[str, Any]:
    """Trains on so many tokens; reads a few validation songs on the way and all test songs at the end."""
    corpus, seen, reached, measured = contestant.corpus, 0, 0, 0.0
    songs, test, curve = corpus.songs_of("validation")[:few], corpus.songs_of("test"), []
    with tqdm(total=total, unit="token", unit_scale=True) as bar:
        while seen < total:
            seconds, tokens = step(contestant, seen / total)
            seen, measured = seen + tokens, measured + seconds
            bar.update(tokens)
            passed = sum(seen >= point * total for point in POINTS)
            if passed > reached:
                reached, figures = passed, losses.figures(contestant.loss(songs), corpus, songs)
                curve.append(
                    {
                        "tokens": seen,
                        "seconds": pace.start_seconds + seen * pace.seconds_per_token,
                        "notes": round(seen / tokens_per_note(corpus)),
                        "bits_per_note": figures.bits_per_note,
                        "bits_per_beat": figures.bits_per_beat,
                    }
                )
                tqdm.write(f"{seen:>10,} tokens: {figures} ({len(songs)} validation songs)")
    figures = losses.figures(contestant.loss(test), corpus, test)
    tqdm.write(f"{'test':>17}: {figures} ({len(test)} songs)")
    return {"curve": curve, "test": figures._asdict(), "measured_seconds": measured}


def floors(corpus: Corpus) -> dict[str, Any]:
    """Test figures of what needs no training."""
    training, validation, test = (corpus.songs_of(split) for split in ("train", "validation", "test"))
    ngrams = _ngrams.nats(corpus, validation, test)
    return {
        "bigram": losses.bigram_baseline(corpus, training, test)[1]._asdict(),
        "n-grams": losses.figures(float(sum(x.sum() for x in ngrams)), corpus, test)._asdict(),
    }


def seconds_to(curve: list[dict[str, Any]], bits_per_note: float) -> str:
    """When a curve first is as low, between its points by interpolation."""

    def rounded(seconds: float) -> str:
        return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"

    if curve[0]["bits_per_note"] <= bits_per_note:
        return f"below {rounded(curve[0]['seconds'])}"
    for before, after in pairwise(curve):
        if after["bits_per_note"] <= bits_per_note:
            share = (before["bits_per_note"] - bits_per_note) / (before["bits_per_note"] - after["bits_per_note"])
            return rounded(before["seconds"] + share * (after["seconds"] - before["seconds"]))
    return "not reached"


def file_name(contestant: str, equal: list[str]) -> str:
    """Of a trained model in the working folder."""
    words = re.findall(r"[a-z0-9]+", f"{contestant} {' '.join(equal)}".lower().replace(",", ""))
    return f"learning-{'-'.join(words)}.safetensors"


def run_of(row: dict[str, Any], budget: str) -> dict[str, Any] | None:
    return next((run for run in row["runs"] if budget in run["equal"]), None)


def print_table(result: dict[str, Any]) -> None:
    rows = result["contestants"]
    ends = run_of(rows[BASELINE], "tokens") if BASELINE in rows else None
    columns = [f"bits per note, equal {budget}" for budget in BUDGETS]
    columns += ["bits per beat, equal tokens", "tokens per second", f"seconds to the loss of {BASELINE}"]
    print(f"\n| {result['test_songs']} test songs | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name in [x for x in NEEDS if x in rows]:
        runs = [run_of(rows[name], budget) for budget in BUDGETS]
        cells = ["" if run is None else f"{run['test']['bits_per_note']:.2f}" for run in runs]
        cells.append("" if runs[0] is None else f"{runs[0]['test']['bits_per_beat']:.2f}")
        cells.append(f"{1 / rows[name]['seconds_per_token']:,.0f}")
        cells.append(seconds_to(runs[0]["curve"], ends["curve"][-1]["bits_per_note"]) if ends and runs[0] else "")
        print(f"| {name} | {' | '.join(cells)} |")
    for name, figures in result["floors"].items():
        print(f"| {name}, not trained | {figures['bits_per_note']:.2f} | | | {figures['bits_per_beat']:.2f} | | |")


def new_row(contestant: str, timed: Contestant, pace: Pace, own: Pace, corpus: Corpus, tokens: int) -> dict[str, Any]:
    """A contestant that is to be trained, this project on so many tokens of its corpus."""
    budgets = budgets_of(tokens, pace, own, tokens_per_note(timed.corpus), tokens_per_note(corpus))
    return {
        "parameters": timed.parameters,
        "settings": RIVALS[contestant]._asdict() if contestant in RIVALS else {},
        **pace._asdict(),
        "budgets": [{"tokens": tokens, "equal": equal} for tokens, equal in budgets.items()],
        "runs": [],
    }


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(NEEDS), metavar="CONTESTANT", help=", ".join(NEEDS))
    parser.add_argument("--tokens", type=int, help="tokens that this project trains on, if not as its config says")
    parser.add_argument("--songs", type=int, default=20, help="validation songs during training")
    args = parser.parse_args()
    if args.results == _shared.RESULTS and not _shared.has_defaults(parser, args, "set", "tokens", "songs"):
        raise InputError("the settings are not the benchmark's own; give another folder with --results")
    runtime.retain_freed_memory()
    corpus, config = open_or_encode(args.data, args.workdir), cfg.override(cfg.load(args.config), args.set)
    if args.tokens:
        config = cfg.override(config, [f"train.steps={-(-args.tokens // batch_tokens(config))}"])
    name = f"learning-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    path, now = args.results / f"{name}.json", circumstances(config, corpus, *PACKAGES)

    def load() -> dict[str, Any]:
        """Reads the file again each time: another process may train other contestants."""
        found = json.loads(path.read_text()) if path.is_file() else {}
        if "contestants" not in found:
            return {**now, "test_songs": len(corpus.songs_of("test")), "contestants": {}}
        if any(found[x] != now[x] for x in ("config", "corpus")):
            raise InputError(f"{path}: its figures are of another config or corpus; remove the file to begin again")
        return found

    def keep(key: str, value: Any, *, contestant: bool = False) -> None:
        result = load()
        (result["contestants"] if contestant else result)[key] = value
        _shared.save(args.results, name, result)

    if "floors" not in load():
        keep("floors", floors(corpus))
    clock: Clock | None = None
    for contestant in args.only or NEEDS:
        if lacking := [x for x in NEEDS[contestant] if importlib.util.find_spec(x) is None]:
            print(f"{contestant} is left out: not installed: {', '.join(lacking)}")
            continue
        row = load()["contestants"].get(contestant)
        if row and all(run_of(row, budget) for budget in BUDGETS):
            continue
        print(f"{contestant}:", flush=True)
        try:
            make = maker_of(contestant, config, corpus)
            timed = make()
        except InputError as error:
            print(f"{contestant} is left out: {error}")
            continue
        if not row:
            clock = clock or Clock(ours(config, corpus))
            if "pace" not in load():
                keep("pace", clock.pace()._asdict())
            own = Pace(**load()["pace"])
            pace = own if contestant == OURS else clock.pace_of(timed, own)
            row = new_row(contestant, timed, pace, own, corpus, config.train.steps * batch_tokens(config))
            keep(contestant, row, contestant=True)
        pace = Pace(row["start_seconds"], row["seconds_per_token"])
        for budget in row["budgets"]:
            if not run_of(row, budget["equal"][0]):
                print(f"with equal {' and '.join(budget['equal'])}: {budget['tokens']:,} tokens", flush=True)
                side = make()
                run = {"equal": budget["equal"], "environment": now["environment"]}
                row["runs"].append(run | train(side, budget["tokens"], pace, args.songs))
                if side.save:
                    side.save(args.workdir / file_name(contestant, budget["equal"]))
                keep(contestant, row, contestant=True)
        print_table(load())
    print_table(load())


if __name__ == "__main__":
    command.run(main)
