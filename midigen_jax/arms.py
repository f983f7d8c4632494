"""What each memory is worth: songs read with a memory switched off, or with the kNN memory of another song.

Every song is read from its own empty memory, several side by side. Letters of shapes are those of `shapes`; B are
songs, N a song's tokens.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from . import config as cfg
from . import memory as mem
from . import model
from .cli import InputError
from .memory import KNNMemory, Memory
from .recall import Recall
from .shapes import Array, Float, Int
from .song import Tape
from .vocab import PAD, Vocabulary

NONE, XL, KNN, ANOTHER = "no memory", "XL", "XL and kNN", "XL and another song's kNN"
# Whether the XL and the kNN memory are seen.
SEES = {NONE: (False, False), XL: (True, False), KNN: (True, True), ANOTHER: (True, True)}
SONG = 0  # the number that a song has in its lane


def less(one: str, other: str) -> str:
    """The name of a difference in loss."""
    return f"{one} less {other}"


def without_knn(params: dict) -> dict:
    """The same parameters, but that what is in the kNN memory counts for nothing."""
    return jax.tree.map_with_path(lambda path, x: jnp.full_like(x, -1e9) if path[-1].key == "gate" else x, params)


class Reader:
    """A model that reads whole songs."""

    def __init__(self, config: cfg.Config, params: dict, vocabulary: Vocabulary):
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self._rows = max(config.data.lanes, 3)  # so that several songs can be shared out with none alone
        self._graphdef = model.abstract(config, vocabulary)
        # The memory is given away, or the ring would be copied for every segment.
        self._read = jax.jit(self._read_segment, donate_argnames="memory")
        self._empty = jax.jit(mem.init_memory, static_argnums=(0, 1))

    @property
    def arms(self) -> tuple[str, ...]:
        """Those that this model has memories for."""
        memory = self.config.memory
        return (NONE, *[XL] * (memory.xl > 0), *[KNN, ANOTHER] * (memory.knn > 0))

    @property
    def whole(self) -> str:
        """The model as it was trained."""
        return KNN if self.config.memory.knn else self.arms[-1]

    def nats(self, songs: Sequence[Tape], arm: str) -> list[np.ndarray]:
        """The loss of each token of each song, float32 [N - 1]: sos has none.

        In the control a song finds, instead of its own past, what the ring holds after another song of about its
        length.

        Raises:
            InputError: the control has only one song.
        """
        if arm == ANOTHER and len(songs) < 2:
            raise InputError("another song's memory needs at least two songs; give more")
        found: dict[int, np.ndarray] = {}
        for batch in self._batches(songs):
            tapes = [songs[i] for i in batch]
            rings = self._rings_of_others(tapes) if arm == ANOTHER else None
            rows = np.concatenate([nats for nats, *_ in self._segments(tapes, arm, rings)], 1)
            found |= {i: row[: n - 1] for i, row, n in zip(batch, rows, _lengths(tapes), strict=False)}
        return [found[i] for i in range(len(songs))]

    def recalled(self, songs: Sequence[Tape]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What each token of each song found in its kNN memory: the hits' ages in tokens, int32 [H, N, k], 0 where
        there is none, and their shares of the heads' attention, float32 [H, N, k].

        Raises:
            InputError: the model has no kNN memory that is searched.
        """
        if not self.config.memory.knn or self.config.memory.backend == "dense":
            raise InputError("this model has no kNN memory that is searched")
        for first in range(0, len(songs), self._rows):
            batch = songs[first : first + self._rows]
            parts = [(recall.ages, recall.weights) for _, _, recall in self._segments(batch, KNN, None)]
            ages, weights = (np.concatenate(part, 2) for part in zip(*parts, strict=True))
            yield from ((ages[i, :, :n], weights[i, :, :n]) for i, n in enumerate(_lengths(batch)))

    def _batches(self, songs: Sequence[Tape]) -> Iterator[list[int]]:
        """Songs of about one length together; none alone, unless it is the only one."""
        ordered = np.argsort(-_lengths(songs), kind="stable").tolist()
        n_batches = -(-len(ordered) // self._rows)
        for i in range(n_batches):
            yield ordered[i * len(ordered) // n_batches : (i + 1) * len(ordered) // n_batches]

    def _rings_of_others(self, songs: Sequence[Tape]) -> KNNMemory:
        """The kNN memory that each song's neighbour in the batch leaves."""
        memory = None
        for _, memory, _ in self._segments(songs, XL, None):  # noqa: B007  (the last one)
            pass
        assert memory is not None
        assert memory.knn is not None
        segment, lanes = self.config.data.segment, self._rows
        lengths = np.pad(_lengths(songs), (0, lanes - len(songs)))
        read = -(-int(lengths.max()) // segment) * segment
        # Before a song the empty XL memory went to the ring, and behind it, where others are longer, padding.
        end = np.minimum(lengths + self.config.memory.xl, read) % self.config.memory.knn
        left = memory.knn._replace(write=jnp.asarray(end, jnp.int32))
        others = np.r_[1 : len(songs), 0, len(songs) : lanes]
        return jax.tree.map(lambda x: x[others], left)

    def _segments(
        self, songs: Sequence[Tape], arm: str, rings: KNNMemory | None
    ) -> Iterator[tuple[np.ndarray, Memory, Recall]]:
        """The loss [B, T] of the token after each of a segment, the memory after it, and what was recalled."""
        lanes, segment, lengths = self._rows, self.config.data.segment, _lengths(songs)
        slots = -(-int(lengths.max()) // segment) * segment + 1
        tape = {name: np.full((lanes, slots), PAD, np.int32) for name in ("tokens", "bar", "step")}
        tape["song"] = np.full((lanes, slots), mem.NO_SONG, np.int32)
        for lane, (song, length) in enumerate(zip(songs, lengths, strict=True)):
            for name, x in song._asdict().items():
                tape[name][lane, :length] = x
            tape["song"][lane, :length] = SONG
        memory = self._empty(self.config, lanes)
        for begin in range(0, slots - 1, segment):
            part = {name: x[:, begin : begin + segment] for name, x in tape.items()}
            targets = tape["tokens"][:, begin + 1 : begin + segment + 1]
            nats, memory, recall = self._read(self.params, memory, part, targets, rings, SEES[arm])
            yield np.asarray(nats), memory, recall

    def _read_segment(
        self,
        params: dict,
        memory: Memory,
        part: dict[str, Array],
        targets: Int[Array, "B T"],
        rings: KNNMemory | None,
        sees: tuple[Array, Array],
    ) -> tuple[Float[Array, "B T"], Memory, Recall]:
        """What is seen is no part of the program: to compile one for each arm would take longer than to read a song."""
        xl, knn = memory
        heard, (sees_xl, sees_knn) = rings or knn, sees
        xl = xl._replace(song=jnp.where(sees_xl, xl.song, mem.NO_SONG))
        if heard is not None:
            heard = heard._replace(song=jnp.where(sees_knn, heard.song, mem.NO_SONG))
        inputs = (part[name] for name in ("tokens", "bar", "step", "song"))
        output = nnx.merge(self._graphdef, params)(*inputs, Memory(xl, heard))
        nats = optax.softmax_cross_entropy_with_integer_labels(output.logits, targets)
        window = output.window._replace(song=jnp.concatenate([memory.xl.song, part["song"]], 1))
        knn = knn and mem.after_reading(knn, output.logits)
        memory = mem.roll(window, knn, self.config.data.segment)
        return nats, memory, output.recall


def _lengths(songs: Sequence[Tape]) -> np.ndarray:
    """Tokens of each song."""
    return np.array([len(song.tokens) for song in songs], int)
