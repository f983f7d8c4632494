"""What the training loop does beside training: loading, saving and resuming; the model of configs/demo.py.

python benchmarks/loop.py --data CORPUS_OR_MIDI_DIR
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, circumstances

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data import loader
from midigen_jax.data.corpus import Corpus, open_corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.run import checkpoint, runtime
from midigen_jax.training import restore
from midigen_jax.training.sharding import make_mesh, make_put, put_batch

LOCATIONS = ("disk", "host", "device")
AHEAD = 16  # steps that are read before the clock starts, more than the loader keeps ready
ENDLESS = "train.steps=10000000"


def loading(config: cfg.Config, corpus: Corpus, workers: Sequence[int], seconds: float) -> dict[str, float]:
    """Tokens per second of the loader alone, with transfer to the device."""
    rates = {}
    for location in LOCATIONS:
        for n in workers:
            here = cfg.override(config, [f"data.location={location}", f"data.workers={n}", ENDLESS])
            put = make_put(here, corpus, make_mesh(here))
            with contextlib.closing(loader.training_steps(here, corpus)) as steps:
                for _ in range(AHEAD):
                    batch = put(next(steps))
                tokens, began = 0, time.perf_counter()
                while time.perf_counter() - began < seconds:
                    batch = put(next(steps))
                    tokens += batch["tokens"].size
                jax.block_until_ready(batch)
                rates[f"{location}, {n or 'no'} processes"] = tokens / (time.perf_counter() - began)
    return rates


def training(config: cfg.Config, corpus: Corpus, n_steps: int) -> tuple[Ours, dict[str, float]]:
    """Tokens per second of training from each location, and the share of its time that waits for the loader."""
    side, figures = Ours(config, corpus.vocabulary), {}
    for location in LOCATIONS:
        here = cfg.override(config, [f"data.location={location}", ENDLESS])
        put, waited, steps = make_put(here, corpus, side.mesh), 0.0, loader.training_steps(here, corpus)
        with contextlib.closing(steps):
            side.state, _ = side.train_step(side.state, put(next(steps)))
            jax.block_until_ready(side.state)
            began = time.perf_counter()
            for _ in range(n_steps):
                asked = time.perf_counter()
                batch = put(next(steps))
                jax.block_until_ready(batch)
                waited += time.perf_counter() - asked
                side.state, _ = side.train_step(side.state, batch)
                jax.block_until_ready(side.state)
            seconds = time.perf_counter() - began
        figures[f"{location}, tokens per second"] = n_steps * batch_tokens(config) / seconds
        figures[f"{location}, share of loading"] = waited / seconds
    return side, figures


def saving(config: cfg.Config, corpus: Corpus, side: Ours, run: Path, windows: int, n_steps: int) -> dict[str, float]:
    """What a save costs: windows of training steps with and without one, in turn.

    A save is written beside the steps, so a window ends when it is done. The first window of each kind is not counted.
    """
    meta, times, blocked = checkpoint.meta_of(config, corpus), {False: list[float](), True: list[float]()}, []
    steps = loader.training_steps(cfg.override(config, [ENDLESS]), corpus)
    with contextlib.closing(steps), contextlib.closing(checkpoint.Checkpoints(run, keep=2)) as checkpoints:
        for window in range(2 * windows + 2):
            saves, began = bool(window % 2), time.perf_counter()
            if saves:
                checkpoints.save(window, restore.items_of(side.state), meta)
                blocked.append(time.perf_counter() - began)
            for _ in range(n_steps):
                side.state, _ = side.train_step(side.state, put_batch(next(steps), side.mesh))
            jax.block_until_ready(side.state)
            checkpoints.wait()
            times[saves].append(time.perf_counter() - began)
    without, with_save = (float(np.median(times[saves][1:])) for saves in (False, True))
    return {
        "seconds per window without a save": without,
        "seconds per window with a save": with_save,
        "seconds that the loop is blocked": float(np.median(blocked[1:])),
        "cost of saving every minute": (with_save - without) / 60,
        "megabytes": sum(x.nbytes for x in jax.tree.leaves(side.state)) / 1e6,
    }


def resuming(config: cfg.Config, corpus: Corpus, run: Path) -> dict[str, float]:
    """Seconds of what comes before the first step is compiled."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import midigen_jax.training.loop"], check=True)
    seconds = {"import": time.perf_counter() - began}
    began = time.perf_counter()
    again = open_corpus(corpus.path)
    seconds["open the corpus"] = time.perf_counter() - began
    began = time.perf_counter()
    with contextlib.closing(checkpoint.Checkpoints(run, keep=2)) as checkpoints:
        jax.block_until_ready(restore.restore_or_init(checkpoints, config, again, make_mesh(config), None))
    seconds["restore and check"] = time.perf_counter() - began
    began = time.perf_counter()
    with contextlib.closing(loader.training_steps(config, again, first=config.train.steps - 1)) as steps:
        next(steps)
    seconds["first batch, at the last step"] = time.perf_counter() - began
    return seconds | {"together": sum(seconds.values())}


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.set_defaults(config=Path("configs/demo.py"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of loading from each location")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of loader processes")
    parser.add_argument("--steps", type=int, default=30, help="of training from each location")
    parser.add_argument("--windows", type=int, default=6, help="windows with a save, and as many without")
    parser.add_argument("--window-steps", type=int, default=12, help="steps per window")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    config = cfg.override(cfg.load(args.config), args.set)
    side, trained = training(config, corpus, args.steps)
    loaded = loading(config, corpus, args.workers, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        saved = saving(config, corpus, side, Path(folder), args.windows, args.window_steps)
        resumed = resuming(config, corpus, Path(folder))
    times = min(loaded.values()) / max(value for name, value in trained.items() if name.endswith("second"))
    result: dict[str, Any] = {"training": trained, "loading": loaded, "times faster than training, at least": times}
    result |= {"saving": saved, "resuming, seconds": resumed}
    for title, figures in result.items():
        print(title if isinstance(figures, dict) else f"{title}: {figures:,.1f}")
        for name, value in figures.items() if isinstance(figures, dict) else ():
            print(f"  {name:38} {value:>14,.4g}")
    name = f"loop-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    options = ("set", "seconds", "workers", "steps", "windows", "window_steps")
    usual = _shared.has_defaults(parser, args, *options)
    _shared.save(args.results, name, {**circumstances(config, corpus), **result}, usual=usual)


if __name__ == "__main__":
    command.run(main)
