"""Recipes for the shipped model, at equal time: ways to encode the music, sizes, and settings of training.

    python benchmarks/recipes.py --data MIDI_DIR

MIDI_DIR has a folder for each kind of music. Each recipe trains for the same number of seconds: its steps are timed
first, then the schedule is as long as fits. All songs are read equally often. Then validation songs of each kind, in
bits per note. A recipe that is in the file already is not trained again, unless --only names it.

Recipes that keep other things of the music (drums, a finer time grid) write more or fewer bits for a note, as they say
more or less of it; those of one kind of encoding compare.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus, open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.data.folders import is_corpus
from midigen_jax.run import runtime
from midigen_jax.training import losses
from midigen_jax.vocab import Scheme

ALL = "all"


class Recipe(NamedTuple):
    """What differs from the config and from the usual encoding."""

    settings: tuple[str, ...] = ()
    scheme: Scheme = Scheme(multi=True)
    vocabulary: int = 0  # its size, with merges; 0: no merges


BASE = "base"
RECIPES = {
    BASE: Recipe(),
    "bar lines as in the files": Recipe(scheme=Scheme(multi=True, align_beats=False)),
    "12 steps per beat": Recipe(scheme=Scheme(12, multi=True)),
    "24 steps per beat": Recipe(scheme=Scheme(24, multi=True)),
    "instruments merged": Recipe(scheme=Scheme()),
    "vocabulary of 2,048": Recipe(("data.transpose=0", "data.modulate=0"), vocabulary=2048),
    "no transposition": Recipe(("data.transpose=0", "data.modulate=0")),
    "3 layers": Recipe(("model.layers=3",)),
    "6 layers": Recipe(("model.layers=6", "memory.knn_layer=5")),
    "width 384": Recipe(("model.width=384", "model.heads=6", "model.ff_width=1536")),
    "segment 256": Recipe(("data.segment=256",)),
    "segment 64": Recipe(("data.segment=64",)),
    "16 lanes": Recipe(("data.lanes=16",)),
    "learning rate 1e-3": Recipe(("train.learning_rate=1e-3",)),
    "learning rate 4e-3": Recipe(("train.learning_rate=4e-3",)),
    "dropout 0.1": Recipe(("model.dropout=0.1",)),
    "alignment alone": Recipe(("memory.retrieval=alignment",)),
    "XL memory alone": Recipe(("memory.knn=0",)),
}


def encoded(folder: Path, workdir: Path, recipe: Recipe) -> Corpus:
    """The music as the recipe encodes it; it is kept in the working folder."""
    s = recipe.scheme
    name = f"{folder.name}-{s.steps_per_beat}-{'multi' if s.multi else 'merged'}-{recipe.vocabulary}"
    path = workdir / (name + "-aligned" * s.align_beats)
    if not is_corpus(path):
        encode_folder(folder, path, scheme=s, vocabulary=recipe.vocabulary)
    return open_corpus(path)


def songs_by_kind(corpus: Corpus, tokens: int) -> dict[str, np.ndarray]:
    """Validation songs of each folder, at least one, up to about this many tokens."""
    kinds: dict[str, list[int]] = {}
    for song in corpus.songs_of("validation").tolist():
        kinds.setdefault(corpus.names[song].partition("/")[0], []).append(song)
    lengths = np.diff(corpus.offsets)
    return {
        kind: np.array(songs)[: max(1, int(np.searchsorted(np.cumsum(lengths[songs]), tokens)))]
        for kind, songs in sorted(kinds.items())
    }


def seconds_per_step(config: cfg.Config, corpus: Corpus, steps: int) -> float:
    side, seconds = Ours(config, corpus.vocabulary), []
    for i, batch in enumerate(batches_of(config, corpus, steps + 1)):
        began = time.perf_counter()
        side.step(batch)
        if i:  # the first one compiles
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def measure(config: cfg.Config, corpus: Corpus, seconds: float, timed_steps: int, tokens: int) -> dict[str, Any]:
    """Trains for so many seconds, then reads validation songs of every kind."""
    steps = max(1, round(seconds / seconds_per_step(config, corpus, timed_steps)))
    config = cfg.override(config, [f"train.steps={steps}", f"train.warmup={steps // 12}"])
    side = Ours(config, corpus.vocabulary)
    began = time.perf_counter()
    for batch in tqdm(batches_of(config, corpus, steps), total=steps, unit="step"):
        side.step(batch)
    took = time.perf_counter() - began
    kinds = songs_by_kind(corpus, tokens)
    nats = {kind: side.loss(corpus, songs) for kind, songs in kinds.items()}
    bits = {kind: losses.figures(nats[kind], corpus, songs).bits_per_note for kind, songs in kinds.items()}
    every = np.concatenate(list(kinds.values()))
    return {
        "steps": steps,
        "seconds": took,
        "tokens": steps * batch_tokens(config),
        "parameters": sum(x.size for x in jax.tree.leaves(side.state.params)),
        "bits_per_note": {**bits, ALL: losses.figures(sum(nats.values()), corpus, every).bits_per_note},
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    kinds = list(next(iter(rows.values()))["bits_per_note"])
    print(f"| {'recipe':25} | {' | '.join(kinds)} | M tokens |\n|---|{'---|' * (len(kinds) + 1)}")
    for name, row in rows.items():
        bits = " | ".join(f"{row['bits_per_note'][kind]:.2f}" for kind in kinds)
        print(f"| {name:25} | {bits} | {row['tokens'] / 1e6:.2f} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.set_defaults(config=Path("configs/pretrained.py"))
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), help="these recipes")
    parser.add_argument("--minutes", type=float, default=15, help="of training for each recipe")
    parser.add_argument("--timed-steps", type=int, default=40, help="steps that tell how many fit")
    parser.add_argument("--tokens", type=int, default=60_000, help="of validation songs of each kind")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    name = f"recipes-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    path = args.results / f"{name}.json"
    usual = _shared.has_defaults(parser, args, "set", "minutes", "timed_steps", "tokens")

    def load() -> dict[str, Any]:
        """Reads the file again each time: another process may train other recipes."""
        return json.loads(path.read_text()) if path.is_file() else {"minutes": args.minutes, "recipes": {}}

    for recipe_name, recipe in RECIPES.items():
        if (args.only and recipe_name not in args.only) or (not args.only and recipe_name in load()["recipes"]):
            continue
        corpus = encoded(args.data, args.workdir, recipe)
        config = cfg.override(cfg.load(args.config), ["data.mixture=", *args.set, *recipe.settings])
        print(f"{recipe_name}:", flush=True)
        row = measure(config, corpus, 60 * args.minutes, args.timed_steps, args.tokens)
        row |= {"set": recipe.settings, "scheme": recipe.scheme._asdict(), "vocabulary": corpus.vocabulary.size}
        result = load()
        result["recipes"][recipe_name] = row | circumstances(config, corpus)
        _shared.save(args.results, name, result, usual=usual)
        print_table({recipe_name: row})
    if rows := load()["recipes"]:
        print_table({recipe: rows[recipe] for recipe in RECIPES if recipe in rows})


if __name__ == "__main__":
    command.run(main)
