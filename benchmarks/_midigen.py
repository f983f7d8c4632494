"""MIDIGen's model as its author built it, in eager PyTorch: the baseline.

The facts are those of the public repository Ryan-Palmer/MIDIGen, chapter 7; the code is our own and kept plain. A
transformer decoder reads a song block by block. Every layer also attends to the previous segment (XL memory), and one
layer to the nearest neighbours among all earlier tokens of the song (kNN memory, in one Faiss index per lane).

Where `midigen_jax` differs on purpose, MIDIGen's way first:

Empty XL memory   Keys and values of zeros, attended like others: they take a share of the softmax and add nothing.
                  Ours are masked.
Two memories      A segment enters XL memory and the index at once, so the next one can attend to a token twice. Ours
                  enter the ring as they leave the XL window; the two never overlap.
Where songs meet  At a block's end: the rest of a song's last block is padding, which counts in the loss. Our songs
                  meet anywhere in a segment, without padding, and song ids mask one from the other.
Blocks            Of T tokens T - 1 are inputs: a block's first token is never a target, its last never an input, and
                  songs of more than 32 blocks are left out. Ours reads and predicts every token of every song: music
                  that is left out is not learned.
kNN layer         The one numbered layers - 3, counted from 1: with 4 layers the first, whose keys describe one token
                  each. Ours is near the output.
Normalisation     Queries and keys of that layer have length 1 over the full width, and their products are multiplied
                  by head_dim^-0.5: all scores lie near zero, so attention is close to uniform, local and memory alike.
                  Ours have length 1 per head, and a learned scale per head that begins at 16.
Search            One for all heads, over full-width keys, and none until the index holds top-k entries. Ours searches
                  per head, since heads attend to different things, and uses however many there are. (For keys of
                  length 1, L2 finds what the inner product finds.)
Gate              An unbounded number per head, normally distributed at the start: below 0 or above 1 it subtracts one
                  output from the other. Ours is a share from 0 to 1, of one softmax over window and memory.
Gradient          A step is one segment, so none flows through XL memory. Ours flows through the segments of a step,
                  as many as memory allows: keys then learn what later segments search for.
Positions         32, a bar of 4/4. Ours are those of 12 beats, so that longer meters have distinct positions.
Activation        Exact GELU with dropout of 0.2. Ours are settings; squared ReLU is faster on a CPU.
Initialisation    PyTorch's: embeddings and position bias are normally distributed with deviation 1. Ours
                  are small, and the bias begins as slopes that fall with distance: the loss falls sooner.
Optimizer         Adam at a constant 3e-4, the weight decay in the gradient and on all parameters. Ours is AdamW, the
                  decay on matrices alone, clipped, warmed up and decayed: the loss falls sooner and further.
Window            XL memory as long as a segment. Ours has a length of its own.
Input             A token's embedding is that of the token alone. Ours may include those of the tokens before it
                  (`previous_tokens`), which saves the first layers that work; not in `configs/midigen.py`.

Where the facts are silent: with fewer than top-k entries the output is the local one alone; padding is at position 0 of
bar 0; epochs follow each other without a gap. Two things are in the baseline's favour: MIDIGen also computes a dropout
of the attention weights and discards it, which is left out here, and `evaluate` in `_midigen_training` reads a song
without the gaps that training leaves between blocks.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midigen_jax import config as cfg
from midigen_jax.errors import InputError
from midigen_jax.vocab import NO_SONG, Vocabulary

POSITIONS, BARS = 32, 1024  # positions in the bar and bar numbers are taken modulo these
BUCKETS, MAX_DISTANCE = 32, 128  # of the T5 relative position bias
MAX_BLOCKS = 32  # of a song; longer ones are left out in training

Batch = dict[str, np.ndarray]  # tokens, targets, bar, position and song, int32 [B, T - 1] each
KeysValues = tuple[Tensor, Tensor]  # [B, T - 1, D] each, heads not yet split


@dataclass(frozen=True)
class Sizes:
    """Those of chapter 7's large model, unless given."""

    vocabulary: int = 800
    layers: int = 8
    width: int = 512
    heads: int = 8
    ff_width: int = 2048
    block: int = 256  # T: tokens of a block, of which T - 1 are inputs and T - 1 targets
    lanes: int = 32
    knn: bool = True
    top_k: int = 16
    dropout: float = 0.2  # after GELU and after the attention's projection

    @property
    def segment(self) -> int:
        """Tokens that are read at once, and slots of XL memory."""
        return self.block - 1

    @property
    def knn_layer(self) -> int | None:
        """Index of the kNN layer, from 0."""
        return self.layers - 4 if self.knn else None


@lru_cache
def _gpu_resources() -> Any:
    return faiss.StandardGpuResources()


class LaneMemory:
    """The kNN memory of one lane: a flat index of keys, and keys and values by id beside it."""

    def __init__(self, sizes: Sizes, device: torch.device):
        self.top_k = sizes.top_k
        self.index: Any = faiss.IndexFlatL2(sizes.width)
        if device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            self.index = faiss.index_cpu_to_gpu(_gpu_resources(), device.index or 0, self.index)
        self.entries = np.empty((MAX_BLOCKS * sizes.block, 2, sizes.width), np.float32)

    def __len__(self) -> int:
        return self.index.ntotal

    def clear(self) -> None:
        self.index.reset()

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Adds entries [n, D], whose ids continue those before."""
        begin, end = len(self), len(self) + len(keys)
        if end > len(self.entries):  # a song longer than those of training
            self.entries = np.concatenate([self.entries, np.empty_like(self.entries)])
        self.entries[begin:end, 0], self.entries[begin:end, 1] = keys, values
        self.index.add(np.ascontiguousarray(keys))

    def search(self, queries: np.ndarray) -> np.ndarray | None:
        """Keys and values [n, k, 2, D] of the nearest keys of each query [n, D]; None while there are fewer than k."""
        if len(self) < self.top_k:
            return None
        _, ids = self.index.search(np.ascontiguousarray(queries), self.top_k)
        return self.entries[ids]


class Memory:
    """The memories of all lanes, and the song that each lane's belong to."""

    def __init__(self, sizes: Sizes, device: torch.device | str = "cpu"):
        device = torch.device(device)
        zeros = torch.zeros(sizes.lanes, sizes.segment, sizes.width, device=device)
        self.xl: list[KeysValues] = [(zeros, zeros)] * sizes.layers
        self.knn = [LaneMemory(sizes, device) for _ in range(sizes.lanes)] if sizes.knn else []
        self.song = np.full(sizes.lanes, NO_SONG)

    def start_songs(self, song: np.ndarray) -> None:
        """Empties the memories of the lanes whose song [B] differs from the one before."""
        same = song == self.song
        if not same.all():
            keep = torch.from_numpy(same).to(self.xl[0][0].device)[:, None, None]
            self.xl = [(keys * keep, values * keep) for keys, values in self.xl]
            for lane in np.flatnonzero(~same)[: len(self.knn)]:
                self.knn[lane].clear()
        self.song = song


class PositionBias(nn.Module):
    """T5's relative position bias (Raffel et al. 2020), causal: exact up to 15, logarithmic up to 128 and beyond."""

    def __init__(self, heads: int):
        super().__init__()
        self.table = nn.Embedding(BUCKETS, heads)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[H, queries, keys], minus infinity for later keys; the last query is at the last key."""
        device = self.table.weight.device
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
        exact = BUCKETS // 2
        logarithm = torch.log(distance.clamp(min=1) / exact) / np.log(MAX_DISTANCE / exact)
        coarse = (exact + (logarithm * (BUCKETS - exact)).long()).clamp(max=BUCKETS - 1)
        bucket = torch.where(distance < exact, distance.clamp(min=0), coarse)
        return self.table(bucket).permute(2, 0, 1).masked_fill(distance < 0, -torch.inf)


class Attention(nn.Module):
    """Attention to the segment and XL memory, and in the kNN layer also to what a search finds."""

    def __init__(self, sizes: Sizes, *, knn: bool):
        super().__init__()
        width, self.heads = sizes.width, sizes.heads
        self.scale = (width // sizes.heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.gate = nn.Parameter(torch.randn(sizes.heads, 1, 1)) if knn else None

    def forward(self, x: Tensor, bias: Tensor, xl: KeysValues, knn: list[LaneMemory]) -> tuple[Tensor, KeysValues]:
        """The output for x [B, T, D], and the segment's keys and values."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.gate is not None:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # over the full width
        keys, values = (self._split(torch.cat(pair, 1)) for pair in zip(xl, (k, v), strict=True))
        # MIDIGen adds the bias times head_dim^0.5 before it scales, which is the same.
        scores = self._split(q) @ keys.mT * self.scale + bias
        y = scores.softmax(-1) @ values
        if self.gate is not None:
            y = self._retrieve(q, y, knn)
            for lane, entries in enumerate(zip(_to_numpy(k), _to_numpy(v), strict=True)):
                knn[lane].add(*entries)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2))), (k.detach(), v.detach())

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, Dh]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _retrieve(self, q: Tensor, local: Tensor, knn: list[LaneMemory]) -> Tensor:
        """The local output [B, H, T, Dh] mixed with attention to what each token finds; unchanged where there are few.

        All heads attend to the same entries. No gradient goes into them.
        """
        hits = [lane.search(queries) for lane, queries in zip(knn, _to_numpy(q), strict=True)]
        if all(lane_hits is None for lane_hits in hits):
            return local
        nothing = np.zeros((q.shape[1], knn[0].top_k, 2, q.shape[2]), np.float32)
        entries = np.stack([nothing if lane_hits is None else lane_hits for lane_hits in hits])
        keys, values = torch.from_numpy(entries).to(q.device).unflatten(-1, (self.heads, -1)).unbind(3)
        scores = torch.einsum("bhtd,btkhd->bhtk", self._split(q), keys) * self.scale
        memory = torch.einsum("bhtk,btkhd->bhtd", scores.softmax(-1), values)
        found = torch.tensor([lane_hits is not None for lane_hits in hits], device=q.device)[:, None, None, None]
        gate = torch.where(found, self.gate, 0.0)
        return memory * gate + local * (1 - gate)


def _to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


class Block(nn.Module):
    def __init__(self, sizes: Sizes, *, knn: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width)
        self.attention = Attention(sizes, knn=knn)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.up = nn.Linear(sizes.width, sizes.ff_width)
        self.down = nn.Linear(sizes.ff_width, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, bias: Tensor, xl: KeysValues, knn: list[LaneMemory]) -> tuple[Tensor, KeysValues]:
        y, keys_values = self.attention(self.norm1(x), bias, xl, knn)
        x = x + y
        return x + self.down(self.dropout(F.gelu(self.up(self.norm2(x))))), keys_values


class MIDIGen(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        if sizes.knn and sizes.layers < 4:
            raise InputError(f"layers={sizes.layers}: the kNN layer is the fourth from the end; give 4 or more")
        self.sizes = sizes
        self.token = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Embedding(POSITIONS, sizes.width)
        self.bar = nn.Embedding(BARS, sizes.width)
        self.xl_bias, self.knn_bias = PositionBias(sizes.heads), PositionBias(sizes.heads)
        self.blocks = nn.ModuleList(Block(sizes, knn=i == sizes.knn_layer) for i in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.logits = nn.Linear(sizes.width, sizes.vocabulary)

    def forward(self, batch: Batch, memory: Memory) -> Tensor:
        """Logits [B, T, V] of the next tokens. The memories of lanes that begin a song are emptied, all are updated."""
        return self.logits(self.read(batch, memory))

    def read(self, batch: Batch, memory: Memory) -> Tensor:
        """What the logits are made of, [B, T, D]. The segment may be shorter than those of training."""
        memory.start_songs(batch["song"][:, 0])
        tokens, position, bar = (self.tensor(batch[name]) for name in ("tokens", "position", "bar"))
        x = self.token(tokens) + self.position(position % POSITIONS) + self.bar(bar % BARS)
        length = tokens.shape[1]
        keys = memory.xl[0][0].shape[1] + length
        xl_bias, knn_bias = (bias(length, keys) for bias in (self.xl_bias, self.knn_bias))
        for i, block in enumerate(self.blocks):
            bias = knn_bias if i == self.sizes.knn_layer else xl_bias
            x, memory.xl[i] = block(x, bias, memory.xl[i], memory.knn)
        return self.norm(x)

    def tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.logits.weight.device, torch.long)


def sizes_of(config: cfg.Config, vocabulary: Vocabulary) -> Sizes:
    """Those of a model of ours."""
    return Sizes(
        vocabulary=vocabulary.size,
        layers=config.model.layers,
        width=config.model.width,
        heads=config.model.heads,
        ff_width=config.model.ff_width,
        block=config.data.segment,
        lanes=config.data.lanes,
        top_k=config.memory.top_k,
    )


def as_our_params(model: MIDIGen) -> dict[str, Any]:
    """The weights as parameters of our decoder of the same sizes, without kNN memory, with exact GELU.

    With them it computes the same logits, once XL memory is full. What our kNN layer does differs (see above).
    """
    heads, width = model.sizes.heads, model.sizes.width

    def array(x: Tensor) -> np.ndarray:
        return _to_numpy(x).copy()  # training changes it in place

    def norm(x: nn.LayerNorm) -> dict[str, Any]:
        return {"scale": array(x.weight), "bias": array(x.bias)}

    def linear(x: nn.Linear) -> dict[str, Any]:
        return {"kernel": array(x.weight.T), "bias": array(x.bias)}

    def attention(x: Attention) -> dict[str, Any]:
        qkv = [array(part.weight).reshape(heads, -1, width).swapaxes(1, 2) for part in (x.q, x.k, x.v)]
        out = array(x.out.weight.T).reshape(heads, -1, width)
        return {"qkv": np.stack(qkv), "out": out, "out_bias": array(x.out.bias)}

    def block(x: Block) -> dict[str, Any]:
        ff = {"up": linear(x.up), "down": linear(x.down)}
        return {"norm1": norm(x.norm1), "attention": attention(x.attention), "norm2": norm(x.norm2), "ff": ff}

    return {
        "token": array(model.token.weight),
        "bar": array(model.bar.weight),
        "position": np.tile(array(model.position.weight), (3, 1)),  # 12 beats are three bars of 4/4
        "bias": np.stack([array(bias.table.weight) for bias in (model.xl_bias, model.knn_bias)]),
        "blocks": {i: block(x) for i, x in enumerate(model.blocks)},
        "norm": norm(model.norm),
        "output": array(model.logits.weight),
        "output_bias": array(model.logits.bias),
    }
