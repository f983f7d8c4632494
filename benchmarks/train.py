"""Training throughput, and what the kNN memory costs: the same model with and without it, step by step in turn.

python benchmarks/train.py --data CORPUS_OR_MIDI_DIR
"""

import time
from pathlib import Path

import jax
import numpy as np
from _shared import environment, save

from midigen_jax import cli, data, model, step, train
from midigen_jax import config as cfg


class Contestant:
    """One config in training; `seconds` holds the time of every step after the first."""

    def __init__(self, config: cfg.Config, corpus: train.Corpus, steps: int):
        self.config = config
        self.mesh = step.make_mesh(config)
        begin = jax.jit(step.init_state, static_argnums=(0, 1), out_shardings=step.state_sharding(self.mesh))
        self.state = begin(config, corpus.vocabulary)
        graphdef = model.abstract(config, corpus.vocabulary)
        self.train_step = step.make_train_step(graphdef, config, self.mesh)
        self.tokens = config.data.lanes * config.data.segment * config.data.segments
        self.batches = data.training_steps(
            corpus,
            corpus.songs_of("train"),
            n_lanes=config.data.lanes,
            tokens_per_step=self.tokens // config.data.lanes,
            n_steps=steps + 1,
            first=0,
            seed=0,
        )
        begin = time.perf_counter()
        self.step()
        self.first_step = time.perf_counter() - begin
        self.seconds: list[float] = []
        self.slots: list[float] = []

    def step(self) -> float:
        batch = step.put_batch(next(self.batches), self.mesh)
        begin = time.perf_counter()
        self.state, metrics = self.train_step(self.state, batch)
        jax.block_until_ready((self.state, metrics))
        seconds = time.perf_counter() - begin
        self.filled = float(metrics["slots"])
        return seconds


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR")
    parser.add_argument("--config", type=Path, default=Path("configs/pop909.py"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    parser.add_argument("--steps", type=int, default=30, help="steps a side")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench"), help="where a MIDI folder is encoded")
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), args.set)
    corpus = train.get_corpus(args.data, args.workdir)
    sides = {
        "with kNN memory": Contestant(config, corpus, args.steps),
        "without": Contestant(cfg.override(config, ["memory.knn=0"]), corpus, args.steps),
    }
    for _ in range(args.steps):
        for side in sides.values():
            side.seconds.append(side.step())
            side.slots.append(side.filled)
    rows = {}
    print(f"{'':18}{'ms a step':>10}{'tokens/s':>10}{'first step, s':>15}{'filled slots':>14}")
    for name, side in sides.items():
        median = float(np.median(side.seconds))
        rows[name] = {
            "milliseconds_per_step": median * 1e3,
            "tokens_per_second": side.tokens / median,
            "first_step_seconds": side.first_step,
            "mean_filled_slots": float(np.mean(side.slots)),
        }
        milliseconds, speed, first_step, filled = rows[name].values()
        print(f"{name:18}{milliseconds:>10,.0f}{speed:>10,.0f}{first_step:>15,.1f}{filled:>14,.0f}")
    ratio = rows["with kNN memory"]["milliseconds_per_step"] / rows["without"]["milliseconds_per_step"]
    print(f"the kNN memory adds {ratio - 1:.0%} to a step")
    circumstances = {"device": jax.devices()[0].device_kind, **environment(("jax", "flax", "optax", "numpy"))}
    result = {"config": cfg.flatten(config), "environment": circumstances, "sides": rows, "knn_cost": ratio - 1}
    save(f"train-{args.config.stem}-{jax.default_backend()}", result)


if __name__ == "__main__":
    cli.run(main)
