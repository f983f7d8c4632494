"""Files of arrays with a few words of JSON: safetensors, in which nothing is code."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.flax import save

from .cli import InputError
from .files import renamed


def by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths, in its order."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def digest(arrays: dict[str, Any], words: str = "") -> str:
    """A few letters that are the same for the same names, arrays and words."""
    found = hashlib.blake2b(words.encode(), digest_size=8)
    for name, x in sorted(arrays.items()):
        found.update(f"{name} {x.dtype} {x.shape}".encode())
        found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write_tensors(path: Path, arrays: dict[str, Any], kind: str, words: dict[str, Any]) -> None:
    """Arrays and words of JSON, whole or not at all."""
    written, text = {name: jnp.asarray(x) for name, x in arrays.items()}, json.dumps(words)
    metadata = {"kind": kind, "words": text, "digest": digest(written, text)}
    with renamed(path) as temporary:
        temporary.write_bytes(save(written, metadata))


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
        found, text = metadata.get("kind"), metadata.get("words", "{}")
        words = json.loads(text)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as a {kind} file ({error}); give one that is whole") from None
    if found != kind:
        raise InputError(f"{path}: no {kind} file" + (f" but a {found} file" if found else ""))
    if words.get("format_version") != version:
        raise InputError(
            f"{path}: format version {words.get('format_version')}, this program reads {version}; write it again"
        )
    if metadata.get("digest") != digest(arrays, text):
        raise InputError(f"{path}: damaged, its content is not what was written; write it again")
    return arrays, words
