"""Two PyTorch libraries with long memory, of the same sizes and on the same batches as our model, for throughput.

x-transformers                  Transformer-XL recurrence and T5's relative position bias; no kNN memory.
memorizing-transformers-pytorch Transformer-XL recurrence, T5's bias and kNN memory in one layer.

Set for a fair comparison:

- Width, layers, heads, feed-forward width, segment, XL memory, lanes, vocabulary and the dropout after GELU are those
  given, heads have width / heads each, and other dropouts are off.
- x-transformers embeds bar and position as we do. memorizing-transformers-pytorch has no input for them.
- x-transformers' flash attention takes no T5 bias, so it is off.
- memorizing-transformers-pytorch searches the lanes one after another, its default.
- Both empty a lane's memories where its song at a segment's start is not that of the segment before.
- The optimizer is the baseline's. All run eagerly, in float32.

Left as the libraries have it:

- Neither masks one song from another that it meets within a segment.
- x-transformers keeps hidden states in XL memory and computes their keys and values again in each segment.
- memorizing-transformers-pytorch has one key and one value for all heads, so its parameters, attention and memory are
  fewer than ours; its search is approximate (HNSW); a full index is emptied; and its position bias computes the
  distance to XL memory as if the segment began where the memory begins.
"""

import tempfile

import numpy as np
import torch
from _midigen import BARS, MAX_BLOCKS, POSITIONS, Batch, Sizes
from _midigen_training import LEARNING_RATE, WEIGHT_DECAY, cross_entropy, descend
from _shared import need
from _x_transformers import make_decoder
from torch import Tensor

from midigen_jax.vocab import NO_SONG, NO_TARGET


class XTransformers:
    """x-transformers with Transformer-XL recurrence; segments and XL memory have T tokens."""

    def __init__(self, sizes: Sizes, *, device: torch.device | str = "cpu", seed: int = 0):
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.model = make_decoder(
            sizes,
            sizes.vocabulary,
            sizes.block,
            {"ff_dropout": sizes.dropout, "rel_pos_bias": True},
            max_mem_len=sizes.block,
            embed_num_tokens={"bar": BARS, "position": POSITIONS},
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.memory: list[Tensor] | None = None  # hidden states [B, T, D], one per layer and one more
        self.song = np.full(sizes.lanes, NO_SONG)

    def step(self, batch: Batch) -> float:
        """One optimizer step on a segment of all lanes; its mean loss in nats."""
        inputs = _tensors(batch, self.device)
        changed, self.song = _new_songs(self.song, batch), batch["song"][:, 0]
        if self.memory and len(changed):
            self.memory = [_emptied(x, changed) for x in self.memory]
        embed_ids = {"bar": inputs["bar"] % BARS, "position": inputs["position"] % POSITIONS}
        logits, self.memory = self.model(inputs["tokens"], mems=self.memory, embed_ids=embed_ids, return_mems=True)
        return descend(cross_entropy(logits, inputs["targets"]), self.optimizer)


class MemorizingTransformers:
    """memorizing-transformers-pytorch with XL memory in all layers and kNN memory in the last but one."""

    def __init__(self, sizes: Sizes, *, memories: int | None = None, device: torch.device | str = "cpu", seed: int = 0):
        """
        Args:
            memories: entries of kNN memory per lane; None: as many as MIDIGen's longest song has tokens.
        """
        library = need(
            "memorizing_transformers_pytorch",
            "pip install --no-deps memorizing-transformers-pytorch && pip install einops einops-exts filelock joblib "
            "(beside PyTorch and Faiss; with its dependencies, faiss-gpu would overwrite faiss-cpu)",
        )
        torch.manual_seed(seed)
        self.device = torch.device(device)
        # The library maps its memory from a file, which can be deleted as soon as it is mapped.
        with tempfile.TemporaryDirectory() as folder:
            self.model = library.MemorizingTransformer(
                num_tokens=sizes.vocabulary,
                dim=sizes.width,
                depth=sizes.layers,
                heads=sizes.heads,
                dim_head=sizes.width // sizes.heads,
                ff_mult=sizes.ff_width // sizes.width,
                ff_dropout=sizes.dropout,
                xl_max_memories=sizes.block,
                memorizing_layers=(max(sizes.layers - 1, 1),),
                max_knn_memories=memories or MAX_BLOCKS * sizes.block,
                num_retrieved_memories=sizes.top_k,
                knn_memories_directory=folder,
                pad_id=NO_TARGET,
            ).to(self.device)
            self.knn = self.model.create_knn_memories(batch_size=sizes.lanes)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.xl: list[Tensor] | None = None  # keys and values [B, T, 2, Dh], one per layer
        self.song = np.full(sizes.lanes, NO_SONG)

    def step(self, batch: Batch) -> float:
        """One optimizer step on a segment of all lanes; its mean loss in nats."""
        inputs = _tensors(batch, self.device)
        changed, self.song = _new_songs(self.song, batch), batch["song"][:, 0]
        if len(changed):
            self.knn.clear_memory(changed)
            self.xl = self.xl and [_emptied(x, changed) for x in self.xl]
        loss, self.xl = self.model(
            inputs["tokens"], knn_memories=self.knn, xl_memories=self.xl, labels=inputs["targets"]
        )
        return descend(loss, self.optimizer)


def _tensors(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x).to(device, torch.long) for name, x in batch.items()}


def _new_songs(song: np.ndarray, batch: Batch) -> list[int]:
    """Lanes that begin with another song than the segment before."""
    return np.flatnonzero(batch["song"][:, 0] != song).tolist()


def _emptied(x: Tensor, lanes: list[int]) -> Tensor:
    """A copy with zeros in these lanes."""
    x = x.clone()
    x[lanes] = 0
    return x
