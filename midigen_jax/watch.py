"""What a run does now and then beside training: validation, and a song that it continues."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from . import config as cfg
from . import hosts, losses
from .cli import InputError
from .continuation import Length
from .corpus import Corpus
from .log import Log
from .sampler import Sampler
from .song import Prompt, cut, new_song

PROMPT_BARS, NEW_BARS = 8, 16


class Validation:
    """The loss of whole validation songs, each from its own empty memory, beside that of a bigram model."""

    def __init__(self, config: cfg.Config, corpus: Corpus, loss: Callable[[Any, Corpus, np.ndarray], float]):
        self.songs = corpus.songs_of("validation")[: config.train.validation_songs or None]
        self.corpus, self.loss = corpus, loss
        if len(self.songs) == 0:
            print(
                "no song fell to the validation split, so no validation loss will be shown; give more songs, or encode "
                "with python -m midigen_jax.encode MIDI_DIR --out CORPUS --split 0.5 0.5 0 and train on that corpus"
            )
            return
        bigram, self.floor = losses.bigram_floor(corpus, corpus.songs_of("train"), self.songs)
        print(f"floor to beat, a bigram model (weight {bigram.weight:.2f}) on the validation songs: {self.floor}")

    def write(self, step: int, params: Any, log: Log) -> float:
        """Says and logs the figures; returns the loss in nats a token."""
        figures = losses.figures(self.loss(params, self.corpus, self.songs), self.corpus, self.songs)
        below = 1 - figures.nats_per_token / self.floor.nats_per_token
        if not np.isfinite(figures.nats_per_token):
            raise InputError(
                f"the validation loss at step {step:,} is {figures.nats_per_token}; that is not saved, so give the "
                "same command with a smaller train.learning_rate"
            )
        tqdm.write(
            f"step {step:,}: validation {figures}; {abs(below):.1%} {'below' if below > 0 else 'above'} the floor"
        )
        values = {f"validation/{name}": value for name, value in figures._asdict().items()}
        log.write(step, {**values, "validation/floor_nats_per_token": self.floor.nats_per_token})
        return figures.nats_per_token


def typical_song(corpus: Corpus, songs: np.ndarray) -> int:
    """The song whose length is the median: neither a fragment nor an outlier."""
    return int(songs[np.argsort(corpus.beats[songs], kind="stable")[len(songs) // 2]])


class Samples:
    """Continuations of one validation song, in RUN/samples and among TensorBoard's images."""

    def __init__(self, config: cfg.Config, corpus: Corpus, folder: Path):
        """Without a validation song the model invents."""
        songs = corpus.songs_of("validation")
        self.config, self.vocabulary, self.folder = config, corpus.vocabulary, folder
        self.title, self.prompt = "invention", Prompt(new_song(corpus.vocabulary.scheme), 0)
        with contextlib.suppress(InputError):  # no note begins in the song's first bars
            if len(songs):
                song = typical_song(corpus, songs)
                self.prompt = cut(corpus.song(song), PROMPT_BARS)
                self.title = f"{corpus.names[song]}, continued"
        self.sampler: Sampler | None = None

    def write(self, step: int, params: Any, log: Log) -> None:
        if not hosts.is_first():
            return
        # On one device, whatever the training has; compiled once.
        params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        if self.sampler is None:
            self.sampler = Sampler(self.config, params, self.vocabulary)
        self.sampler.use(params)
        stem = self.folder / f"step-{step:08}"
        try:
            (take,) = self.sampler.extend(self.prompt, length=Length(NEW_BARS), seed=step).finish()
            take.save(stem, title=f"{self.title} after {step:,} steps")
            log.picture(step, "sample", stem.with_suffix(".png"))
        except InputError as error:  # it wrote no notes
            tqdm.write(f"{stem}: no sample ({error}); the run goes on")
        except OSError as error:  # Numba, which keeps what it compiles, may meet a full disk too
            tqdm.write(f"{stem}: the sample could not be written ({error.strerror}); the run goes on")
