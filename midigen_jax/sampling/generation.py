"""Songs while they are sampled, chunk by chunk."""

import math
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from .. import vocab
from ..errors import InputError
from ..kernels import meter
from ..music.loops import bar_contents
from ..music.song import Song, notes_of
from ..shapes import Bool, Int
from ..vocab import Vocabulary
from .continuation import Continuation, best_of
from .decode_state import NEVER, Timeline
from .session import Row, SamplerState, Session
from .settings import DEFAULT_BARS, Length

MAX_TOKENS_PER_BAR = 512  # a row that writes more than this on average is stuck and is cut off


class Chunk(NamedTuple):
    """What one call of the compiled loop sampled."""

    tokens: Int[np.ndarray, "n B"]  # PAD where a row is done
    next_time: Int[np.ndarray, " B"]  # after these tokens
    active: Bool[np.ndarray, " B"]  # rows that continue


class Generation(Iterator[list[Row]]):
    """Songs while they are sampled: each step gives them as they are after one more chunk."""

    def __init__(
        self,
        chunks: Generator[Chunk, bool | None, SamplerState],
        session: Session,
        ends: Sequence[int],
        vocabulary: Vocabulary,
        num: int,
    ):
        """
        Args:
            num: continuations that are wanted (`continuation.best_of`).
        """
        self.rows = [row._replace(end=end) for row, end in zip(session.rows, ends, strict=True)]
        self.starts = [row.end for row in session.rows]  # the times at which new music begins
        self.vocabulary, self.num = vocabulary, num
        self.session: Session | None = None  # once all rows are done
        self._chunks, self._model = chunks, session.model
        self._stop: bool | None = None

    def stop(self) -> None:
        """Ends with the chunk that is being computed."""
        self._stop = True

    def __next__(self) -> list[Row]:
        try:
            chunk = self._chunks.send(self._stop)
        except StopIteration as done:
            self.session = Session(done.value, self.rows, self._model)
            raise StopIteration from None
        for i, (row, column, time) in enumerate(zip(self.rows, chunk.tokens.T, chunk.next_time.tolist(), strict=True)):
            new = column[column != vocab.PAD].astype(np.uint16)
            self.rows[i] = row._replace(tokens=np.concatenate([row.tokens, new]), next_time=time)
        return self.rows

    def finish(self, *, progress: bool = False, stopping: Sequence[int] = ()) -> list[Continuation]:
        """Samples to the end, or until there is something in `stopping`."""
        spans = [row.end - start for row, start in zip(self.rows, self.starts, strict=True)]
        with tqdm(total=max(spans), unit=" grid steps", desc="compiling", disable=not progress) as bar:
            for rows in self:
                bar.set_description("sampling", refresh=False)
                if stopping:
                    self.stop()
                done = [min(row.next_time, row.end) - start for row, start in zip(rows, self.starts, strict=True)]
                bar.update(max(0, min(done) - bar.n))
        return self.continuations()

    def continuations(self) -> list[Continuation]:
        assert self.session is not None, "it is still sampling"
        takes = [
            Continuation(row.song_so_far(self.vocabulary), start, self.session, i, self.vocabulary)
            for i, (row, start) in enumerate(zip(self.rows, self.starts, strict=True))
        ]
        return best_of(takes, self.num)


def span(length: Length, song: Song, start: int) -> tuple[int, int]:
    """The times from which on a song may end, and at which it stops, if new music begins at `start`.

    Raises:
        InputError: there is no such time.
    """
    bar, seconds, longest = song.bar_of(start), song.seconds_at(start), song.seconds_at(meter.MAX_TIME)

    def after_bars(bars: int) -> int:
        return song.bar_start(bar + min(bars, meter.MAX_TIME))  # a bar has at least one grid step

    def after_seconds(more: float) -> int:
        return song.time_at(min(seconds + more, longest))

    if length.seconds is None:
        end = after_bars(length.bars or DEFAULT_BARS)
    else:
        end = song.bar_start(song.bar_of(after_seconds(length.seconds) - 1) + 1)
    least = max(after_bars(length.min_bars or 0), after_seconds(length.min_seconds or 0.0))
    if end >= meter.MAX_TIME:
        raise InputError(f"the song would be longer than {meter.MAX_TIME:,} grid steps; give fewer bars or seconds")
    if length.eos and least >= end:
        raise InputError("min-bars or min-seconds: the song stops earlier; give less, or leave out eos")
    return (least if length.eos else NEVER), end


def make_timeline(
    session: Session,
    ends: Sequence[int],
    eos_from: Sequence[int] | None = None,
    max_notes: Sequence[int] | None = None,
) -> Timeline:
    rows, n_rows = session.rows, len(session.rows)
    longest = max(len(row.song.bars) for row in rows)
    bars = [np.pad(r.song.bars, ((0, longest - len(r.song.bars)), (0, 0)), constant_values=NEVER) for r in rows]
    max_drawn = []
    for row, end, drawn in zip(rows, ends, session.state.decode.drawn.tolist(), strict=True):
        new_bars = -(-max(end - row.next_time, 0) // int(row.song.bars[-1, 1]))
        max_drawn.append(min(drawn + new_bars * MAX_TOKENS_PER_BAR, NEVER))
    never = [NEVER] * n_rows
    prompt_ends = [row.prompt_end for row in rows]
    arrays = (np.stack(bars), prompt_ends, eos_from or never, ends, max_drawn, max_notes or never)
    return Timeline(*(jnp.asarray(x, jnp.int32) for x in arrays))


def most_notes(session: Session, vocabulary: Vocabulary, max_density: float, densest_bar: int) -> list[int]:
    """How many notes each row may write in a bar: so many times those of the prompt's fullest bar, or of `densest_bar`.

    Args:
        densest_bar: notes in the fullest bars of the training songs; 0: unknown.
    """

    def most(row: Row) -> int:
        notes = notes_of(row.tokens, vocabulary)
        prompt = row.song._replace(notes=notes[notes[:, 0] < row.prompt_end])
        fullest = max([densest_bar, *(len(bar) for _, bar in bar_contents(prompt))])
        return math.ceil(max_density * fullest) or NEVER

    return [most(row) for row in session.rows]
