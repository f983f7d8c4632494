"""What each part of the decoder is worth: one change at a time from the base, equal tokens, three seeds.

python benchmarks/trials.py --data CORPUS_OR_MIDI_DIR

Validation bits a note after the same number of tokens, and the time of a step, all variants in turn. A run that was
stopped goes on with what is missing.
"""

import json
import time
from typing import Any

import _ours
import jax
import numpy as np
from _ours import Ours, batches_of, circumstances
from _shared import RESULTS, save

from midigen_jax import cli, losses, process, step
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus
from midigen_jax.train import get_corpus

BASE = (
    "model.previous_tokens=4",
    "model.norm=layer",
    "model.biases=true",
    "model.activation=relu2",
    "model.positions=t5",
    "model.qk_norm=false",
    "model.tied=false",
    "model.pitches=false",
    "data.segment=128",
)
CHANGES = {
    "base": (),
    "previous tokens: none": ("model.previous_tokens=0",),
    "previous tokens: 2": ("model.previous_tokens=2",),
    "previous tokens: 8": ("model.previous_tokens=8",),
    "RMSNorm": ("model.norm=rms",),
    "no biases": ("model.biases=false",),
    "GELU": ("model.activation=gelu",),
    "SwiGLU, ff width 683": ("model.activation=swiglu", "model.ff_width=683"),
    "query-key norm": ("model.qk_norm=true",),
    "tied embeddings": ("model.tied=true",),
    "rotary positions": ("model.positions=rotary",),
    "pitch-class and octave embeddings": ("model.pitches=true",),
    "no kNN memory": ("memory.knn=0",),
}
SEEDS = (0, 1, 2)


def train_once(side: Ours, corpus: Corpus, seed: int, songs: np.ndarray) -> losses.Figures:
    side.restart(seed, corpus.vocabulary)
    for batch in batches_of(side.config, corpus, side.config.train.steps, seed=seed):
        side.step(batch)
    loss = step.make_loss(side.graphdef, side.config, side.mesh)
    return losses.figures(loss(side.state.params, corpus, songs), corpus, songs)


def batch_tokens(config: cfg.Config) -> int:
    return config.data.lanes * config.data.segment * config.data.segments


def milliseconds(configs: dict[str, cfg.Config], corpus: Corpus, steps: int) -> dict[str, float]:
    """Median time of a step of every config, step by step in turn."""
    sides = {name: Ours(config, corpus.vocabulary) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i, batch in enumerate(batches_of(next(iter(configs.values())), corpus, steps + 1)):
        for name, side in sides.items():
            begin = time.perf_counter()
            side.step(batch)
            if i:
                seconds[name].append(time.perf_counter() - begin)
    return {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}


def relevant(value: Any) -> Any:
    """Of a config, the settings that trials depend on; they neither save nor validate on the way."""
    if not isinstance(value, dict):
        return value
    aside = (
        "data.location",
        "data.workers",
        *(f"train.{x}" for x in ("log", "save", "keep", "on_", "sample", "valid")),
    )
    defaults = {key: x for key, x in cfg.flatten(cfg.Config()).items() if key.split(".")[0] in ("model", "data")}
    return {key: x for key, x in (defaults | value).items() if not key.startswith(aside)}


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=CHANGES, help="train these alone, and leave the table for later")
    parser.add_argument("--steps", type=int, default=320, help="optimizer steps of each run")
    parser.add_argument("--songs", type=int, default=20, help="validation songs")
    parser.add_argument("--timed-steps", type=int, default=12, help="steps a variant that are timed")
    args = parser.parse_args()
    process.keep_freed_memory()
    corpus = get_corpus(args.data, args.workdir)
    songs = corpus.songs_of("validation")[: args.songs]
    always = (*BASE, f"train.steps={args.steps}", f"train.warmup={args.steps // 8}", *args.set)
    configs = {name: cfg.override(cfg.load(args.config), [*always, *sets]) for name, sets in CHANGES.items()}
    name = f"trials-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    path = RESULTS / f"{name}.json"

    def load() -> dict[str, Any]:
        """Read anew each time: another process may be at other variants."""
        result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"variants": {}}
        for variant, sets in CHANGES.items():
            result["variants"].setdefault(variant, {"set": sets, "nats": [], "bits_per_note": []})
        return result

    now = circumstances(configs["base"], corpus) | {"songs": len(songs)}
    now["tokens"] = args.steps * batch_tokens(configs["base"])
    result = load()
    for key in ("config", "corpus", "songs"):
        if relevant(result.get(key, now[key])) != relevant(now[key]):
            raise cli.InputError(f"{path}: its trials had another {key}; remove the file to begin anew")
    save(name, result | now)
    for variant in args.only or CHANGES:
        side = None
        for seed in SEEDS[len(result["variants"][variant]["nats"]) :]:
            side = side or Ours(configs[variant], corpus.vocabulary)
            figures = train_once(side, corpus, seed, songs)
            result = load()
            result["variants"][variant]["nats"].append(figures.nats_per_token)
            result["variants"][variant]["bits_per_note"].append(figures.bits_per_note)
            save(name, result)
            print(f"{variant}, seed {seed}: {figures}", flush=True)
    if args.only:
        return
    for variant, value in milliseconds(configs, corpus, args.timed_steps).items():
        result["variants"][variant]["milliseconds_per_step"] = value
    save(name, result)
    base = np.array(result["variants"]["base"]["bits_per_note"])
    print(f"| {'change':34} | bits a note | difference, seed by seed | ms a step |\n|---|---|---|---|")
    for variant, row in result["variants"].items():
        bits = np.array(row["bits_per_note"])
        differences = ", ".join(f"{x:+.2f}" for x in bits - base)
        print(f"| {variant:34} | {bits.mean():11.2f} | {differences} | {row['milliseconds_per_step']:,.0f} |")


if __name__ == "__main__":
    cli.run(main)
