"""Files of arrays with a few words of JSON: safetensors, in which nothing is code."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
from safetensors.flax import save

from .cli import InputError


def by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths, in its order."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def write_tensors(path: Path, arrays: dict[str, Any], kind: str, words: dict[str, Any]) -> None:
    """Arrays and words of JSON, whole or not at all."""
    metadata = {"kind": kind, "words": json.dumps(words)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(save({name: jnp.asarray(x) for name, x in arrays.items()}, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, kind: str, version: int) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or of another kind or version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "flax") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        found, words = metadata.get("kind"), json.loads(metadata.get("words", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as a {kind} file ({error}); write it again") from None
    if found != kind:
        raise InputError(f"{path}: no {kind} file" + (f" but a {found} file" if found else ""))
    if words.get("format_version") != version:
        raise InputError(
            f"{path}: format version {words.get('format_version')}, this program reads {version}; write it again"
        )
    return arrays, words
