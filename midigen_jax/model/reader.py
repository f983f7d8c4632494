"""The one reader of segments: training, validation, evaluation, prefill and benchmarks all read songs through it.

Letters of shapes are those of `shapes`.
"""

from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ..shapes import Array, Bool, Float, Int
from . import alignment, pointer
from . import memory as mem
from .alignment import AlignmentMemory
from .decoder import Decoder
from .memory import KNNMemory, Memory, XLMemory
from .pointer import Copies
from .retrieval import Retrieval, RetrievalStatistics, joined


class Batch(TypedDict):
    """Tokens of every lane."""

    tokens: Int[Array, "B Q"]
    targets: Int[Array, "B Q"]  # the song's next tokens, or NO_TARGET
    bar: Int[Array, "B Q"]
    position: Int[Array, "B Q"]  # in the bar, in grid steps
    song: Int[Array, "B Q"]  # number of the song in its lane, or NO_SONG


class Visible(NamedTuple):
    """Which memories a reader sees: data, so that one compiled program serves all ablations (two, with `other_knn`)."""

    xl: Bool[Array, ""] | bool = True
    knn: Bool[Array, ""] | bool = True
    # Seen in place of the lane's own kNN memory, which is still written: all kinds that there are, or none.
    other_knn: KNNMemory | None = None
    other_alignment: AlignmentMemory | None = None


EVERYTHING = Visible()


class SegmentOutput(NamedTuple):
    """Of one segment."""

    logits: Float[Array, "B T V"]
    copies: Copies | None  # what the alignment memory adds to them
    nats: Float[Array, "B T"]  # loss of each target; 0 without one
    # What training minimises. With a memory by alignment the decoder's own loss counts too: a candidate that explains a
    # token would leave it nothing to learn there, and it would write worse where nothing repeats.
    objective: Float[Array, "B T"]
    retrieval: Retrieval
    window: XLMemory  # XL memory with the segment appended
    knn: KNNMemory | None  # before what leaves XL memory is written
    memory: Memory  # after the segment
    other_alignment: AlignmentMemory | None  # as the next segment is to see it


def read_segment(
    decoder: Decoder, memory: Memory, batch: Batch, visible: Visible = EVERYTHING, keys: Array | None = None
) -> SegmentOutput:
    """Reads one segment of every lane; what a caller does not use is not computed once compiled.

    Args:
        batch: T tokens of every lane.
        keys: dropout keys, one per lane; None without dropout.
    """
    xl, knn, aligned = memory
    other_aligned, candidates = visible.other_alignment, None
    seen_knn = visible.other_knn or knn
    if visible.xl is not True:
        xl = xl._replace(song=jnp.where(visible.xl, xl.song, mem.NO_SONG))
    if seen_knn is not None and visible.knn is not True:
        seen_knn = seen_knn._replace(song=jnp.where(visible.knn, seen_knn.song, mem.NO_SONG))
    inputs = (batch["tokens"], batch["bar"], batch["position"], batch["song"])
    if aligned is not None:
        arguments = *inputs, decoder.vocabulary, decoder.config.memory.top_k
        aligned, candidates = alignment.read_tokens(aligned, *arguments)
        if other_aligned is not None:
            other_aligned, candidates = alignment.read_tokens(other_aligned, *arguments, remembers=False)
        candidates = candidates._replace(token=jnp.where(visible.knn, candidates.token, alignment.NO_TOKEN))
        candidates = jax.tree.map(partial(checkpoint_name, name=mem.HITS), candidates)
    output = decoder(*inputs, Memory(xl, seen_knn, None), keys=keys)
    retrieval, copies = output.retrieval, None
    if candidates is not None and memory.alignment is not None:
        copies = decoder.pointer(candidates, output.hidden, output.logits)
        retrieval = pointer.retrieved(candidates, copies, memory.alignment)
        if knn is not None:
            retrieval = joined(output.retrieval, retrieval)
    counted, targets = batch["targets"] >= 0, jnp.maximum(batch["targets"], 0)
    nats = pointer.nats(output.logits, copies, targets) * counted
    objective = nats
    if copies is not None:
        objective = nats + pointer.nats(output.logits, None, targets) * counted
    # The memories are kept as they are, whatever of them was visible.
    window = output.window._replace(song=jnp.concatenate([memory.xl.song, batch["song"]], 1))
    if knn is not None:
        knn = mem.write_after(knn, output.logits)
    after = mem.roll(window, knn, batch["tokens"].shape[1], decoder.config.memory.knn_layer)
    new = Memory(*after, aligned)
    return SegmentOutput(output.logits, copies, nats, objective, retrieval, window, knn, new, other_aligned)


class Losses(NamedTuple):
    nats: Float[Array, ""]  # sum over the targets
    objective: Float[Array, ""]  # what training minimises, also a sum
    targets: Int[Array, ""]  # number of targets
    statistics: RetrievalStatistics  # means over the segments


def read_segments(decoder: Decoder, memory: Memory, batch: Batch, keys: Array | None = None) -> tuple[Losses, Memory]:
    """Reads the segments of a step [B, S * T] one after the other, carrying the memory.

    Args:
        keys: dropout keys, one per lane; None without dropout.
    """
    segment = decoder.config.data.segment

    def one_segment(memory: Memory, xs: tuple[Batch, Array]) -> tuple[Memory, Losses]:
        here, i = xs
        segment_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        output = read_segment(decoder, memory, here, keys=segment_keys)
        targets = jnp.sum(here["targets"] >= 0)
        return output.memory, Losses(output.nats.sum(), output.objective.sum(), targets, output.retrieval.statistics)

    if decoder.config.train.remat:
        # The hits are kept: recomputing them would search again, and the scan would keep every segment's ring for it.
        policy = jax.checkpoint_policies.save_only_these_names(mem.HITS)
        one_segment = jax.checkpoint(one_segment, policy=policy, prevent_cse=False)
    segments: Any = jax.tree.map(lambda x: split_segments(x, segment), dict(batch))
    n_segments = segments["tokens"].shape[0]
    memory, losses = jax.lax.scan(one_segment, memory, (segments, jnp.arange(n_segments)))
    mean_statistics = jax.tree.map(lambda x: x.mean(0), losses.statistics)
    return Losses(losses.nats.sum(), losses.objective.sum(), losses.targets.sum(), mean_statistics), memory


def split_segments(x: Int[Array, "B tokens"], segment: int) -> Int[Array, "S B T"]:
    return jnp.moveaxis(x.reshape(x.shape[0], -1, segment), 1, 0)
