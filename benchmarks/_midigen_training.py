"""MIDIGen in training: its batches and its optimizer, which differ from ours as `_midigen` says."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from _midigen import MAX_BLOCKS, Batch, Memory, MIDIGen, Sizes
from torch import Tensor

from midigen_jax.data.corpus import Corpus
from midigen_jax.errors import InputError
from midigen_jax.vocab import NO_SONG, NO_TARGET, PAD

LEARNING_RATE, WEIGHT_DECAY = 3e-4, 1e-3


class Baseline:
    """MIDIGen in training."""

    def __init__(self, sizes: Sizes, *, device: torch.device | str = "cpu", seed: int = 0):
        torch.manual_seed(seed)
        self.model = MIDIGen(sizes).to(device)
        self.memory = Memory(sizes, device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(self, batch: Batch) -> float:
        """One optimizer step on a segment of all lanes; its mean loss in nats, with padding."""
        logits, targets = self.model(batch, self.memory), self.model.tensor(batch["targets"])
        return descend(cross_entropy(logits, targets), self.optimizer)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore: int = NO_TARGET, reduction: str = "mean") -> Tensor:
    """Loss in nats of logits [B, T, V] for targets [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore, reduction=reduction)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step of the optimizer; returns the loss, fetched last, so that a GPU has finished."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(model: MIDIGen, corpus: Corpus, songs: np.ndarray) -> float:
    """Total loss in nats over every token but sos of whole songs, each from its own empty memories, without dropout.

    Made for `midigen_jax.training.losses.figures`. Segments have no gaps between them, unlike training's blocks.
    """
    was_training, memory, nats = model.training, Memory(model.sizes, model.logits.weight.device), 0.0
    model.eval()
    for batch in _stream(corpus, songs, model.sizes, stride=model.sizes.segment):
        logits, targets = model(batch, memory), model.tensor(batch["targets"])
        nats += cross_entropy(logits, targets, ignore=PAD, reduction="sum").item()
    model.train(was_training)
    return nats


def short_songs(corpus: Corpus, songs: np.ndarray, sizes: Sizes) -> np.ndarray:
    """The songs that are not too long for its memories.

    Raises:
        InputError: all are too long.
    """
    short = songs[np.diff(corpus.offsets)[songs] <= MAX_BLOCKS * sizes.block]
    if len(short) == 0:
        raise InputError(
            f"{corpus.path}: all songs have more than {MAX_BLOCKS} blocks of {sizes.block} tokens, and MIDIGen leaves "
            "such songs out; give longer segments"
        )
    return short


def training_batches(corpus: Corpus, songs: np.ndarray, sizes: Sizes, *, seed: int = 0) -> Iterator[Batch]:
    """Endless batches: the lanes stream songs of at most MAX_BLOCKS blocks, shuffled again each epoch."""
    short = short_songs(corpus, songs, sizes)
    random = np.random.default_rng(seed)
    epochs = (random.permutation(short) for _ in itertools.count())
    return _stream(corpus, itertools.chain.from_iterable(epochs), sizes, stride=sizes.block)


def _stream(corpus: Corpus, songs: Iterable[int], sizes: Sizes, *, stride: int) -> Iterator[Batch]:
    """Batches of lanes, each of which reads a song block by block and then takes the next song.

    Ends when no lane has a song left; until then a lane without one is padding. Song ids count the songs taken.
    """
    waiting = enumerate(songs)

    def constant(value: int) -> np.ndarray:
        return np.full(sizes.segment, value, np.int32)

    def lane() -> Iterator[Batch]:
        for number, song in waiting:
            for block in song_blocks(corpus, song, sizes.block, stride):
                yield block | {"song": constant(number)}

    idle = {"tokens": constant(PAD), "targets": constant(PAD), "bar": constant(0), "position": constant(0)}
    idle["song"] = constant(NO_SONG)
    for blocks in itertools.zip_longest(*(lane() for _ in range(sizes.lanes)), fillvalue=idle):
        yield {name: np.stack([block[name] for block in blocks]) for name in idle}


def song_blocks(corpus: Corpus, song: int, block: int, stride: int) -> Iterator[Batch]:
    """A song in blocks of T tokens, the last one padded; inputs are all but its last token, targets all but its first.

    Args:
        stride: tokens from one block to the next: T as in training, or T - 1, with which every token but sos is a
            target once.
    """
    begin, end = corpus.offsets[song : song + 2].tolist()
    for first in range(begin, end - (block - stride), stride):
        n = min(block, end - first)
        here = slice(first, first + n)
        tokens, bar, position = np.zeros((3, block), np.int32)
        tokens[:n], bar[:n], position[:n] = corpus.tokens[here], corpus.bar[here], corpus.position[here]
        tokens[n:] = PAD
        yield {"tokens": tokens[:-1], "targets": tokens[1:], "bar": bar[:-1], "position": position[:-1]}
