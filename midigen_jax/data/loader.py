"""The data loader: a corpus as batches of contiguous lanes, read ahead by Grain.

A batch has B lanes. Each lane is an endless sequence of whole songs, so the memory that is carried from one training
step to the next belongs to the song that continues. The seed alone determines the sequences: to resume, a run needs
only the number of its step. Grain, which imports JAX and sets up logging, is imported when reading begins.
"""

import bisect
import contextlib
import math
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import config as cfg
from .. import vocab
from ..errors import InputError
from ..kernels.lanes import assign
from ..music.song import pitched, transpose
from ..vocab import NO_SONG, NO_TARGET
from .corpus import Corpus

if TYPE_CHECKING:
    import grain

BATCH_ARRAYS = ("tokens", "targets", "bar", "position", "song")
LOOKUP_ARRAYS = ("index", "song", "semitones", "velocity_offset")
MODULATIONS = [x for x in range(-6, 7) if x]  # semitones
NO_TOKEN = -1  # the index of padding
_MAX_PLANS = 4  # epochs whose plans are kept; others are planned again when needed


class Epoch(NamedTuple):
    """The songs of an epoch, lane after lane, in each lane in their order."""

    songs: np.ndarray  # int64 [n], indices in the corpus
    starts: np.ndarray  # int64 [n], the offset of each song in its lane
    semitones: np.ndarray  # int64 [n], by which each song is transposed
    velocity_offset: np.ndarray  # int64 [n], in velocity tokens
    modulation: np.ndarray  # int64 [n], semitones by which each song changes its key; 0: it does not
    modulates_at: np.ndarray  # float64 [n], after which share of its bars
    lanes: np.ndarray  # int64 [B + 1]: lane b has the songs lanes[b] to lanes[b + 1] - 1


class Span(NamedTuple):
    """The part of a song that is in a batch."""

    row: int
    target: slice  # of the batch's row
    source: slice  # of the corpus
    song: int  # index in the corpus
    number: int  # of songs that began in the lane before it
    semitones: int
    velocity_offset: int


def read_whole(corpus: Corpus) -> Corpus:
    """The same corpus with its tokens in memory."""
    tokens, bar, position = (np.array(x) for x in (corpus.tokens, corpus.bar, corpus.position))
    return corpus._replace(tokens=tokens, bar=bar, position=position)


class Lanes:
    """Whole songs in B lanes, epoch after epoch.

    In an order drawn from the seed, each song of an epoch is appended to the lane with the fewest tokens so far (of
    equal ones the lowest). Each lane continues with the next epoch at once, so there is no remainder. A song's id is
    the number of songs that began in its lane before it; it is never reused.

    If `epochs` is set the lanes end; beyond their end is padding without targets and with NO_SONG.
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
        velocity_offset: int = 0,
        modulate: float = 0.0,
        repeats: np.ndarray | None = None,
        in_memory: bool = False,
    ):
        """
        Args:
            songs: indices of the songs.
            rows: the lanes to read, for a host with a share of them; None: all.
            seed: of the order in each epoch; None keeps the order of `songs`.
            transpose: each song is shifted by up to this many semitones, drawn from (seed, epoch, song).
            velocity_offset: each song's velocity tokens are shifted by up to this many, drawn alike.
            modulate: this share of the songs goes on in another key from a bar in its middle half on, drawn alike.
            repeats: float [songs of the corpus], how often each song is read in an epoch; of a fraction, whether once
                more is drawn from (seed, epoch, song). None: once each.
            in_memory: every process reads the corpus into memory once.
        """
        self.in_memory = in_memory
        self.corpus = read_whole(corpus) if in_memory else corpus
        self.songs, self.seed, self.epochs = songs, seed, epochs
        self.transpose, self.velocity_offset, self.modulate = transpose, velocity_offset, modulate
        self.repeats = np.ones(len(corpus.offsets) - 1) if repeats is None else repeats
        self.rows = range(n_lanes) if rows is None else rows
        # Before each epoch, and after the last one planned: the lengths of the lanes and their numbers of songs. An
        # epoch's plan depends only on these and the seed.
        self.ends = [np.zeros(n_lanes, np.int64)]
        self.counts = [np.zeros(n_lanes, np.int64)]
        self._plans: dict[int, Epoch] = {}
        self._lock = threading.Lock()  # the loader reads from several threads

    def __getstate__(self) -> dict:
        """Another process makes its own plans."""
        return self.__dict__ | {"_plans": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}
        if self.in_memory:
            self.corpus = read_whole(self.corpus)

    def plan(self, number: int) -> Epoch:
        """The plan of an epoch; all earlier ones have been planned."""
        if number in self._plans:
            return self._plans[number]
        random = np.random.default_rng([self.seed or 0, number])
        order = self.songs if self.seed is None else random.permutation(self._readings(number))
        n = len(self.repeats) * max(math.ceil(self.repeats.max()), 1)
        semitones, velocity_offset = (
            random.integers(-x, x, n, endpoint=True)[order] for x in (self.transpose, self.velocity_offset)
        )
        modulation = np.where(random.random(n) < self.modulate, random.choice(MODULATIONS, n), 0)[order]
        modulates_at = random.uniform(0.25, 0.75, n)[order]
        order = order % len(self.repeats)
        ends = self.ends[number].copy()
        lanes, starts = assign(np.diff(self.corpus.offsets)[order], ends)
        by_lane = np.argsort(lanes, kind="stable")
        counts = np.bincount(lanes, minlength=len(ends))
        if number == len(self.ends) - 1:
            self.ends.append(ends)
            self.counts.append(self.counts[number] + counts)
        while len(self._plans) >= _MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[number] = Epoch(
            order[by_lane],
            starts[by_lane],
            semitones[by_lane],
            velocity_offset[by_lane],
            modulation[by_lane],
            modulates_at[by_lane],
            np.concatenate([[0], np.cumsum(counts)]),
        )
        return self._plans[number]

    def _readings(self, number: int) -> np.ndarray:
        """The songs of an epoch, each as often as it is read: its index, plus the number of songs each further time."""
        draws = np.random.default_rng([self.seed or 0, number, 1]).random(len(self.repeats))
        times = np.floor(self.repeats + draws).astype(int)[self.songs]
        n_earlier = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.repeat(self.songs, times) + len(self.repeats) * n_earlier

    def length(self) -> int:
        """The length of the longest lane in tokens, if the lanes end."""
        assert self.epochs is not None
        with self._lock:
            while len(self.ends) <= self.epochs:
                self.plan(len(self.ends) - 1)
        return int(self.ends[self.epochs].max())

    def _spans(self, start: int, stop: int) -> Iterator[Span]:
        """The parts of songs between these offsets of the lanes."""
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
                for i, begins in enumerate(starts[some].tolist(), some.start):
                    song = int(epoch.songs[begin + i])
                    offset = begins - int(self.corpus.offsets[song])  # from the corpus to the lane
                    for part, semitones in self._keys(epoch, begin + i):
                        read_from, read_to = max(part.start + offset, start), min(part.stop + offset, stop)
                        if read_from < read_to:
                            yield Span(
                                row,
                                slice(read_from - start, read_to - start),
                                slice(read_from - offset, read_to - offset),
                                song,
                                int(counts[lane]) + i,
                                semitones,
                                int(epoch.velocity_offset[begin + i]),
                            )

    def _keys(self, epoch: Epoch, i: int) -> list[tuple[slice, int]]:
        """The parts of a song of an epoch, and the semitones by which each is transposed."""
        song = int(epoch.songs[i])
        begin, end = self.corpus.offsets[song : song + 2].tolist()
        semitones, modulation = self._fitting(song, int(epoch.semitones[i])), int(epoch.modulation[i])
        after = semitones + modulation
        if not modulation or self._fitting(song, after) != after:
            return [(slice(begin, end), semitones)]
        bar = self.corpus.bar[begin:end]
        change = begin + int(np.searchsorted(bar, round(epoch.modulates_at[i] * int(bar[-1]))))
        return [(slice(begin, change), semitones), (slice(change, end), after)]

    def _fitting(self, song: int, semitones: int) -> int:
        """The semitones, or 0 if the song would leave the 128 pitches."""
        if semitones:
            tokens = self.corpus.tokens_of(song)
            if len(transpose(tokens, semitones, self.corpus.vocabulary)) == 0:
                return 0
        return semitones

    def _filled(self, start: int, stop: int, **fill: int) -> dict[str, np.ndarray]:
        return {name: np.full((len(self.rows), stop - start), value, np.int32) for name, value in fill.items()}

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The BATCH_ARRAYS between these offsets of the lanes: int32 [rows, stop - start]."""
        # One token more: the target of the last one.
        read = self._filled(start, stop + 1, tokens=vocab.PAD, bar=0, position=0, song=NO_SONG)
        for span in self._spans(start, stop + 1):
            at = span.row, span.target
            read["tokens"][at] = self._augmented(span)
            read["bar"][at] = self.corpus.bar[span.source]
            read["position"][at] = self.corpus.position[span.source]
            read["song"][at] = span.number
        return with_targets(read)

    def _augmented(self, span: Span) -> np.ndarray:
        tokens, vocabulary = self.corpus.tokens[span.source], self.corpus.vocabulary
        if span.semitones:
            begin = int(self.corpus.offsets[span.song])
            notes = pitched(self.corpus.tokens[begin : span.source.stop], vocabulary)[span.source.start - begin :]
            tokens = tokens + span.semitones * notes
        if span.velocity_offset and (velocities := vocabulary.velocity_tokens):
            shifted = np.clip(tokens.astype(int) + span.velocity_offset, velocities.start, velocities.stop - 1)
            tokens = np.where((tokens >= velocities.start) & (tokens < velocities.stop), shifted, tokens)
        return tokens

    def lookup(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The indices in the corpus of the tokens that `read` gives, and how they are transposed and shifted.

        Returns:
            The LOOKUP_ARRAYS, int32 [rows, stop - start + 1]; the last index is that of the last target.
        """
        lookup = self._filled(start, stop + 1, index=NO_TOKEN, song=NO_SONG, semitones=0, velocity_offset=0)
        for span in self._spans(start, stop + 1):
            at = span.row, span.target
            lookup["index"][at] = np.arange(span.source.start, span.source.stop)
            lookup["song"][at] = span.number
            lookup["semitones"][at] = span.semitones
            lookup["velocity_offset"][at] = span.velocity_offset
        return lookup


def with_targets(read: dict[str, Any]) -> dict[str, Any]:
    """A batch from arrays with one token more, of NumPy or JAX: the targets are the next tokens of the same song."""
    song, tokens = read["song"], read["tokens"]
    continues = (song[:, 1:] == song[:, :-1]) & (song[:, :-1] != NO_SONG)
    targets = song.__array_namespace__().where(continues, tokens[:, 1:], NO_TARGET)
    return {name: x[:, :-1] for name, x in read.items()} | {"targets": targets}


class Steps:
    """Lanes divided into training steps: a random-access source for Grain, one batch per step."""

    def __init__(self, lanes: Lanes, tokens_per_step: int, n_steps: int, *, lookup: bool = False):
        self.tokens_per_step, self.n_steps = tokens_per_step, n_steps
        self.read = lanes.lookup if lookup else lanes.read

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """`Lanes.read`, or `Lanes.lookup`, of the step's tokens of every lane."""
        return self.read(step * self.tokens_per_step, (step + 1) * self.tokens_per_step)


def repeats_of(corpus: Corpus, settings: cfg.Data) -> np.ndarray:
    """How often each song of the corpus is read in an epoch, by the mixture of the settings: float [songs].

    Raises:
        InputError: the corpus has no training song in a folder of the mixture, or all songs are left out.
    """
    repeats, training = np.ones(len(corpus.names)), corpus.songs_of("train")
    for folder, number in settings.repeats.items():
        inside = np.array([name.startswith(f"{folder}/") for name in corpus.names], bool)
        if not inside[training].any():
            raise InputError(
                f"data.mixture: {corpus.path} has no training songs in a folder {folder}; correct its name"
            )
        repeats[inside] = number
    if len(training) and not (repeats[training] >= 1).any():
        raise InputError("data.mixture: no song is read in every epoch; give one of the folders at least 1")
    return repeats


def training_steps(
    config: cfg.Config, corpus: Corpus, *, first: int = 0, rows: range | None = None
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of steps `first` to `train.steps`, read ahead by threads or processes.

    They do not depend on `data.workers`. If a loader process is killed, threads take over. Close the generator to end
    its processes.
    """
    settings = config.data
    lanes = Lanes(
        corpus,
        corpus.songs_of("train"),
        settings.lanes,
        rows=rows,
        seed=settings.seed,
        transpose=settings.transpose,
        velocity_offset=settings.velocity_offset,
        modulate=settings.modulate,
        repeats=repeats_of(corpus, settings),
        in_memory=settings.location == "host",
    )
    tokens_per_step = settings.segment * settings.segments
    source = Steps(lanes, tokens_per_step, config.train.steps, lookup=settings.location == "device")
    if settings.workers:
        first = yield from _through_pipes(source, first, settings.workers)
    with contextlib.closing(_read_ahead(source, slice(first, None))) as steps:
        yield from steps


def _read_ahead(source: Steps, part: slice) -> "grain.DatasetIterator[dict[str, np.ndarray]]":
    import grain

    return iter(grain.MapDataset.source(source)[part].to_iter_dataset(grain.ReadOptions(2, prefetch_buffer_size=8)))


def _through_pipes(source: Steps, first: int, workers: int) -> Generator[dict[str, np.ndarray], None, int]:
    """Batches from step `first` on, from each process in turn; returns the next step, earlier if a process has died.

    Grain's own processes share a queue that hangs if one is killed while it writes to it.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for i in range(workers):
            pipe, end = spawn.Pipe(duplex=False)
            pipes.append(pipe)
            part = slice(first + i, None, workers)
            process = spawn.Process(target=_send, args=(end, source, part), daemon=True)
            with _signals_blocked():
                process.start()
            processes.append(process)
            end.close()  # so the pipe ends when the process does
        for step in range(first, len(source)):
            try:
                batch = pipes[(step - first) % workers].recv()
            except (EOFError, OSError):
                tqdm.write("a loader process was killed or failed; the run continues with threads instead")
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
    """The main function of a loader process; it ends when it is done or the pipe is closed."""
    with contextlib.suppress(BrokenPipeError), contextlib.closing(_read_ahead(source, part)) as steps:
        for batch in steps:
            pipe.send(batch)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C and SIGTERM; other threads of this process still receive them.

    Ctrl-C is sent to all processes of a terminal, but the training step in progress needs the loader's data.
    """
    resource_tracker.ensure_running()  # it would unblock the signals if it started later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def whole_songs(
    corpus: Corpus, songs: np.ndarray, *, n_lanes: int, tokens_per_step: int, rows: range | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches that hold every token of the songs once, in the given order, padded at the end of each lane."""
    import grain

    lanes = Lanes(corpus, songs, n_lanes, rows=rows, epochs=1)
    return iter(grain.MapDataset.source(Steps(lanes, tokens_per_step, -(-lanes.length() // tokens_per_step))))
