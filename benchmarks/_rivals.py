"""Rivals with a window in place of a memory, in PyTorch: decoders of our sizes, trained on the same songs.

x-transformers     rotary positions; windows of 1,024 and 4,096 tokens.
GPT-2              Hugging Face's, with learned positions.
Music Transformer  relative attention (Huang et al. 2018), in `_music_transformer`.
REMI and TSD       the first of these on MidiTok's tokens (`_miditok`) in place of ours.

Set for a fair comparison:

- Layers, width, heads and feed-forward width are those of our config; so are AdamW's settings, the clipping and the
  shape of the schedule, which ends with the training. The learning rates are their own (RIVALS says how they were
  chosen). There is no dropout: nothing is read often.
- x-transformers gets what it can take of what our decoder knows: embeddings of bar and position, as ours, where the
  tokens are ours (REMI says them itself); and `shift_tokens`, by which half of each layer's input is that of the token
  before, the library's own means to the same end as our embeddings of previous tokens. Its attention is the fused one,
  which is exact. The others are as they are usually built.
- Songs are augmented as for our decoder (transposition, mixture), except for changes of key within a song, which teach
  our memory by alignment alone.
- In an epoch every token is a target once. A batch is windows of single songs, in random order, with together about as
  many targets as ours has, or one window where that is more; the last window of a song reaches back into the one before
  as far as it can, without counting those targets again. So no token attends to another song.
- Songs are evaluated in windows that overlap by half: beyond the first one every token has at least half of a window
  before it. When they are continued, the newer half of a full window is read again.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.loader import Lanes, repeats_of
from midigen_jax.vocab import NO_TARGET

Batch = dict[str, np.ndarray]  # tokens, targets, bar and position, int32 [B, T] each


class Rival(NamedTuple):
    decoder: str  # a class of `_windowed`
    needs: tuple[str, ...]  # packages beside PyTorch
    window: int  # tokens
    learning_rate: float
    tokenizer: str = ""  # of MidiTok; else ours


X_TRANSFORMERS = ("x_transformers",)
RIVALS = {
    "x-transformers, 1,024 tokens": Rival("XTransformers", X_TRANSFORMERS, 1024, 2e-3),
    "x-transformers, 4,096 tokens": Rival("XTransformers", X_TRANSFORMERS, 4096, 2e-3),
    "GPT-2 (Hugging Face)": Rival("GPT2", ("transformers",), 1024, 2e-3),
    "Music Transformer": Rival("MusicTransformer", (), 1024, 2e-3),
    "x-transformers, REMI": Rival("XTransformers", (*X_TRANSFORMERS, "miditok"), 1024, 2e-3, "REMI"),
    "x-transformers, TSD": Rival("XTransformers", (*X_TRANSFORMERS, "miditok"), 1024, 2e-3, "TSD"),
}


class Piece(NamedTuple):
    """A window of a song in a lane."""

    first: int  # offset in the lane
    end: int
    targets_from: int  # those before are targets of another piece


def _pieces(start: int, tokens: int, window: int) -> Iterator[Piece]:
    """The windows of a song of so many tokens that starts at this offset."""
    end = start + tokens - 1  # the last token is no input
    for targets_from in range(start, end, window):
        last = min(targets_from + window, end)
        yield Piece(max(last - window, start), last, targets_from)


def training_batches(corpus: Corpus, config: cfg.Config, window: int) -> Iterator[Batch]:
    """Endless batches of windows of training songs, shuffled anew in each epoch."""
    data, tokens_per_step = config.data, config.data.lanes * config.data.segment * config.data.segments
    lanes = Lanes(
        corpus,
        corpus.songs_of("train"),
        1,
        seed=data.seed,
        transpose=data.transpose,
        velocity_offset=data.velocity_offset,
        repeats=repeats_of(corpus, data),
    )
    random, lengths, rows = np.random.default_rng(data.seed), np.diff(corpus.offsets), list[Batch]()
    for number in itertools.count():
        epoch = lanes.plan(number)
        starts = zip(epoch.starts.tolist(), lengths[epoch.songs].tolist(), strict=True)
        pieces = [piece for start, tokens in starts for piece in _pieces(start, tokens, window)]
        for i in random.permutation(len(pieces)).tolist():
            first, end, targets_from = pieces[i]
            row = lanes.read(first, end)
            row["targets"][:, : targets_from - first] = NO_TARGET
            rows.append(row)
            if sum(map(targets_of, rows)) >= tokens_per_step:
                yield _padded(rows)
                rows = []


def targets_of(batch: Batch) -> int:
    """How many tokens a batch teaches, padding aside."""
    return int(((batch["targets"] != NO_TARGET) & (batch["targets"] != vocab.PAD)).sum())


def _padded(rows: list[Batch]) -> Batch:
    length, fill = max(x["tokens"].shape[1] for x in rows), {"tokens": vocab.PAD, "targets": NO_TARGET}

    def padded(name: str) -> np.ndarray:
        value = fill.get(name, 0)
        return np.concatenate(
            [np.pad(x[name], ((0, 0), (0, length - x[name].shape[1])), constant_values=value) for x in rows]
        )

    return {name: padded(name) for name in ("tokens", "targets", "bar", "position")}
