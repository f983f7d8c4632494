"""Files of arrays with JSON metadata: safetensors, in which nothing is code."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.flax import save

from ..errors import InputError
from ..files import atomic_write


def by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their paths, in the tree's order."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def digest(arrays: dict[str, Any], text: str = "") -> str:
    """A short hash of names, arrays and text."""
    found = hashlib.blake2b(text.encode(), digest_size=8)
    for name, x in sorted(arrays.items()):
        found.update(f"{name} {x.dtype} {x.shape}".encode())
        found.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write_tensors(path: Path, arrays: dict[str, Any], kind: str, metadata: dict[str, Any]) -> None:
    """Writes arrays and metadata, whole or not at all."""
    written, text = {name: jnp.asarray(x) for name, x in arrays.items()}, json.dumps(metadata)
    header = {"kind": kind, "metadata": text, "digest": digest(written, text)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(written, header))


def read_tensors(path: Path, kind: str, version: int) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or of another kind or version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "flax") as file:
            header = file.metadata() or {}
            # The key "words" is that of earlier versions, whose number is read to refuse them.
            text = header.get("metadata", header.get("words", "{}"))
            metadata = json.loads(text)
            found, found_version = header.get("kind"), metadata.get("format_version")
            arrays = {}
            if (found, found_version) == (kind, version):
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as a {kind} file ({error}); give an undamaged one") from None
    if found != kind:
        raise InputError(f"{path}: is not a {kind} file" + (f" but a {found} file" if found else ""))
    if found_version != version:
        raise InputError(
            f"{path}: format version {found_version}, this program reads {version}; use the version that wrote it, or "
            "write it again with this one"
        )
    if header.get("digest") != digest(arrays, text):
        raise InputError(f"{path}: damaged, its content is not what was written; write it again")
    return arrays, metadata
