"""Grain: a corpus as steps of contiguous lanes.

A batch has B lanes. Each lane is an endless tape of whole songs, so that memory carried from one step to the next
belongs to the song that goes on. What stands where on the tapes follows from the seed alone: to go on, a run needs no
more than the number of its step. This module does not import JAX, so that loader processes stay light.
"""

import bisect
import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from . import config as cfg
from . import vocab
from .corpus import Corpus
from .kernels.lanes import assign
from .kernels.score import pitched

STEP_ARRAYS = ("tokens", "targets", "bar", "step", "song")
PLACES = ("index", "song", "semitones", "louder")
NO_TARGET = -1
NO_SONG = -1
NO_TOKEN = -1  # the index of what is padding
_PLANS = 4  # epochs that are kept; any other is planned again when it is asked for


class Epoch(NamedTuple):
    """Where the songs of an epoch are, lane after lane, those of each lane in the order of its tape."""

    songs: np.ndarray  # int64 [n], indices in the corpus
    starts: np.ndarray  # int64 [n], of each song's first token on its lane's tape
    semitones: np.ndarray  # int64 [n], by which each is transposed
    louder: np.ndarray  # int64 [n], by how many velocity tokens
    lanes: np.ndarray  # int64 [B + 1]: lane b has the songs from lanes[b] up to, not including, lanes[b + 1]


class Piece(NamedTuple):
    """A stretch of one song in what is read."""

    row: int
    here: slice  # of the arrays that are read
    there: slice  # of the corpus
    song: int  # index in the corpus
    number: int  # songs that began in the lane before it
    semitones: int
    louder: int


def read_whole(corpus: Corpus) -> Corpus:
    """The same corpus with its tokens in memory."""
    tokens, bar, step = (np.array(x) for x in (corpus.tokens, corpus.bar, corpus.step))
    return corpus._replace(tokens=tokens, bar=bar, step=step)


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
        rows: range | None = None,
        seed: int | None = None,
        epochs: int | None = None,
        transpose: int = 0,
        louder: int = 0,
        in_memory: bool = False,
    ):
        """
        Args:
            songs: indices of the songs to lay out.
            rows: the lanes that are read, for a host that has a share of them; None: all.
            seed: of each epoch's order; None keeps the order of `songs`.
            transpose: each song is shifted by up to this many semitones, drawn from (seed, epoch, song).
            louder: each song's velocity tokens are shifted by up to this many, drawn likewise.
            in_memory: the corpus is read once, by every process.
        """
        self.in_memory = in_memory
        self.corpus = read_whole(corpus) if in_memory else corpus
        self.songs, self.seed, self.epochs = songs, seed, epochs
        self.transpose, self.louder = transpose, louder
        self.rows = range(n_lanes) if rows is None else rows
        # Before each epoch, and after the last one planned: where the lanes end and how many songs they have. That is
        # all that an epoch's plan depends on beside the seed.
        self.ends = [np.zeros(n_lanes, np.int64)]
        self.counts = [np.zeros(n_lanes, np.int64)]
        self._plans: dict[int, Epoch] = {}
        self._lock = threading.Lock()  # the loader reads from several threads

    def __getstate__(self) -> dict:
        """Another process makes the plans again."""
        return self.__dict__ | {"_plans": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}
        if self.in_memory:
            self.corpus = read_whole(self.corpus)

    def plan(self, number: int) -> Epoch:
        """The plan of an epoch; those before it have been planned."""
        if number in self._plans:
            return self._plans[number]
        random = np.random.default_rng([self.seed or 0, number])
        n_songs = len(self.corpus.offsets) - 1
        order = self.songs if self.seed is None else random.permutation(self.songs)
        semitones, louder = (
            random.integers(-x, x, n_songs, endpoint=True)[order] for x in (self.transpose, self.louder)
        )
        ends = self.ends[number].copy()
        lanes, starts = assign(np.diff(self.corpus.offsets)[order], ends)
        by_lane = np.argsort(lanes, kind="stable")
        counts = np.bincount(lanes, minlength=len(ends))
        if number == len(self.ends) - 1:
            self.ends.append(ends)
            self.counts.append(self.counts[number] + counts)
        while len(self._plans) >= _PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[number] = Epoch(
            order[by_lane],
            starts[by_lane],
            semitones[by_lane],
            louder[by_lane],
            np.concatenate([[0], np.cumsum(counts)]),
        )
        return self._plans[number]

    def length(self) -> int:
        """Tokens of the longest lane, if the tapes end."""
        assert self.epochs is not None
        with self._lock:
            while len(self.ends) <= self.epochs:
                self.plan(len(self.ends) - 1)
        return int(self.ends[self.epochs].max())

    def _pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """What stands at these places of the tapes."""
        with self._lock:
            while (self.epochs is None or len(self.ends) <= self.epochs) and self.ends[-1].min() < stop:
                self.plan(len(self.ends) - 1)
            first = bisect.bisect_right(self.ends, start, key=np.max) - 1
            last = bisect.bisect_left(self.ends, stop, key=np.min, hi=len(self.ends) - 1)
            epochs = [(self.plan(number), self.counts[number]) for number in range(first, last)]
        for epoch, counts in epochs:
            for row, lane in enumerate(self.rows):
                begin, end = epoch.lanes[lane : lane + 2].tolist()
                starts = epoch.starts[begin:end]
                some = slice(max(int(starts.searchsorted(start, "right")) - 1, 0), int(starts.searchsorted(stop)))
                for i, place in enumerate(starts[some].tolist(), some.start):
                    song = int(epoch.songs[begin + i])
                    offset, after = self.corpus.offsets[song : song + 2].tolist()
                    read_from, read_to = max(place, start), min(place + after - offset, stop)
                    if read_from < read_to:
                        yield Piece(
                            row,
                            slice(read_from - start, read_to - start),
                            slice(read_from - place + offset, read_to - place + offset),
                            song,
                            int(counts[lane]) + i,
                            self._fitting(song, int(epoch.semitones[begin + i])),
                            int(epoch.louder[begin + i]),
                        )

    def _fitting(self, song: int, semitones: int) -> int:
        """The same semitones, or 0 if the song would leave the 128 pitches."""
        if semitones:
            tokens = self.corpus.tokens_of(song)
            notes = tokens[pitched(tokens, self.corpus.vocabulary.scheme)].astype(int) + semitones
            if notes.min(initial=vocab.NOTE_0) < vocab.NOTE_0 or notes.max(initial=0) >= vocab.DURATION_0:
                return 0
        return semitones

    def _empty(self, start: int, stop: int, **fill: int) -> dict[str, np.ndarray]:
        return {name: np.full((len(self.rows), stop - start), value, np.int32) for name, value in fill.items()}

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The arrays of STEP_ARRAYS, int32 [rows, stop - start], at these places of the tapes."""
        # One more: the target of the last token.
        read = self._empty(start, stop + 1, tokens=vocab.PAD, bar=0, step=0, song=NO_SONG)
        for piece in self._pieces(start, stop + 1):
            at = piece.row, piece.here
            read["tokens"][at] = self._augmented(piece)
            read["bar"][at] = self.corpus.bar[piece.there]
            read["step"][at] = self.corpus.step[piece.there]
            read["song"][at] = piece.number
        return with_targets(read)

    def _augmented(self, piece: Piece) -> np.ndarray:
        tokens, scheme = self.corpus.tokens[piece.there], self.corpus.vocabulary.scheme
        if piece.semitones:
            begin = int(self.corpus.offsets[piece.song])
            notes = pitched(self.corpus.tokens[begin : piece.there.stop], scheme)[piece.there.start - begin :]
            tokens = tokens + piece.semitones * notes
        if piece.louder and scheme.velocities:
            first = vocab.velocity_0(scheme)
            shifted = np.clip(tokens.astype(int) + piece.louder, first, scheme.size - 1)
            tokens = np.where((tokens >= first) & (tokens < scheme.size), shifted, tokens)
        return tokens

    def places(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Where the tokens that `read` reads are in the corpus, and how they are changed.

        Returns:
            The arrays of PLACES, int32 [rows, stop - start + 1]; the last place is there for its target.
        """
        places = self._empty(start, stop + 1, index=NO_TOKEN, song=NO_SONG, semitones=0, louder=0)
        for piece in self._pieces(start, stop + 1):
            at = piece.row, piece.here
            places["index"][at] = np.arange(piece.there.start, piece.there.stop)
            places["song"][at] = piece.number
            places["semitones"][at] = piece.semitones
            places["louder"][at] = piece.louder
        return places


def with_targets(read: dict[str, Any]) -> dict[str, Any]:
    """A step from its arrays and one place more, of NumPy or of JAX: the targets are the song's next tokens."""
    song, tokens = read["song"], read["tokens"]
    goes_on = (song[:, 1:] == song[:, :-1]) & (song[:, :-1] != NO_SONG)
    targets = song.__array_namespace__().where(goes_on, tokens[:, 1:], NO_TARGET)
    return {name: x[:, :-1] for name, x in read.items()} | {"targets": targets}


class Steps:
    """Lanes cut into steps: a random-access source for Grain, one element a step of all lanes."""

    def __init__(self, lanes: Lanes, tokens_per_step: int, n_steps: int, *, places: bool = False):
        self.lanes, self.tokens_per_step, self.n_steps, self.places = lanes, tokens_per_step, n_steps, places

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """What `Lanes.read` gives, or `Lanes.places`, for S * T tokens of every lane."""
        read = self.lanes.places if self.places else self.lanes.read
        return read(step * self.tokens_per_step, (step + 1) * self.tokens_per_step)


def training_steps(
    config: cfg.Config, corpus: Corpus, *, first: int = 0, rows: range | None = None
) -> Generator[dict[str, np.ndarray], None, None]:
    """Steps `first` to `train.steps` of the endless tapes, read ahead by threads or processes.

    What they hold depends on neither. If a process of the loader is killed, threads go on in its place. Close it, or
    its processes stay.
    """
    settings = config.data
    lanes = Lanes(
        corpus,
        corpus.songs_of("train"),
        settings.lanes,
        rows=rows,
        seed=settings.seed,
        transpose=settings.transpose,
        louder=settings.louder,
        in_memory=settings.location == "host",
    )
    tokens_per_step = settings.segment * settings.segments
    source = Steps(lanes, tokens_per_step, config.train.steps, places=settings.location == "device")
    if settings.workers:
        first = yield from _through_pipes(source, first, settings.workers)
    with contextlib.closing(_read_ahead(source, slice(first, None))) as steps:
        yield from steps


def _read_ahead(source: Steps, part: slice) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    return iter(grain.MapDataset.source(source)[part].to_iter_dataset(grain.ReadOptions(2, prefetch_buffer_size=8)))


def _through_pipes(source: Steps, first: int, workers: int) -> Generator[dict[str, np.ndarray], None, int]:
    """Steps from `first` on, one of each process in turn, and then which would be the next: if one ends they all do.

    Grain's own processes keep steps in a queue that waits for ever if one is killed while it writes into it.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for i in range(workers):
            pipe, end = spawn.Pipe(duplex=False)
            pipes.append(pipe)
            part = slice(first + i, None, workers)
            process = spawn.Process(target=_send, args=(end, source, part), daemon=True)
            with _signals_held():
                process.start()
            processes.append(process)
            end.close()  # now the pipe ends when the process does
        for step in range(first, len(source)):
            try:
                batch = pipes[(step - first) % workers].recv()
            except (EOFError, OSError):
                tqdm.write("a process of the loader was killed or failed; the run goes on with threads in its place")
                return step
            yield batch
        return len(source)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.kill()
            process.join()


def _send(pipe: Connection, source: Steps, part: slice) -> None:
    """What a loader's process does, until it is done or nobody reads any more."""
    with contextlib.suppress(BrokenPipeError), contextlib.closing(_read_ahead(source, part)) as steps:
        for batch in steps:
            pipe.send(batch)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that begin meanwhile never hear Ctrl-C or SIGTERM; this one's other threads do.

    Ctrl-C goes to all processes of a terminal, but the step that is finished needs the loader's data.
    """
    resource_tracker.ensure_running()  # which would end the hold when it begins later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def whole_songs(
    corpus: Corpus, songs: np.ndarray, *, n_lanes: int, tokens_per_step: int, rows: range | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every token of the songs once, in their own order, padded at the end of each lane."""
    lanes = Lanes(corpus, songs, n_lanes, rows=rows, epochs=1)
    return iter(grain.MapDataset.source(Steps(lanes, tokens_per_step, -(-lanes.length() // tokens_per_step))))
