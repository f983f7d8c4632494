"""Songs while they are sampled, chunk by chunk."""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from . import vocab
from .continuation import Continuation
from .cursor import NEVER, Timeline
from .held import Held, Row, State
from .shapes import Bool, Int
from .vocab import Vocabulary

TOKENS_PER_BAR = 512  # a row that writes more than this on average is stuck and is cut off


class Drawn(NamedTuple):
    """What one chunk brought."""

    tokens: Int[np.ndarray, "n B"]  # PAD where a row is done
    now: Int[np.ndarray, " B"]  # the time after them
    active: Bool[np.ndarray, " B"]  # rows that go on


class Playing(Iterator[list[Row]]):
    """Songs while they are sampled: each step gives them as they are after one more chunk."""

    def __init__(
        self, chunks: Generator[Drawn, bool | None, State], held: Held, ends: Sequence[int], vocabulary: Vocabulary
    ):
        self.rows = [row._replace(end=end) for row, end in zip(held.rows, ends, strict=True)]
        self.first = [row.end for row in held.rows]
        self.vocabulary = vocabulary
        self.held: Held | None = None  # once all are done
        self._chunks, self._model = chunks, held.fingerprint
        self._stop: bool | None = None

    def stop(self) -> None:
        """Ends with the chunk that is on its way."""
        self._stop = True

    def __next__(self) -> list[Row]:
        try:
            drawn = self._chunks.send(self._stop)
        except StopIteration as done:
            self.held = Held(done.value, self.rows, self._model)
            raise StopIteration from None
        for i, (row, column, now) in enumerate(zip(self.rows, drawn.tokens.T, drawn.now.tolist(), strict=True)):
            new = column[column != vocab.PAD].astype(np.uint16)
            self.rows[i] = row._replace(tokens=np.concatenate([row.tokens, new]), now=now)
        return self.rows

    def finish(self, *, progress: bool = False, stopping: Sequence[int] = ()) -> list[Continuation]:
        """Plays on to the end, or until there is something in `stopping`."""
        steps = [row.end - first for row, first in zip(self.rows, self.first, strict=True)]
        with tqdm(total=max(steps), unit="step", desc="compiling", disable=not progress) as bar:
            for rows in self:
                bar.set_description("sampling", refresh=False)
                if stopping:
                    self.stop()
                done = [min(row.now, row.end) - first for row, first in zip(rows, self.first, strict=True)]
                bar.update(max(0, min(done) - bar.n))
        return self.continuations()

    def continuations(self) -> list[Continuation]:
        assert self.held is not None, "it is still playing"
        return [
            Continuation(row.song_so_far(self.vocabulary), first, self.held, i, self.vocabulary)
            for i, (row, first) in enumerate(zip(self.rows, self.first, strict=True))
        ]


def make_timeline(held: Held, ends: Sequence[int], eos_from: Sequence[int] | None = None) -> Timeline:
    rows, n_rows = held.rows, len(held.rows)
    longest = max(len(row.song.bars) for row in rows)
    bars = [np.pad(r.song.bars, ((0, longest - len(r.song.bars)), (0, 0)), constant_values=NEVER) for r in rows]
    most = []
    for row, end, drawn in zip(rows, ends, held.state.cursor.drawn.tolist(), strict=True):
        new_bars = -(-max(end - row.now, 0) // int(row.song.bars[-1, 1]))
        most.append(min(drawn + new_bars * TOKENS_PER_BAR, NEVER))
    arrays = (np.stack(bars), [row.begins for row in rows], eos_from or [NEVER] * n_rows, ends, most)
    return Timeline(*(jnp.asarray(x, jnp.int32) for x in arrays))
