"""Grain: a corpus as steps of contiguous lanes.

A batch has B lanes. Each lane is an endless tape of whole songs, so that memory carried from one step to the next
belongs to the song that goes on. This module does not import JAX, so that loader processes stay light.
"""

import bisect
import heapq
import threading
from collections.abc import Iterator

import grain
import numpy as np

from . import vocab
from .corpus import Corpus
from .kernels.score import transpose

STEP_ARRAYS = ("tokens", "targets", "bar", "step", "song")
NO_TARGET = -1
NO_SONG = -1


class Lanes:
    """Whole songs laid out on B tapes, epoch after epoch.

    In an epoch's order, drawn from the seed, each song goes to the lane that has the fewest tokens so far (of equal
    ones the lowest). The lanes run on into the next epoch without waiting, so there is no remainder. A song's id is the
    running count of songs begun in its lane and never used again.

    With `epochs` set the tapes end; what is read beyond is padding with no targets and `NO_SONG`.
    """

    def __init__(
        self,
        corpus: Corpus,
        songs: np.ndarray,
        n_lanes: int,
        *,
        seed: int | None = None,
        epochs: int | None = None,
        transpose: int = 0,
    ):
        """
        Args:
            songs: indices of the songs to lay out.
            seed: of each epoch's order; None keeps the order of `songs`.
            transpose: each song is shifted by up to this many semitones, drawn from (seed, epoch, song).
        """
        self.corpus, self.songs, self.seed, self.epochs, self.transpose = corpus, songs, seed, epochs, transpose
        self.n_epochs = 0  # planned so far
        self.tapes: list[list[tuple[int, int]]] = [[] for _ in range(n_lanes)]  # (song, semitones)
        self.starts: list[list[int]] = [[0] for _ in range(n_lanes)]  # of the tape's songs, and its end
        self._lock = threading.Lock()  # the loader reads from several threads

    def _plan_epoch(self) -> None:
        random = np.random.default_rng([self.seed or 0, self.n_epochs])
        order = self.songs if self.seed is None else random.permutation(self.songs)
        semitones = random.integers(-self.transpose, self.transpose, len(order), endpoint=True)
        lengths = np.diff(self.corpus.offsets)
        lanes = [(starts[-1], lane) for lane, starts in enumerate(self.starts)]
        heapq.heapify(lanes)
        for song, shift in zip(order.tolist(), semitones.tolist(), strict=True):
            end, lane = lanes[0]
            self.tapes[lane].append((song, shift))
            end += int(lengths[song])
            self.starts[lane].append(end)
            heapq.heapreplace(lanes, (end, lane))
        self.n_epochs += 1

    def length(self) -> int:
        """Tokens of the longest lane of what is planned."""
        return max(starts[-1] for starts in self.starts)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of STEP_ARRAYS, int32 [B, stop - start], at these places of every tape."""
        with self._lock:
            while (self.epochs is None or self.n_epochs < self.epochs) and (
                min(starts[-1] for starts in self.starts) <= stop
            ):
                self._plan_epoch()
        shape = (len(self.tapes), stop - start + 1)  # one more: the target of the last token
        tokens = np.full(shape, vocab.PAD, np.int32)
        bar, step = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        song_id = np.full(shape, NO_SONG, np.int32)
        for lane, (tape, starts) in enumerate(zip(self.tapes, self.starts, strict=True)):
            i = bisect.bisect_right(starts, start) - 1
            while i < len(tape) and starts[i] <= stop:
                song, shift = tape[i]
                begin, end = max(starts[i], start), min(starts[i + 1], stop + 1)
                here = slice(begin - start, end - start)
                there = slice(*(int(self.corpus.offsets[song]) - starts[i] + place for place in (begin, end)))
                tokens[lane, here] = self._transposed(song, shift, there)
                bar[lane, here] = self.corpus.bar[there]
                step[lane, here] = self.corpus.step[there]
                song_id[lane, here] = i
                i += 1
        targets = np.where(song_id[:, 1:] == song_id[:, :-1], tokens[:, 1:], NO_TARGET)
        targets[song_id[:, :-1] == NO_SONG] = NO_TARGET
        return {
            "tokens": tokens[:, :-1],
            "targets": targets,
            "bar": bar[:, :-1],
            "step": step[:, :-1],
            "song": song_id[:, :-1],
        }

    def _transposed(self, song: int, semitones: int, part: slice) -> np.ndarray:
        if semitones == 0:
            return self.corpus.tokens[part]
        whole = transpose(np.asarray(self.corpus.tokens_of(song)), semitones, self.corpus.vocabulary.scheme)
        if len(whole) == 0:  # a song that would leave the 128 pitches stays as it is
            return self.corpus.tokens[part]
        begin = int(self.corpus.offsets[song])
        return whole[part.start - begin : part.stop - begin]


class Steps:
    """Lanes cut into steps: a random-access source for Grain, one element a step of all lanes."""

    def __init__(self, lanes: Lanes, tokens_per_step: int, n_steps: int):
        self.lanes, self.tokens_per_step, self.n_steps = lanes, tokens_per_step, n_steps

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of STEP_ARRAYS, int32 [B, S * T]; targets are NO_TARGET where there is no loss."""
        return self.lanes.read(step * self.tokens_per_step, (step + 1) * self.tokens_per_step)


def training_steps(
    corpus: Corpus,
    songs: np.ndarray,
    *,
    n_lanes: int,
    tokens_per_step: int,
    n_steps: int,
    first: int,
    seed: int,
    transpose: int = 0,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Steps `first` to `n_steps` of the endless tapes, read ahead by threads; what they hold depends on neither."""
    source = Steps(Lanes(corpus, songs, n_lanes, seed=seed, transpose=transpose), tokens_per_step, n_steps)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source)[first:].to_iter_dataset(options))


def whole_songs(
    corpus: Corpus, songs: np.ndarray, *, n_lanes: int, tokens_per_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Every token of the songs once, in their own order, padded at the end of each lane."""
    lanes = Lanes(corpus, songs, n_lanes, epochs=1)
    lanes.read(0, 0)
    return iter(grain.MapDataset.source(Steps(lanes, tokens_per_step, -(-lanes.length() // tokens_per_step))))
