"""What each kind of memory is worth: the same decoder trained with each, and what a plain copier adds to it.

    python benchmarks/memories.py --data CORPUS_OR_MIDI_DIR

The rival is a decoder of x-transformers with a window about as long as a song, in place of a memory. How many tokens it
reads in training while our best decoder reads one is kept too.

All read the same songs, tokens and seeds in training, then the test songs, each from its own empty memory; and once
more with the second half of each song in another key, of which the far repeats are counted. The file keeps every song's
losses, so that memories measured on different days can still be compared song by song. Memories that are in the file
already are not measured again, unless --only names them. The trained models are exported to --workdir.
"""

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances, train_model
from _rivals import targets_of, training_batches
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.evaluation import ablations, copying, repeats
from midigen_jax.evaluation.ablations import SongReader
from midigen_jax.evaluation.bootstrap import Interval, ratio
from midigen_jax.evaluation.evaluate import Songs, read_songs
from midigen_jax.music.pitches import fitting_shift
from midigen_jax.music.song import TokenSequence, tokens_of
from midigen_jax.run import runtime, trained
from midigen_jax.run.trained import TrainedModel

MEMORIES: dict[str, list[str]] = {
    "context+alignment": ["memory.retrieval=context+alignment"],
    "context": ["memory.retrieval=context"],
    "alignment": ["memory.retrieval=alignment"],
    "attention": ["memory.retrieval=attention"],
    "attention, three times the tokens": ["memory.retrieval=attention", "train.steps=7200"],
    "attention, gate": ["memory.retrieval=attention", "memory.mixing=gate"],
    "XL": ["memory.knn=0"],
    "XL of 4,096": ["memory.xl=4096", "memory.knn=0"],
}
# What musical positions are worth with each.
MEMORIES |= {
    f"{name}, T5 positions": [*MEMORIES[name], "model.positions=t5"]
    for name in ("context+alignment", "context", "attention", "XL")
}
# Songs that change key teach what finds transposed passages to trust them; what they do for others is a row of its own.
MEMORIES = {name: [*settings, "data.modulate=0"] for name, settings in MEMORIES.items()}
BEST = "context+alignment, songs that change key"  # which the others are compared with
MEMORIES = {BEST: ["memory.retrieval=context+alignment"], "XL, songs that change key": ["memory.knn=0"], **MEMORIES}
RIVAL = "x-transformers, 4,096 tokens"
TIMED = 10  # steps of each side, in turn
ALL, SHIFTED = "all", "transposed within"

Nats = Callable[[list[TokenSequence]], list[np.ndarray]]  # the loss of each token of each song but sos


class Shifted(NamedTuple):
    """Songs whose second half is in another key."""

    sequences: list[TokenSequence]
    counted: list[np.ndarray]  # bool [N - 1] for each song: tokens of bars that repeat far ones in another key


def shifted_songs(songs: Songs, reach: int) -> Shifted:
    """The songs, from their middle on 1 to 11 semitones higher, or lower where that is too high; 0 if neither fits."""
    corpus, sequences, counted = songs.corpus, [], []
    for i, number in enumerate(songs.numbers.tolist()):
        song, shift = corpus.song(number), 1 + i % 11
        middle = song.bar_start(song.bar_of(song.end) // 2)
        notes = song.notes.copy()
        moved = (notes[:, 0] >= middle) & ((notes[:, 3] != vocab.DRUMS) | (not song.scheme.multi))
        pitches = notes[moved, 2]
        notes[moved, 2] += fitting_shift(pitches.min(initial=127), pitches.max(initial=0), shift)
        song = song._replace(notes=notes)
        sequences.append(tokens_of(song, corpus.vocabulary))
        counted.append(repeats.kinds_of_tokens(song, sequences[-1].bar, reach) == repeats.TRANSPOSED)
    return Shifted(sequences, counted)


def train_rival(config: cfg.Config, corpus: Corpus) -> tuple[Nats, int]:
    """What it has learned, and from how many tokens."""
    from _windowed import Learner

    total = config.train.steps * batch_tokens(config)
    side, trained_tokens = Learner(RIVAL, config, corpus.vocabulary), 0
    batches = training_batches(corpus, config, side.window)
    with tqdm(total=total, unit="token", unit_scale=True) as bar:
        while trained_tokens < total:
            batch = next(batches)
            side.step(batch, trained_tokens / total)
            trained_tokens += targets_of(batch)
            bar.update(targets_of(batch))
    return side.nats, trained_tokens


def relative_speed(config: cfg.Config, corpus: Corpus) -> float:
    """How many tokens the rival reads in training while our best decoder reads one."""
    from _windowed import Learner

    ours, rival = cfg.override(config, MEMORIES[BEST]), Learner(RIVAL, config, corpus.vocabulary)
    side = Ours(ours, corpus.vocabulary)
    ratios = []
    for batch, windows in zip(
        batches_of(ours, corpus, 1 + TIMED), training_batches(corpus, config, rival.window), strict=False
    ):
        before = time.perf_counter()
        side.step(batch)
        between = time.perf_counter()
        rival.step(windows, 0.0)
        seconds_of_rival = time.perf_counter() - between
        ratios.append((between - before) / batch_tokens(ours) * targets_of(windows) / seconds_of_rival)
    return float(np.median(ratios[1:]))  # the first step compiles


def read(nats_of: Nats, songs: Songs, shifted: Shifted) -> dict[str, np.ndarray]:
    """Each song's loss in nats: of all tokens and by repetition, with copiers, and with its second half shifted."""
    nats = nats_of(songs.sequences)
    sums = {ALL: sums_of(nats)}
    for kind, counted in songs.groups["by repetition"].items():
        sums[kind] = sums_of(nats, counted)
    sums[SHIFTED] = sums_of(nats_of(shifted.sequences), shifted.counted)
    for copier, levels in songs.copiers.items():
        sums[copying.copied_name(ALL, copier)] = sums_of(copying.with_copying(nats, levels))
    return sums


def read_ours(model: TrainedModel, songs: Songs, shifted: Shifted) -> dict[str, np.ndarray]:
    """The same, and with parts of the memory hidden."""
    reader = SongReader(model)
    sums = read(lambda sequences: reader.nats(sequences, reader.complete), songs, shifted)
    for ablation in [x for x in reader.ablations if x != reader.complete]:
        if ablation != ablations.OTHER_KNN or len(songs.sequences) > 1:
            sums[ablation] = sums_of(reader.nats(songs.sequences, ablation))
    return sums


def sums_of(nats: list[np.ndarray], counted: list[np.ndarray] | None = None) -> np.ndarray:
    """Each song's loss of the tokens that are counted."""
    return np.array([x.sum() if counted is None else x[counted[i]].sum() for i, x in enumerate(nats)])


def counts_of(songs: Songs, shifted: Shifted) -> dict[str, list[int]]:
    """What the losses of each song are divided by."""
    by_kind = {kind: [int(x.sum()) for x in counted] for kind, counted in songs.groups["by repetition"].items()}
    return {
        "notes": songs.corpus.notes[songs.numbers].tolist(),
        ALL: [len(x) for x in songs.kinds],
        **by_kind,
        SHIFTED: [int(x.sum()) for x in shifted.counted],
    }


def bits_per_note(counts: dict[str, list[int]], nats: Any) -> Interval | None:
    return ratio(np.asarray(nats) / np.log(2), np.asarray(counts["notes"]))


def print_tables(result: dict[str, Any]) -> None:
    counts, memories = result["counts"], {name: x["nats"] for name, x in result["memories"].items()}
    with_copiers = [x for x in next(iter(memories.values())) if x.startswith(copying.copied_name(ALL, ""))]
    print(f"\n| bits per note | {' | '.join([ALL, *with_copiers, 'difference from ' + BEST])} |")
    print("|---" * (len(with_copiers) + 3) + "|")
    for name, nats in memories.items():
        cells = [f"{bits_per_note(counts, nats[x])}" for x in (ALL, *with_copiers)]
        if BEST in memories:
            cells.append(f"{bits_per_note(counts, np.subtract(nats[ALL], memories[BEST][ALL]))}")
        print(f"| {name} | {' | '.join(cells)} |")
    groups = [*repeats.KINDS, SHIFTED]
    print(f"\n| nats per token | {' | '.join(groups)} |\n{'|---' * (len(groups) + 1)}|")
    for name, nats in memories.items():
        found = [ratio(np.asarray(nats[group]), np.asarray(counts[group])) for group in groups]
        print(f"| {name} | {' | '.join('-' if x is None else str(x) for x in found)} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=[*MEMORIES, RIVAL], help="these, also if they were measured before"
    )
    parser.add_argument("--trained", action="store_true", help="read the models of an earlier run in --workdir")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    base = cfg.override(cfg.load(args.config), args.set)
    reach = repeats.reach_of(base)
    songs = read_songs(corpus, corpus.songs_of("test"), reach)
    shifted = shifted_songs(songs, reach)
    name = f"memories-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    usual = _shared.has_defaults(parser, args, "set")
    if not usual and args.results == _shared.RESULTS:
        raise InputError("the settings are not the benchmark's own; give another folder with --results")
    path: Path = args.results / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"memories": {}}
    now = circumstances(base, corpus)
    if result.get("corpus", now["corpus"]) != now["corpus"]:
        raise InputError(f"{path}: its figures are of another corpus; remove the file to begin again")
    if "config" in result and cfg.from_flat(result["config"], str(path)) != base:
        raise InputError(f"{path}: its memories had another config; remove the file to begin again")
    result |= {**now, "tokens": base.train.steps * batch_tokens(base), "counts": counts_of(songs, shifted)}
    installed = all(importlib.util.find_spec(x) for x in ("torch", "x_transformers"))
    contestants = [*MEMORIES, RIVAL] if installed else [*MEMORIES]
    for memory in args.only or [x for x in contestants if x not in result["memories"]]:
        print(memory, flush=True)
        row = result["memories"].setdefault(memory, {})
        path_of_model = args.workdir / f"memory-{memory.replace(' ', '-')}.safetensors"
        if memory == RIVAL:
            row["relative_speed"] = relative_speed(base, corpus)
            nats_of, row["tokens"] = train_rival(base, corpus)
            nats = read(nats_of, songs, shifted)
        elif args.trained:
            nats = read_ours(trained.load(path_of_model), songs, shifted)
        else:
            model = train_model(cfg.override(base, MEMORIES[memory]), corpus)
            trained.export(path_of_model, model)
            nats = read_ours(model, songs, shifted)
        row |= {"set": MEMORIES.get(memory, []), "commit": now["environment"]["commit"]}
        row["nats"] = {name: np.round(x, 3).tolist() for name, x in nats.items()}
        _shared.save(args.results, name, result)
        print_tables(result)


if __name__ == "__main__":
    command.run(main)
