"""Music Transformer (Huang et al. 2018): a decoder with learned relative positions, by the memory-efficient "skew".

Relative attention, "skew" and sizes are the paper's (section 3.4). As decoders are built today, LayerNorm comes before
each part, and there are no absolute positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midigen_jax import config as cfg
from midigen_jax.vocab import Vocabulary

KeysValues = tuple[Tensor, Tensor]  # [B, H, K, Dh] each


class RelativeAttention(nn.Module):
    """Causal attention whose scores are (q k + q e) / sqrt(Dh), with e a learned vector for each head and distance."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.relative = nn.Parameter(torch.randn(heads, window, width // heads) * 0.02)  # the last is for distance 0

    def forward(self, x: Tensor, cache: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Of tokens [B, T, D]: those of the whole window or, with a cache of what came before, a single one."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True))
        by_distance = q @ self.relative[:, self.relative.shape[1] - k.shape[2] :].mT  # [B, H, T, K]
        relative = by_distance if cache is not None else skewed(by_distance)
        scores = (q @ k.mT + relative) * q.shape[-1] ** -0.5
        if cache is None:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), (k, v)


def skewed(by_distance: Tensor) -> Tensor:
    """Moves scores [B, H, T, T] from [query, distance], the last of distance 0, to [query, key] (the paper's figure 1).

    What stands above the diagonal has no meaning.
    """
    *batch, n, _ = by_distance.shape
    return F.pad(by_distance, (1, 0)).reshape(*batch, n + 1, n)[..., 1:, :]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ff_width: int, window: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = RelativeAttention(width, heads, window)
        self.up, self.down = nn.Linear(width, ff_width), nn.Linear(ff_width, width)

    def forward(self, x: Tensor, cache: KeysValues | None) -> tuple[Tensor, KeysValues]:
        attended, cache = self.attention(self.norm1(x), cache)
        x = x + attended
        return x + self.down(F.relu(self.up(self.norm2(x)))), cache


class MusicTransformer(nn.Module):
    def __init__(self, model: cfg.Model, vocabulary: Vocabulary, window: int, *, musical: bool):
        super().__init__()
        self.token = nn.Embedding(vocabulary.size, model.width)
        sizes = model.width, model.heads, model.ff_width, window
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.width)
        self.logits = nn.Linear(model.width, vocabulary.size)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(
        self, batch: dict[str, Tensor], cache: list[KeysValues] | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        x, caches = self.token(batch["tokens"]), []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, cache and cache[i])
            caches.append(kept)
        return self.logits(self.norm(x)), caches
