"""The folder of a run, as far as it can be checked without JAX."""

from pathlib import Path

from ..errors import InputError

CHECKPOINTS = "checkpoints"  # a folder per step in it


def has_checkpoint(run: Path) -> bool:
    return any(path.name.isdigit() for path in (run / CHECKPOINTS).glob("*"))


def check_run(run: Path) -> None:
    """
    Raises:
        InputError: there is no such folder, or no checkpoint in it.
    """
    train = f"train.py CONFIG --data ... --workdir {run}"
    if run.is_file():
        raise InputError(f"{run}: is a file; give the folder of a run, as given to train.py with --workdir")
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; train one with {train}")
    if not has_checkpoint(run):
        raise InputError(f"{run}: holds no checkpoint; train first: {train}")


def check_model(path: Path, *, best: bool = False) -> None:
    """Checks a run's folder, or that an exported file is there.

    Raises:
        InputError: neither is; or `best` is asked of a file.
    """
    if not path.is_file():
        check_run(path)
    elif best:
        raise InputError(f"{path}: an exported model is one checkpoint; choose --best when exporting")
