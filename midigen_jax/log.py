"""What a run leaves to be looked at: run.json, metrics.jsonl and TensorBoard event files."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from . import config as cfg
from . import files, hosts
from .cli import InputError
from .corpus import Corpus
from .environment import environment
from .shapes import Array
from .step import make_optimizer

PACKAGES = (
    *("midigen_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "numba"),
    *("faiss-cpu", "faiss-gpu"),
)


class Log:
    """Written by the first host."""

    def __init__(self, run: Path, step: int, config: cfg.Config):
        """A resumed run forgets the lines of steps that came after the checkpoint, since they are done again."""
        self.silent = not hosts.is_first()
        if self.silent:
            return
        path, kept = run / "metrics.jsonl", []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line half-written when the machine went away
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            files.write_text(path, "".join(kept))
        self._remember_start(run / "run.json", step, config)
        self.file = open(path, "a")  # noqa: SIM115  (open as long as the run)
        # Not through SummaryWriter: the thread in which it writes ends on a full disk, and then the run hangs.
        (run / "tensorboard").mkdir(exist_ok=True)
        self.board = EventsWriter(str(run / "tensorboard" / "events"))
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))  # TensorBoard drops what came after

    def _remember_start(self, path: Path, step: int, config: cfg.Config) -> None:
        """The resolved config, and for each start the command, the versions and the commit."""
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
        device = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        starts.append({"step": step, "command": sys.argv, "device": device, **environment(PACKAGES)})
        files.write_text(path, json.dumps({"config": cfg.flatten(config), "starts": starts}, indent=1) + "\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.silent:
            return
        with contextlib.suppress(OSError):  # a full disk, which saves tell of; the lines wait in the buffer
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))

    def _add(self, step: int, **what: Any) -> None:
        with contextlib.suppress(OSError):
            self.board.write_event(Event(wall_time=time.time(), step=step, **what))
            self.board.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG file, shown by TensorBoard as well."""
        from matplotlib.image import imread

        if not self.silent:
            self._add(step, summary=summary.image(name, imread(path)[..., :3], dataformats="HWC"))

    def close(self) -> None:
        for file in () if self.silent else (self.file, self.board):
            with contextlib.suppress(OSError):
                file.close()


class Recent:
    """The metrics of the steps since they were last summed up, and how long these took."""

    def __init__(self, config: cfg.Config, corpus: Corpus):
        songs = corpus.songs_of("train")
        self.tokens_per_note = (np.diff(corpus.offsets)[songs].sum() - len(songs)) / corpus.notes[songs].sum()
        self.tokens_per_step = config.data.lanes * config.data.segment * config.data.segments
        _, self.learning_rate = make_optimizer(config)
        self.steps: list[dict[str, Array]] = []
        self.seconds, self.timed = 0.0, 0
        self.since, self.began = math.nan, time.perf_counter()  # the first step is not timed: it is compiled

    def add(self, metrics: dict[str, Array]) -> None:
        # The step before is waited for while this one runs, so that the device never waits for the host.
        jax.block_until_ready(self.steps[-1:])
        self.steps.append(metrics)
        now = time.perf_counter()
        if not math.isnan(self.since):
            self.seconds, self.timed = self.seconds + now - self.since, self.timed + 1
        self.since = now

    def check(self, run: Path, step: int) -> None:
        """Raises InputError if the loss or a gradient of these steps, up to `step`, is not a finite number."""
        for i, x in enumerate(jax.device_get(self.steps), step - len(self.steps) + 1):
            if not np.isfinite(x["loss"] + x["gradient_norm"]):
                raise InputError(
                    f"{run}: step {i:,} has a loss of {x['loss']} and a gradient of norm {x['gradient_norm']}; that is "
                    "not saved, so give the same command with a smaller train.learning_rate"
                )

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done here is no training."""
        jax.block_until_ready(self.steps[-1:])
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def summary(self, step: int) -> dict[str, float]:
        """Their means, at `step`; begins anew."""
        values = mean_metrics(self.steps)
        seconds = self.seconds / self.timed if self.timed else time.perf_counter() - self.began
        self.steps, self.seconds, self.timed = [], 0.0, 0
        return values | {
            "bits_per_note": values["loss"] / math.log(2) * self.tokens_per_note,
            "tokens_per_second": self.tokens_per_step / seconds,
            "seconds_per_step": seconds,
            "learning_rate": float(self.learning_rate(step - 1)),
        }


def mean_metrics(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Means over steps, of the hits' age over hits; the resets are summed.

    The gate is the memory's share in the output, by head, where something was found; the mass is that over all.
    """
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(steps))
    heads = (stacked["mass"].mean(0) / max(float(stacked["hit_rate"].mean()), 1e-9)).tolist()
    means = {name: float(np.mean(x)) for name, x in stacked.items()}
    return means | {
        "hit_age": means.pop("ages") / max(means.pop("hits"), 1e-9),
        "resets": float(stacked["resets"].sum()),
        "gate": float(np.mean(heads)),
        **{f"gate/{head}": gate for head, gate in enumerate(heads)},
    }
