"""Recipes for the shipped model, at equal time: ways to encode the music, sizes, and settings of training.

    python benchmarks/recipes.py --data MIDI_DIR

MIDI_DIR has a folder for each kind of music, read equally often. Each recipe trains for as long as the base takes for
its steps: their steps are timed in turn, and the schedule is as long as fits. Then it reads validation songs of each
kind, the same for all, since their split does not depend on how they are encoded; figures are bits per note. Its model
is kept in --workdir. A recipe that is in the file already is not trained again, unless --only names it.

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
from midigen_jax.run import runtime, trained
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


def songs_by_kind(corpus: Corpus, base: Corpus, tokens: int) -> dict[str, np.ndarray]:
    """Validation songs of each folder, at least one, up to about this many tokens of the base: the same for all."""
    kinds: dict[str, list[int]] = {}
    for song in base.songs_of("validation").tolist():
        kinds.setdefault(base.names[song].partition("/")[0], []).append(song)
    lengths, numbers = np.diff(base.offsets), {name: i for i, name in enumerate(corpus.names)}
    return {
        kind: np.array(
            [numbers[base.names[song]] for song in songs[: max(1, int((lengths[songs].cumsum() < tokens).sum()))]]
        )
        for kind, songs in sorted(kinds.items())
    }


def relative_time(side: Ours, corpus: Corpus, base: Ours, base_corpus: Corpus, steps: int) -> float:
    """The time of a recipe's step, where the base's is 1: medians over steps of both in turn."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    batches = (batches_of(x.config, music, steps + 1) for x, music in ((side, corpus), (base, base_corpus)))
    for i, pair in enumerate(zip(*batches, strict=False)):
        for which, (x, batch) in enumerate(zip((side, base), pair, strict=True)):
            began = time.perf_counter()
            x.step(batch)
            if i:  # the first one compiles
                seconds[which].append(time.perf_counter() - began)
    return float(np.median(seconds[0]) / np.median(seconds[1]))


def measure(
    config: cfg.Config, corpus: Corpus, kinds: dict[str, np.ndarray], ratio: float, base_steps: int, path: Path
) -> dict[str, Any]:
    """Trains for as long as the base takes for its steps, writes the model, and reads songs of every kind."""
    steps = max(1, round(base_steps / ratio))
    config = cfg.override(config, [f"train.steps={steps}", f"train.warmup={steps // 12}"])
    side = Ours(config, corpus.vocabulary)
    for batch in tqdm(batches_of(config, corpus, steps), total=steps, unit="step"):
        side.step(batch)
    trained.export(path, side.model(corpus))
    nats = {kind: side.loss(corpus, songs) for kind, songs in kinds.items()}
    bits = {kind: losses.figures(nats[kind], corpus, songs).bits_per_note for kind, songs in kinds.items()}
    every = np.concatenate(list(kinds.values()))
    return {
        "steps": steps,
        "relative_time": ratio,
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
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps of the base")
    parser.add_argument("--timed-steps", type=int, default=30, help="steps of each recipe that are timed")
    parser.add_argument("--tokens", type=int, default=60_000, help="of validation songs of each kind")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    name = f"recipes-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    path = args.results / f"{name}.json"
    usual = _shared.has_defaults(parser, args, "set", "steps", "timed_steps", "tokens")

    def load() -> dict[str, Any]:
        """Reads the file again each time: another process may train other recipes."""
        return json.loads(path.read_text()) if path.is_file() else {"recipes": {}}

    for recipe_name, recipe in RECIPES.items():
        if (args.only and recipe_name not in args.only) or (not args.only and recipe_name in load()["recipes"]):
            continue
        corpora = [encoded(args.data, args.workdir, x) for x in (recipe, RECIPES[BASE])]
        always = ["data.mixture=", *args.set]
        configs = [cfg.override(cfg.load(args.config), [*always, *x.settings]) for x in (recipe, RECIPES[BASE])]
        (corpus, base_corpus), (config, _) = corpora, configs
        print(f"{recipe_name}:", flush=True)
        ratio = 1.0
        if recipe_name != BASE:
            side, base = (Ours(x, music.vocabulary) for x, music in zip(configs, corpora, strict=True))
            ratio = relative_time(side, corpus, base, base_corpus, args.timed_steps)
        kinds = songs_by_kind(corpus, base_corpus, args.tokens)
        model_file = args.workdir / f"{'-'.join(recipe_name.replace(',', '').split())}.safetensors"
        row = measure(config, corpus, kinds, ratio, args.steps, model_file)
        row |= {"set": recipe.settings, "scheme": recipe.scheme._asdict(), "vocabulary": corpus.vocabulary.size}
        result = load()
        result["recipes"][recipe_name] = row | circumstances(config, corpus)
        result["environment"] = result["recipes"][recipe_name]["environment"]  # of the last one
        _shared.save(args.results, name, result, usual=usual)
        print_table({recipe_name: row})
    if rows := load()["recipes"]:
        print_table({recipe: rows[recipe] for recipe in RECIPES if recipe in rows})


if __name__ == "__main__":
    command.run(main)
