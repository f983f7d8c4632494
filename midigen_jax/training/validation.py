"""Validation: the loss of whole songs, beside that of a bigram model."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import config as cfg
from ..data.corpus import Corpus
from ..errors import InputError
from . import losses
from .log import Log


class Validation:
    """The loss of whole validation songs, each from its own empty memory, beside that of a bigram model."""

    def __init__(self, config: cfg.Config, corpus: Corpus, loss: Callable[[Any, Corpus, np.ndarray], float]):
        self.songs = corpus.songs_of("validation")[: config.train.validation_songs or None]
        self.corpus, self.loss = corpus, loss
        if len(self.songs) == 0:
            print(
                "no song fell to the validation split, so there will be no validation loss; give more songs, or encode "
                "with midigen encode MIDI_DIR --out CORPUS --split 0.5 0.5 0 and train on that corpus"
            )
            return
        bigram, self.baseline = losses.bigram_baseline(corpus, corpus.songs_of("train"), self.songs)
        print(f"baseline, a bigram model (weight {bigram.weight:.2f}) on the validation songs: {self.baseline}")

    def write(self, step: int, params: Any, log: Log) -> float:
        """Prints and logs the figures; returns the loss in nats per token.

        Raises:
            InputError: the loss is not finite.
        """
        figures = losses.figures(self.loss(params, self.corpus, self.songs), self.corpus, self.songs)
        below = 1 - figures.nats_per_token / self.baseline.nats_per_token
        if not np.isfinite(figures.nats_per_token):
            raise InputError(
                f"the validation loss at step {step:,} is {figures.nats_per_token}; nothing is saved, so give the "
                "same command with a smaller train.learning_rate"
            )
        side = "below" if below > 0 else "above"
        tqdm.write(f"step {step:,}: validation {figures}; {abs(below):.1%} {side} the bigram baseline")
        values = {f"validation/{name}": value for name, value in figures._asdict().items()}
        log.write(step, {**values, "validation/bigram_nats_per_token": self.baseline.nats_per_token})
        return figures.nats_per_token
