"""Metrics of training steps, gathered between two lines of the log."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import config as cfg
from ..data.corpus import Corpus
from ..errors import InputError
from ..shapes import Array
from .state import make_optimizer


class RecentMetrics:
    """The metrics of the steps since the last summary, and the time that these steps took."""

    def __init__(self, config: cfg.Config, corpus: Corpus):
        songs = corpus.songs_of("train")
        self.tokens_per_note = (np.diff(corpus.offsets)[songs].sum() - len(songs)) / corpus.notes[songs].sum()
        self.tokens_per_step = config.data.lanes * config.data.segment * config.data.segments
        _, self.learning_rate = make_optimizer(config)
        self.steps: list[dict[str, Array]] = []
        self.seconds, self.timed = 0.0, 0
        self.since, self.began = math.nan, time.perf_counter()  # the first step is not timed: it compiles

    def add(self, metrics: dict[str, Array]) -> None:
        # Waits for the previous step while this one runs, so that the device never waits for the host.
        jax.block_until_ready(self.steps[-1:])
        self.steps.append(metrics)
        now = time.perf_counter()
        if not math.isnan(self.since):
            self.seconds, self.timed = self.seconds + now - self.since, self.timed + 1
        self.since = now

    def check(self, run: Path, step: int) -> None:
        """Raises InputError if the loss or a gradient of these steps, up to `step`, is not finite."""
        for i, x in enumerate(jax.device_get(self.steps), step - len(self.steps) + 1):
            if not np.isfinite(x["loss"] + x["gradient_norm"]):
                raise InputError(
                    f"{run}: step {i:,} has a loss of {x['loss']} and a gradient of norm {x['gradient_norm']}; nothing "
                    "is saved, so give the same command with a smaller train.learning_rate"
                )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work that does not count as training time."""
        jax.block_until_ready(self.steps[-1:])
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def summary(self, step: int) -> dict[str, float]:
        """Means over these steps, up to `step`; starts a new summary."""
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
    """Means over steps, the hits' age over hits; resets are summed.

    `attention_share` is the kNN memory's share of the attention over all queries; `memory_share`, and by head
    `memory_share/0` and so on, over those queries that found anything. A memory by alignment is the last head, and
    its share that of the prediction.
    """
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(steps))
    heads = (stacked["attention_share"].mean(0) / np.maximum(stacked["hit_rate"].mean(0), 1e-9)).tolist()
    means = {name: float(np.mean(x)) for name, x in stacked.items()}
    return means | {
        "hit_age": means.pop("ages") / max(means.pop("hits"), 1e-9),
        "resets": float(stacked["resets"].sum()),
        "memory_share": float(np.mean(heads)),
        **{f"memory_share/{head}": share for head, share in enumerate(heads)},
    }
