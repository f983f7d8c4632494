"""Memory ablations: songs read with a memory hidden, or with the kNN memory of another song.

Every song is read from its own empty memory, several side by side. Letters of shapes are those of `shapes`; B are
songs, N a song's tokens.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import vocab
from ..errors import InputError
from ..model import alignment, pointer
from ..model import memory as mem
from ..model.alignment import AlignmentMemory
from ..model.decoder import abstract_decoder
from ..model.memory import KNNMemory, Memory
from ..model.reader import Batch, Visible, read_segment
from ..model.retrieval import Retrieval
from ..music.song import TokenSequence
from ..run.trained import TrainedModel
from ..shapes import Array, Float, Int

NONE, XL, KNN, OTHER_KNN = "no memory", "XL", "XL and kNN", "XL and another song's kNN"
_VISIBLE = {NONE: Visible(False, False), XL: Visible(True, False), KNN: Visible(), OTHER_KNN: Visible()}
_SONG = 0  # the number of every song in its lane


def difference_name(one: str, other: str) -> str:
    """The name of the loss of one minus that of the other."""
    return f"{one} minus {other}"


def without_knn(params: dict) -> dict:
    """The same parameters, with the kNN memory's share at 0."""

    def hidden(path: tuple, x: Array) -> Array:
        name = [key.key for key in path[-2:]]
        return jnp.full_like(x, pointer.NONE) if name in (["knn", "bias"], ["pointer", "bias"]) else x

    return jax.tree.map_with_path(hidden, params)


class _Read(NamedTuple):
    """Of a segment."""

    nats: np.ndarray  # [B, T]
    retrieval: Retrieval
    after: Memory


class SongReader:
    """A model that reads whole songs."""

    def __init__(self, model: TrainedModel):
        self.model, self.config = model, model.config
        self._lanes = max(self.config.data.lanes, 3)  # so that batches of songs never need to hold a single one
        self._graphdef = abstract_decoder(model.config, model.vocabulary)
        # The memory is donated, or the ring would be copied for every segment.
        self._read = jax.jit(self._read_segment, donate_argnames="memory")
        self._init_memory = jax.jit(functools.partial(mem.init_memory, self.config, self._lanes))

    @property
    def ablations(self) -> tuple[str, ...]:
        """Those that this model has memories for."""
        memory = self.config.memory
        return (NONE, *[XL] * (memory.xl > 0), *[KNN, OTHER_KNN] * (memory.knn > 0))

    @property
    def complete(self) -> str:
        """The ablation that hides nothing: the model as it was trained."""
        return KNN if self.config.memory.knn else self.ablations[-1]

    def nats(self, songs: Sequence[TokenSequence], ablation: str) -> list[np.ndarray]:
        """The loss of each token of each song but sos, float32 [N - 1].

        In OTHER_KNN a song sees, in place of its own past, the ring after another song of about its length.

        Raises:
            InputError: OTHER_KNN of only one song.
        """
        if ablation == OTHER_KNN and len(songs) < 2:
            raise InputError("another song's memory needs at least two songs; give more")
        found: dict[int, np.ndarray] = {}
        for batch in self._batches(songs):
            some = [songs[i] for i in batch]
            others = self._memories_of_others(some) if ablation == OTHER_KNN else (None, None)
            rows = np.concatenate([x.nats for x in self._segments(some, ablation, others)], 1)
            found |= {i: row[: n - 1] for i, row, n in zip(batch, rows, _lengths(some), strict=False)}
        return [found[i] for i in range(len(songs))]

    def retrieved(self, songs: Sequence[TokenSequence]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What each token of each song retrieved from its kNN memory.

        Yields:
            For each song the hits' ages in tokens, int32 [H, N, k], 0 where there is none, and their shares of the
            heads' attention, float32 [H, N, k]; a memory by alignment is one more head, whose shares are of the
            prediction.

        Raises:
            InputError: the model has no kNN memory that is searched.
        """
        if not self.config.memory.knn or self.config.memory.backend == "dense":
            raise InputError("this model has no kNN memory that is searched")
        for first in range(0, len(songs), self._lanes):
            some = songs[first : first + self._lanes]
            found = (x.retrieval for x in self._segments(some, KNN))
            parts = [(x.ages, x.weights) for x in found]
            ages, weights = (np.concatenate(part, 2) for part in zip(*parts, strict=True))
            yield from ((ages[i, :, :n], weights[i, :, :n]) for i, n in enumerate(_lengths(some)))

    def _batches(self, songs: Sequence[TokenSequence]) -> Iterator[list[int]]:
        """Songs of about one length together, at least two in a batch unless there is only one."""
        ordered = np.argsort(-_lengths(songs), kind="stable").tolist()
        n_batches = -(-len(ordered) // self._lanes)
        for i in range(n_batches):
            yield ordered[i * len(ordered) // n_batches : (i + 1) * len(ordered) // n_batches]

    def _memories_of_others(self, songs: Sequence[TokenSequence]) -> tuple[KNNMemory | None, AlignmentMemory | None]:
        """The kNN memory at the end of each song's neighbour in the batch."""
        for output in self._segments(songs, XL):
            _, knn, aligned = output.after
        if aligned is not None:
            aligned = alignment.without_scores(aligned)
        if knn is not None:
            knn = knn._replace(write=self._ends(songs))
        neighbours = np.r_[1 : len(songs), 0, len(songs) : self._lanes]
        return jax.tree.map(lambda x: x[neighbours], (knn, aligned))

    def _ends(self, songs: Sequence[TokenSequence]) -> Int[Array, " B"]:
        """The slot of the ring behind each song's last token."""
        segment, lanes = self.config.data.segment, self._lanes
        lengths = np.pad(_lengths(songs), (0, lanes - len(songs)))
        read = -(-int(lengths.max()) // segment) * segment
        # The ring begins with the empty slots of the XL memory; after a shorter song it ends with padding.
        return jnp.asarray(np.minimum(lengths + self.config.memory.xl, read) % self.config.memory.knn, jnp.int32)

    def _segments(
        self,
        songs: Sequence[TokenSequence],
        ablation: str,
        others: tuple[KNNMemory | None, AlignmentMemory | None] = (None, None),
    ) -> Iterator["_Read"]:
        segment, (knn, aligned) = self.config.data.segment, others
        visible = _VISIBLE[ablation]._replace(other_knn=knn, other_alignment=aligned)
        memory = self._init_memory()
        batch = self._batch(songs)
        for begin in range(0, batch["tokens"].shape[1], segment):
            here: Any = {name: x[:, begin : begin + segment] for name, x in batch.items()}
            nats, retrieval, memory, aligned = self._read(self.model.params, memory, here, visible)
            visible = visible._replace(other_alignment=aligned)
            yield _Read(np.asarray(nats), retrieval, memory)

    def _batch(self, songs: Sequence[TokenSequence]) -> dict[str, np.ndarray]:
        """Whole songs, a lane each, padded to whole segments."""
        lengths = _lengths(songs)
        shape = self._lanes, -(-int(lengths.max()) // self.config.data.segment) * self.config.data.segment
        batch = {name: np.full(shape, vocab.PAD, np.int32) for name in TokenSequence._fields}
        batch["targets"] = np.full(shape, vocab.NO_TARGET, np.int32)
        batch["song"] = np.full(shape, vocab.NO_SONG, np.int32)
        for lane, (song, n) in enumerate(zip(songs, lengths, strict=True)):
            for name, x in song._asdict().items():
                batch[name][lane, :n] = x
            batch["targets"][lane, : n - 1] = song.tokens[1:]
            batch["song"][lane, :n] = _SONG
        return batch

    def _read_segment(
        self, params: dict, memory: Memory, batch: Batch, visible: Visible
    ) -> tuple[Float[Array, "B T"], Retrieval, Memory, AlignmentMemory | None]:
        """What is visible is an argument of the program: compiling one per ablation would take longer than reading."""
        output = read_segment(nnx.merge(self._graphdef, params), memory, batch, visible)
        return output.nats, output.retrieval, output.memory, output.other_alignment


def _lengths(songs: Sequence[TokenSequence]) -> np.ndarray:
    """The number of tokens of each song."""
    return np.array([len(song.tokens) for song in songs], int)
