"""A sampling session: the memories, the decode state and the songs so far, in memory or in a file.

The file is a plain table of arrays (safetensors) with JSON metadata. Letters of shapes are those of `shapes`.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..model import cache as caches
from ..model.cache import Cache
from ..music.song import Song, new_song, notes_of
from ..run.tensors import by_path, read_tensors, write_tensors
from ..vocab import Scheme, Vocabulary
from .decode_state import DecodeState

FORMAT_VERSION = 11
KIND = "midigen_jax state"
_TABLES = ("bars", "meters", "tempos")


class SamplerState(NamedTuple):
    """What sampling carries from token to token."""

    cache: Cache
    decode: DecodeState


class Row(NamedTuple):
    """A row's song so far, on the host. Times are in grid steps."""

    song: Song  # its meters and tempos; the notes are those of the tokens
    tokens: np.ndarray  # uint16 [n], from sos on
    prompt_end: int
    end: int  # where sampling was to stop
    next_time: int  # of the next token

    def song_so_far(self, vocabulary: Vocabulary) -> Song:
        """Cut at its end."""
        notes = notes_of(self.tokens, vocabulary)
        notes = notes[notes[:, 0] < self.end]
        notes[:, 1] = np.minimum(notes[:, 1], self.end - notes[:, 0])
        return self.song._replace(notes=notes)


class Session(NamedTuple):
    state: SamplerState
    rows: list[Row]
    model: str  # fingerprint of the model

    def with_streams(self, streams: Iterable[int]) -> "Session":
        """The session with other streams of random numbers."""
        decode = self.state.decode._replace(stream=jnp.asarray(list(streams), jnp.int32))
        return self._replace(state=self.state._replace(decode=decode))

    def select(self, rows: Sequence[int]) -> "Session":
        """These rows; a row may be selected several times.

        The first copy of a row continues as the row would; each other copy gets the next stream of random numbers that
        no selected row has.
        """
        index = jnp.asarray(rows)
        decode = jax.tree.map(lambda x: x[index], self.state.decode)
        streams = decode.stream.tolist()
        taken = set(streams)
        unused = (i for i in count() if i not in taken)
        own = [streams[i] if rows.index(row) == i else next(unused) for i, row in enumerate(rows)]
        cache = caches.select_rows(self.state.cache, index)
        return self._replace(state=SamplerState(cache, decode), rows=[self.rows[row] for row in rows]).with_streams(own)

    def save(self, path: Path) -> None:
        """Writes a file that `load_session` restores bit by bit."""
        arrays = by_path(self.state)
        for i, row in enumerate(self.rows):
            arrays |= {f"rows/{i}/tokens": row.tokens.astype(np.int32)}
            arrays |= {f"rows/{i}/{name}": np.asarray(getattr(row.song, name), np.int32) for name in _TABLES}
        metadata = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "rows": [[row.prompt_end, row.end, row.next_time] for row in self.rows],
        }
        write_tensors(path, arrays, KIND, metadata)


def load_session(path: Path, abstract: Callable[[int], Any], model: str, scheme: Scheme) -> Session:
    """Reads a session.

    Args:
        abstract: the shapes of the model's states, given a number of rows.
        model: its fingerprint.

    Raises:
        InputError: the file can't be used, or is of another model.
    """
    arrays, metadata = read_tensors(path, KIND, FORMAT_VERSION)
    other = f"{path}: a state of another model, or of another checkpoint of it; give the run or file that it came from"
    if metadata.get("model") != model:
        raise InputError(other)
    shapes = abstract(len(metadata["rows"]))
    paths = by_path(shapes)
    if any(name not in arrays or arrays[name].shape != x.shape for name, x in paths.items()):
        raise InputError(other)
    state = jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in paths])
    rows = []
    for i, (prompt_end, end, next_time) in enumerate(metadata["rows"]):
        tables = [np.asarray(arrays[f"rows/{i}/{name}"]) for name in _TABLES]
        song = new_song(scheme)._replace(bars=tables[0].astype(np.int64), meters=tables[1], tempos=tables[2])
        tokens = np.asarray(arrays[f"rows/{i}/tokens"]).astype(np.uint16)
        rows.append(Row(song, tokens, prompt_end, end, next_time))
    return Session(state, rows, model)
