"""What sampling can go on from: the memories, the place in each song, and the songs so far. It can be kept in a file.

The file is a plain table of arrays (safetensors) with a few words of JSON. Letters of shapes are those of `shapes`.
"""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import cache as caches
from .cache import Cache
from .cli import InputError
from .cursor import Cursor
from .song import Song, notes_of
from .tensors import by_path, digest, read_tensors, write_tensors
from .vocab import Scheme, Vocabulary

FORMAT_VERSION = 5
KIND = "midigen_jax state"
_TABLES = ("bars", "meters", "tempos")


class State(NamedTuple):
    """What sampling carries from token to token."""

    cache: Cache
    cursor: Cursor


class Row(NamedTuple):
    """A row's song so far, on the host. Times are in steps."""

    song: Song  # the meters and tempos count; its notes are those of the tokens
    tokens: np.ndarray  # uint16 [n], from sos on
    begins: int  # where the prompt ends
    end: int  # up to where it was to be sampled
    now: int  # where the next token will stand

    def song_so_far(self, vocabulary: Vocabulary) -> Song:
        """Cut at its end."""
        notes = notes_of(self.tokens, vocabulary)
        notes = notes[notes[:, 0] < self.end]
        notes[:, 1] = np.minimum(notes[:, 1], self.end - notes[:, 0])
        return self.song._replace(notes=notes)


class Held(NamedTuple):
    """A state and its songs."""

    state: State
    rows: list[Row]
    fingerprint: str  # of the model

    def with_streams(self, streams: Iterable[int]) -> "Held":
        """With other streams of random numbers."""
        cursor = self.state.cursor._replace(stream=jnp.asarray(list(streams), jnp.int32))
        return self._replace(state=self.state._replace(cursor=cursor))

    def take(self, rows: Sequence[int]) -> "Held":
        """These rows; a row may be taken several times.

        The first copy of a row goes on as the row would have; each other one gets the next stream of random numbers
        that no row taken has.
        """
        index = jnp.asarray(rows)
        cursor = jax.tree.map(lambda x: x[index], self.state.cursor)
        streams = cursor.stream.tolist()
        taken = set(streams)
        unused = (i for i in count() if i not in taken)
        own = [streams[i] if rows.index(row) == i else next(unused) for i, row in enumerate(rows)]
        cache = caches.take(self.state.cache, index)
        return self._replace(state=State(cache, cursor), rows=[self.rows[row] for row in rows]).with_streams(own)


def fingerprint(params: Any) -> str:
    """A few letters that are the same for the same parameters."""
    return digest(by_path(params))


def save(path: Path, held: Held) -> None:
    """Writes a state that `load` gives back to the bit."""
    arrays = by_path(held.state)
    for i, row in enumerate(held.rows):
        arrays |= {f"rows/{i}/tokens": row.tokens.astype(np.int32)}
        arrays |= {f"rows/{i}/{name}": np.asarray(getattr(row.song, name), np.int32) for name in _TABLES}
    words = {
        "format_version": FORMAT_VERSION,
        "model": held.fingerprint,
        "rows": [[row.begins, row.end, row.now] for row in held.rows],
    }
    write_tensors(path, arrays, KIND, words)


def load(path: Path, abstract: Any, fingerprint: str, scheme: Scheme) -> Held:
    """Reads a state.

    Args:
        abstract: gives for a number of rows the shapes of the model's states.
        fingerprint: of the model.

    Raises:
        InputError: the file can't be used, or is of another model.
    """
    arrays, words = read_tensors(path, KIND, FORMAT_VERSION)
    other = f"{path}: a state of another model, or of another checkpoint of it; give the run or file that it came from"
    if words.get("model") != fingerprint:
        raise InputError(other)
    shapes = abstract(len(words["rows"]))
    paths = by_path(shapes)
    if any(name not in arrays or arrays[name].shape != x.shape for name, x in paths.items()):
        raise InputError(other)
    state = jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in paths])
    rows = []
    for i, (begins, end, now) in enumerate(words["rows"]):
        tables = [np.asarray(arrays[f"rows/{i}/{name}"]) for name in _TABLES]
        song = Song(np.empty((0, 5), np.int32), tables[0].astype(np.int64), tables[1], tables[2], scheme)
        rows.append(Row(song, np.asarray(arrays[f"rows/{i}/tokens"]).astype(np.uint16), begins, end, now))
    return Held(state, rows, fingerprint)
