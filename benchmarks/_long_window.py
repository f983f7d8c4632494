"""x-transformers with rotary positions and a window of thousands of tokens, where our decoder has a memory.

Set for a fair comparison:

- Width, layers, heads, feed-forward width, vocabulary, learning rate, AdamW's settings and the shape of the schedule
  are those of our config; they were not tuned for it. Bar and position are embedded as we do.
- `shift_tokens`: half of each layer's input is that of the token before. It is the library's own means to the same end
  as our embeddings of previous tokens.
- Flash attention, which is exact, so that a long window costs as little as it can.
- A batch is one window of one song, from a random place on; shorter songs are read whole. So no token attends to
  another song, none is padding, and tokens at the end of the window have all of it before them.
- Songs are evaluated in windows that overlap by half: beyond the first one every token has at least half of a window
  before it.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from _midigen import BARS, POSITIONS
from _peers import need

from midigen_jax import config as cfg
from midigen_jax.data.corpus import Corpus
from midigen_jax.music.song import TokenSequence
from midigen_jax.vocab import Vocabulary


class LongWindow:
    """A decoder that sees the last `window` tokens of the song."""

    def __init__(self, config: cfg.Config, vocabulary: Vocabulary, window: int):
        library = need("x_transformers", "pip install x-transformers")
        torch.manual_seed(config.train.seed)
        self.window, self.train = window, config.train
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = library.TransformerWrapper(
            num_tokens=vocabulary.size,
            max_seq_len=window,
            use_abs_pos_emb=False,
            embed_num_tokens={"bar": BARS, "position": POSITIONS},
            attn_layers=library.Decoder(
                dim=config.model.width,
                depth=config.model.layers,
                heads=config.model.heads,
                attn_dim_head=config.model.width // config.model.heads,
                ff_mult=config.model.ff_width / config.model.width,
                rotary_pos_emb=True,
                shift_tokens=1,
                attn_flash=True,
            ),
        ).to(self.device)
        matrices, others = ([x for x in self.model.parameters() if (x.ndim > 1) == which] for which in (True, False))
        groups = [{"params": matrices, "weight_decay": self.train.weight_decay}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.train.beta2))

    def step(self, sequence: TokenSequence, progress: float) -> float:
        """One optimizer step on the tokens of a window and the one that follows it; their mean loss in nats.

        Args:
            progress: the share of the training that is done, 0 to 1.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.train, progress)
        loss = self._nats(sequence).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def nats(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """The loss of each token of each song but sos, float32 [N - 1]."""
        found = []
        for sequence in sequences:
            targets, parts = len(sequence.tokens) - 1, []
            for first in range(0, max(targets - self.window // 2, 1), self.window // 2):
                nats = self._nats(part_of(sequence, first, self.window)).cpu().numpy()
                parts.append(nats if first == 0 else nats[self.window // 2 :])
            found.append(np.concatenate(parts))
        return found

    def _nats(self, sequence: TokenSequence) -> torch.Tensor:
        tokens, bar, position = (torch.from_numpy(x.astype(np.int64)).to(self.device)[None] for x in sequence)
        ids = {"bar": bar[:, :-1] % BARS, "position": position[:, :-1] % POSITIONS}
        logits = self.model(tokens[:, :-1], embed_ids=ids)
        return F.cross_entropy(logits[0], tokens[0, 1:], reduction="none")


def learning_rate(train: cfg.Train, progress: float) -> float:
    """Linear warm-up and cosine decay over the same shares of the training as ours."""
    warmup = min(train.warmup, train.steps - 1) / train.steps
    if progress < warmup:
        return train.learning_rate * progress / warmup
    decay = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    return train.learning_rate * (train.final_learning_rate + (1 - train.final_learning_rate) * decay)


def part_of(sequence: TokenSequence, first: int, window: int) -> TokenSequence:
    """A window of a song and the token that follows it."""
    return TokenSequence(*(x[first : first + window + 1] for x in sequence))


def training_windows(corpus: Corpus, window: int, *, seed: int = 0) -> Iterator[TokenSequence]:
    """Windows of training songs in random order, one of each song in an epoch, without end."""
    rng, songs = np.random.default_rng(seed), corpus.songs_of("train")
    while True:
        for song in rng.permutation(songs).tolist():
            sequence = corpus.sequence_of(song)
            yield part_of(sequence, int(rng.integers(max(len(sequence.tokens) - window, 1))), window)
