"""A GPT for music with long memory.

music = midigen_jax.load("runs/mine")
takes = music.continue_("tune.mid", bars=16, num=4)
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sampling.sampler import Sampler


def load(path: str | PathLike, *, best: bool = False) -> "Sampler":
    """A trained model: a run's folder, or a file that `midigen export` wrote.

    Args:
        best: of a run, the checkpoint with the lowest validation loss; else the newest.

    Raises:
        errors.InputError: it can't be used; the message says why.
    """
    from .sampling.sampler import Sampler  # not at the top: importing the package imports no JAX

    return Sampler.load(Path(path), best=best)
