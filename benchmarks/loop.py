"""What the training loop does beside training: loading, saving, resuming; the model of configs/demo.py.

python benchmarks/loop.py --data CORPUS_OR_MIDI_DIR
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _ours
import jax
import numpy as np
from _ours import Ours, circumstances
from _shared import save

from midigen_jax import checkpoint, cli, data, process, start, step
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus, open_corpus
from midigen_jax.train import get_corpus

LOCATIONS = ("disk", "host", "device")
AHEAD = 16  # steps that are read before the clock starts, more than are kept ready


def loading(config: cfg.Config, corpus: Corpus, seconds: float) -> dict[str, float]:
    """Tokens a second that the loader gives by itself, the device's own work included."""
    rates = {}
    for location in LOCATIONS:
        for workers in (0, 2):
            here = cfg.override(
                config, [f"data.location={location}", f"data.workers={workers}", "train.steps=10000000"]
            )
            put = step.make_put(here, corpus, step.make_mesh(here))
            with contextlib.closing(data.training_steps(here, corpus)) as steps:
                for _ in range(AHEAD):
                    batch = put(next(steps))
                n, begin = 0, time.perf_counter()
                while time.perf_counter() - begin < seconds:
                    batch = put(next(steps))
                    n += batch["tokens"].size
                jax.block_until_ready(batch)
                rates[f"{location}, {workers or 'no'} processes"] = n / (time.perf_counter() - begin)
    return rates


def training(config: cfg.Config, corpus: Corpus, n_steps: int) -> tuple[Ours, dict[str, float]]:
    """Tokens a second of training, and the share of its time that waits for the loader, from each location."""
    side, figures = Ours(config, corpus.vocabulary), {}
    for location in LOCATIONS:
        here = cfg.override(config, [f"data.location={location}", "train.steps=10000000"])
        put, waited, steps = step.make_put(here, corpus, side.mesh), 0.0, data.training_steps(here, corpus)
        with contextlib.closing(steps):
            side.state, _ = side.train_step(side.state, put(next(steps)))
            jax.block_until_ready(side.state)
            begin = time.perf_counter()
            for _ in range(n_steps):
                asked = time.perf_counter()
                batch = put(next(steps))
                jax.block_until_ready(batch)
                waited += time.perf_counter() - asked
                side.state, _ = side.train_step(side.state, batch)
                jax.block_until_ready(side.state)
            seconds = time.perf_counter() - begin
        tokens = n_steps * config.data.lanes * config.data.segment * config.data.segments
        figures |= {f"{location}, tokens a second": tokens / seconds, f"{location}, share of loading": waited / seconds}
    return side, figures


def saving(config: cfg.Config, corpus: Corpus, side: Ours, run: Path, windows: int, n_steps: int) -> dict[str, Any]:
    """What a save costs: windows of steps that begin with one, and windows without, in turn."""
    meta, steps = (
        checkpoint.meta_of(config, corpus),
        data.training_steps(cfg.override(config, ["train.steps=10000000"]), corpus),
    )
    times: dict[bool, list[float]] = {False: [], True: []}
    blocked = []
    with contextlib.closing(steps), contextlib.closing(checkpoint.Checkpoints(run, keep=2)) as checkpoints:
        for window in range(2 * windows + 2):
            saves, begin = bool(window % 2), time.perf_counter()
            if saves:
                checkpoints.save(window, start.items_of(side.state), meta)
                blocked.append(time.perf_counter() - begin)
            for _ in range(n_steps):
                side.state, _ = side.train_step(side.state, step.put_batch(next(steps), side.mesh))
            jax.block_until_ready(side.state)
            checkpoints.wait()
            times[saves].append(time.perf_counter() - begin)
    without, with_save = (float(np.median(times[saves][1:])) for saves in (False, True))
    return {
        "seconds a window without a save": without,
        "seconds a window with one": with_save,
        "seconds that the loop stood still": float(np.median(blocked[1:])),
        "cost of saving every minute": (with_save - without) / 60,
        "megabytes": sum(x.nbytes for x in jax.tree.leaves(side.state)) / 1e6,
    }


def resuming(config: cfg.Config, corpus: Corpus, run: Path) -> dict[str, float]:
    """Seconds of what comes before the first step is compiled."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import midigen_jax.train"], check=True)
    seconds = {"import": time.perf_counter() - begin}
    begin = time.perf_counter()
    again = open_corpus(corpus.path)
    seconds["open the corpus"] = time.perf_counter() - begin
    begin = time.perf_counter()
    with contextlib.closing(checkpoint.Checkpoints(run, keep=2)) as checkpoints:
        jax.block_until_ready(start.state_of(checkpoints, config, again, step.make_mesh(config), None))
    seconds["restore and check"] = time.perf_counter() - begin
    begin = time.perf_counter()
    with contextlib.closing(data.training_steps(config, again, first=config.train.steps - 1)) as steps:
        next(steps)
    seconds["first batch, at the last step"] = time.perf_counter() - begin
    return seconds | {"together": sum(seconds.values())}


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.set_defaults(config=Path("configs/demo.py"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of loading from each location")
    parser.add_argument("--steps", type=int, default=30, help="of training from each location")
    parser.add_argument("--windows", type=int, default=6, help="with a save, and as many without")
    parser.add_argument("--window-steps", type=int, default=12, help="steps of each")
    args = parser.parse_args()
    process.keep_freed_memory()
    corpus = get_corpus(args.data, args.workdir)
    config = cfg.override(cfg.load(args.config), args.set)
    side, trained = training(config, corpus, args.steps)
    loaded = loading(config, corpus, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        saved = saving(config, corpus, side, Path(folder), args.windows, args.window_steps)
        resumed = resuming(config, corpus, Path(folder))
    times = min(loaded.values()) / max(value for name, value in trained.items() if name.endswith("second"))
    result = {"training": trained, "loading": loaded, "times faster than training, at least": times}
    result |= {"saving": saved, "resuming, seconds": resumed}
    for title, figures in result.items():
        print(title if isinstance(figures, dict) else f"{title}: {figures:,.1f}")
        for name, value in figures.items() if isinstance(figures, dict) else ():
            print(f"  {name:38} {value:>14,.4g}")
    name = f"loop-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    save(name, {**circumstances(config, corpus), **result}, otherwise=bool(args.set))


if __name__ == "__main__":
    cli.run(main)
