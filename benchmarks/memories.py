"""What each kind of memory is worth: the same decoder trained with each, and what a plain copier adds to it.

    python benchmarks/memories.py --data CORPUS_OR_MIDI_DIR

All read the same songs, tokens and seeds in training, then the test songs, each from its own empty memory. The file
keeps every song's losses, so that memories measured on different days can still be compared song by song. Memories that
are in the file already are not measured again, unless --only names them. The trained models are exported to --workdir.
"""

import json
import time
from pathlib import Path
from typing import Any

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.evaluation import ablations, copying, repeats
from midigen_jax.evaluation.ablations import SongReader
from midigen_jax.evaluation.bootstrap import Interval, ratio
from midigen_jax.evaluation.evaluate import Songs, read_songs
from midigen_jax.run import runtime
from midigen_jax.run.trained import TrainedModel, export

BEST = "context+alignment"  # which the others are compared with
MEMORIES = {
    BEST: ["memory.retrieval=context+alignment"],
    "context": ["memory.retrieval=context"],
    "alignment": ["memory.retrieval=alignment"],
    "attention": ["memory.retrieval=attention"],
    "attention, gate": ["memory.retrieval=attention", "memory.mixing=gate"],
    "attention+alignment": ["memory.retrieval=attention+alignment"],
    "XL": ["memory.knn=0"],
    "XL of 1,024": ["memory.xl=1024", "memory.knn=0"],
    "XL of 4,096": ["memory.xl=4096", "memory.knn=0"],
    "none": ["memory.xl=0", "memory.knn=0"],
}
ALL = "all"


def train(config: cfg.Config, corpus: Corpus) -> tuple[TrainedModel, float]:
    """The trained model, and the median seconds of a step."""
    side, seconds = Ours(config, corpus.vocabulary), []
    for batch in tqdm(batches_of(config, corpus, config.train.steps), total=config.train.steps, unit="step"):
        began = time.perf_counter()
        side.step(batch)
        seconds.append(time.perf_counter() - began)
    model = TrainedModel(config, side.state.params, corpus.vocabulary, step=config.train.steps)
    return model, float(np.median(seconds))


def read(model: TrainedModel, songs: Songs) -> dict[str, list[float]]:
    """Each song's loss in nats: of all tokens and by repetition, with copiers, and in the other ablations."""
    reader = SongReader(model)
    nats = reader.nats(songs.sequences, reader.complete)
    sums = {ALL: [float(x.sum()) for x in nats]}
    for kind, counted in songs.groups["by repetition"].items():
        sums[kind] = [float(x[here].sum()) for x, here in zip(nats, counted, strict=True)]
    for copier, levels in songs.copiers.items():
        copied = copying.with_copying(nats, levels)
        sums[copying.copied_name(ALL, copier)] = [float(x.sum()) for x in copied]
    for ablation in set(reader.ablations) - {reader.complete}:
        if ablation != ablations.OTHER_KNN or len(songs.sequences) > 1:
            sums[ablation] = [float(x.sum()) for x in reader.nats(songs.sequences, ablation)]
    return {name: np.round(x, 3).tolist() for name, x in sums.items()}


def counts_of(songs: Songs) -> dict[str, list[int]]:
    """What the losses of each song are divided by."""
    by_kind = {kind: [int(x.sum()) for x in counted] for kind, counted in songs.groups["by repetition"].items()}
    return {
        "notes": songs.corpus.notes[songs.numbers].tolist(),
        ALL: [len(x) for x in songs.kinds],
        **by_kind,
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
    print(f"\n| nats per token | {' | '.join(repeats.KINDS)} |\n{'|---' * (len(repeats.KINDS) + 1)}|")
    for name, nats in memories.items():
        found = [ratio(np.asarray(nats[kind]), np.asarray(counts[kind])) for kind in repeats.KINDS]
        print(f"| {name} | {' | '.join('-' if x is None else str(x) for x in found)} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MEMORIES), help="these, also if they were measured before")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    base = cfg.override(cfg.load(args.config), args.set)
    songs = read_songs(corpus, corpus.songs_of("test"), repeats.reach_of(base))
    name = f"memories-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    usual = _shared.has_defaults(parser, args, "set")
    if not usual and args.results == _shared.RESULTS:
        raise InputError("the settings are not the benchmark's own; give another folder with --results")
    path: Path = args.results / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"memories": {}}
    now = circumstances(base, corpus)
    if result.get("corpus", now["corpus"]) != now["corpus"]:
        raise InputError(f"{path}: its figures are of another corpus; remove the file to begin again")
    result |= {**now, "tokens": base.train.steps * batch_tokens(base), "counts": counts_of(songs)}
    for memory in args.only or [x for x in MEMORIES if x not in result["memories"]]:
        print(memory, flush=True)
        model, seconds = train(cfg.override(base, MEMORIES[memory]), corpus)
        export(args.workdir / f"memory-{memory.replace(' ', '-')}.safetensors", model)
        measured = {"set": MEMORIES[memory], "commit": now["environment"]["commit"], "seconds_per_step": seconds}
        result["memories"][memory] = {**measured, "nats": read(model, songs)}
        _shared.save(args.results, name, result)
        print_tables(result)


if __name__ == "__main__":
    command.run(main)
