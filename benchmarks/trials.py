"""What each part of the decoder is worth: one change at a time from a base, equal tokens, three seeds.

    python benchmarks/trials.py --data CORPUS_OR_MIDI_DIR

Validation bits per note after the same number of tokens, and the time per step of all variants, measured in turn. The
base has no kNN memory: what that gains after so few tokens differs between seeds by more than the other changes are
worth. The same command resumes a run that was stopped; the environment in the file is that of the last start.
"""

import json
import time
from typing import Any

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.run import runtime
from midigen_jax.training import losses

BASE = "base"
BASE_SETTINGS = (
    "model.previous_tokens=4",
    "model.norm=layer",
    "model.biases=true",
    "model.activation=relu2",
    "model.positions=t5",
    "model.qk_norm=false",
    "model.tied=false",
    "model.pitches=false",
    "memory.knn=0",
    "memory.retrieval=context",
    "data.segment=128",
    "data.modulate=0",
)
CHANGES: dict[str, tuple[str, ...]] = {
    BASE: (),
    "previous tokens: none": ("model.previous_tokens=0",),
    "previous tokens: 2": ("model.previous_tokens=2",),
    "previous tokens: 8": ("model.previous_tokens=8",),
    "RMSNorm": ("model.norm=rms",),
    "no biases": ("model.biases=false",),
    "GELU": ("model.activation=gelu",),
    "SwiGLU, ff width 683": ("model.activation=swiglu", "model.ff_width=683"),
    "query-key norm": ("model.qk_norm=true",),
    "musical positions, query-key norm": ("model.positions=musical", "model.qk_norm=true"),
    "tied embeddings": ("model.tied=true",),
    "rotary positions": ("model.positions=rotary",),
    "pitch-class and octave embeddings": ("model.pitches=true",),
    "kNN memory": ("memory.knn=8192",),
}
# Settings that don't change what a trial measures; trials neither save nor validate during training.
IRRELEVANT = (
    "data.location",
    "data.workers",
    *(f"train.{name}" for name in ("log", "save", "keep", "on_", "sample", "valid")),
)


def train_once(side: Ours, corpus: Corpus, seed: int, songs: np.ndarray) -> losses.Figures:
    side.restart(seed)
    for batch in batches_of(side.config, corpus, side.config.train.steps, seed=seed):
        side.step(batch)
    return losses.figures(side.loss(corpus, songs), corpus, songs)


def milliseconds(configs: dict[str, cfg.Config], corpus: Corpus, steps: int) -> dict[str, float]:
    """Median time per step of every config, step by step in turn."""
    sides = {name: Ours(config, corpus.vocabulary) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i, batch in enumerate(batches_of(next(iter(configs.values())), corpus, steps + 1)):
        for name, side in sides.items():
            began = time.perf_counter()
            side.step(batch)
            if i:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}


def relevant(value: Any) -> Any:
    """Of a config, the settings on which the figures depend."""
    if not isinstance(value, dict):
        return value
    defaults = {key: x for key, x in cfg.flatten(cfg.Config()).items() if key.split(".")[0] in ("model", "data")}
    return {key: x for key, x in (defaults | value).items() if not key.startswith(IRRELEVANT)}


def print_table(variants: dict[str, dict[str, Any]]) -> None:
    base = np.array(variants[BASE]["bits_per_note"])
    print(f"| {'change':34} | bits per note | difference, seed by seed | ms per step |\n|---|---|---|---|")
    for variant, row in variants.items():
        bits = np.array(row["bits_per_note"])
        differences = ", ".join(f"{x:+.2f}" for x in bits - base)
        print(f"| {variant:34} | {bits.mean():13.2f} | {differences} | {row['milliseconds_per_step']:,.0f} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), help="these variants, and the base")
    parser.add_argument("--steps", type=int, default=320, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--songs", type=int, default=20, help="validation songs")
    parser.add_argument(
        "--timed-steps", type=int, default=12, help="steps per variant that are timed; 0: leave out times and table"
    )
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    songs = corpus.songs_of("validation")[: args.songs]
    always = (*BASE_SETTINGS, f"train.steps={args.steps}", f"train.warmup={args.steps // 8}", *args.set)
    changes = {name: sets for name, sets in CHANGES.items() if name == BASE or name in (args.only or CHANGES)}
    configs = {name: cfg.override(cfg.load(args.config), [*always, *sets]) for name, sets in changes.items()}
    name = f"trials-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    path = args.results / f"{name}.json"
    usual = _shared.has_defaults(parser, args, "set", "steps", "seeds", "songs")
    if not usual and args.results == _shared.RESULTS:
        raise InputError("the settings are not the benchmark's own; give another folder with --results")

    def load() -> dict[str, Any]:
        """Reads the file again each time: another process may train other variants."""
        result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"variants": {}}
        for variant, sets in changes.items():
            result["variants"].setdefault(variant, {"set": sets, "nats": [], "bits_per_note": []})
        return result

    now = circumstances(configs[BASE], corpus) | {"songs": len(songs)}
    now["tokens"] = args.steps * batch_tokens(configs[BASE])
    result = load()
    for key in ("config", "corpus", "songs"):
        if relevant(result.get(key, now[key])) != relevant(now[key]):
            raise InputError(f"{path}: its trials had another {key}; remove the file to begin again")
    result |= now
    _shared.save(args.results, name, result)
    for variant, config in configs.items():
        side = None
        for seed in range(len(result["variants"][variant]["nats"]), args.seeds):
            side = side or Ours(config, corpus.vocabulary)
            figures = train_once(side, corpus, seed, songs)
            result = load()
            result["variants"][variant]["nats"].append(figures.nats_per_token)
            result["variants"][variant]["bits_per_note"].append(figures.bits_per_note)
            _shared.save(args.results, name, result)
            print(f"{variant}, seed {seed}: {figures}", flush=True)
    if not args.timed_steps:
        return
    for variant, value in milliseconds(configs, corpus, args.timed_steps).items():
        result["variants"][variant]["milliseconds_per_step"] = value
    _shared.save(args.results, name, result)
    print_table({variant: result["variants"][variant] for variant in changes})


if __name__ == "__main__":
    command.run(main)
