"""A GPT for music with long memory.

music = midigen_jax.load("runs/mine")
takes = music.continue_("tune.mid", bars=16, num=4)
"""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sampler import Sampler


def load(path: str | PathLike, *, best: bool = False) -> "Sampler":
    """A trained model: a run's folder, or a file that `midigen_jax.export` wrote.

    Args:
        best: of a run, the checkpoint with the lowest validation loss; else the newest.

    Raises:
        cli.InputError: it can't be used; the message says why.
    """
    from .sampler import Sampler  # the loader's processes import this package, and are light without JAX

    return Sampler.open(Path(path), best=best)
