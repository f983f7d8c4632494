"""Continuations of a validation song while a run trains."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from .. import config as cfg
from ..data.corpus import Corpus
from ..errors import InputError
from ..music.song import Prompt, cut, new_song
from ..run import hosts
from ..run.trained import TrainedModel
from ..sampling.sampler import Sampler
from ..sampling.settings import Length
from .log import Log

PROMPT_BARS, NEW_BARS = 8, 16


def typical_song(corpus: Corpus, songs: np.ndarray) -> int:
    """The song of median length: neither a fragment nor an outlier."""
    return int(songs[np.argsort(corpus.beats[songs], kind="stable")[len(songs) // 2]])


class Samples:
    """Continuations of one validation song, in RUN/samples and among TensorBoard's images."""

    def __init__(self, config: cfg.Config, corpus: Corpus, folder: Path):
        """Without a validation song the model invents music."""
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
        """Samples with the parameters of an optimizer step, on the main process and one device."""
        if not hosts.is_main_process():
            return
        params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        model = TrainedModel(self.config, params, self.vocabulary)
        if self.sampler is None:
            self.sampler = Sampler(model)  # compiled once
        self.sampler.set_model(model)
        stem = self.folder / f"step-{step:08}"
        try:
            (take,) = self.sampler.generate(self.prompt, length=Length(NEW_BARS), seed=step).finish()
            take.save(stem, title=f"{self.title} after {step:,} steps")
            log.picture(step, "sample", stem.with_suffix(".png"))
        except InputError as error:  # it wrote no notes
            tqdm.write(f"{stem}: no sample ({error}); the run continues")
        except OSError as error:  # Numba, which caches what it compiles, may meet a full disk too
            tqdm.write(f"{stem}: the sample could not be written ({error.strerror}); the run continues")
