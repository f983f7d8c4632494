"""Decoders with a window, in training and trained: the PyTorch side of `_rivals`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _midigen import BARS
from _midigen_training import cross_entropy
from _music_transformer import MusicTransformer
from _rivals import RIVALS, Batch
from _shared import need
from _x_transformers import make_decoder
from torch import Tensor, nn

from midigen_jax import config as cfg
from midigen_jax.data.corpus import Corpus
from midigen_jax.errors import InputError
from midigen_jax.miditok_vocab import vocabulary_from_json
from midigen_jax.model.decoder import BEATS
from midigen_jax.music.song import TokenSequence
from midigen_jax.run.tensors import read_tensors, write_tensors
from midigen_jax.training.state import make_optimizer
from midigen_jax.vocab import Vocabulary

KIND, FORMAT_VERSION = "rival", 1  # of the files of trained ones


# Each decoder takes a batch of tokens [B, T], bars and positions, no longer than the window, and gives the logits
# [B, T, V] of the next tokens, and its cache; with a cache, T is 1, the token that comes after those of the cache.
Arrays = dict[str, Tensor]


class Shift(nn.Module):
    """x-transformers' token shift: half of a layer's input is that of the token before, also where a cache goes on."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.fn = layer  # as the library names it
        self.before: Tensor | None = None  # [B, 1, D / 2], that of the last token of the cache

    def forward(self, x: Tensor, **rest: Any) -> Any:
        own, shifted = x.chunk(2, -1)
        before = torch.zeros_like(shifted[:, :1]) if self.before is None else self.before
        shifted, self.before = torch.cat([before, shifted[:, :-1]], 1), shifted[:, -1:]
        return self.fn(torch.cat([own, shifted], -1), **rest)


class XTransformers(nn.Module):
    def __init__(self, model: cfg.Model, vocabulary: Vocabulary, window: int, *, musical: bool):
        """
        Args:
            musical: it is told each token's bar and position in the bar.
        """
        super().__init__()
        self.positions = BEATS * vocabulary.scheme.steps_per_beat if musical else 0
        self.decoder = make_decoder(
            model,
            vocabulary.size,
            window,
            {"rotary_pos_emb": True, "shift_tokens": 1, "attn_flash": True},
            use_abs_pos_emb=False,
            embed_num_tokens={"bar": BARS, "position": self.positions} if musical else {},
        )
        self.shifts = []
        for parent in list(self.decoder.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "ShiftTokens":
                    self.shifts.append(Shift(child.fn))
                    setattr(parent, name, self.shifts[-1])

    def forward(self, batch: Arrays, cache: Any = None) -> tuple[Tensor, Any]:
        ids = {}
        if self.positions:
            ids = {"bar": batch["bar"] % BARS, "position": batch["position"] % self.positions}
        keys, before = cache or (None, [None] * len(self.shifts))
        for shift, x in zip(self.shifts, before, strict=True):
            shift.before = x
        logits, keys = self.decoder(
            batch["tokens"], embed_ids=ids, cache=keys, input_not_include_cache=bool(cache), return_intermediates=True
        )
        return logits, (keys, [shift.before for shift in self.shifts])


class GPT2(nn.Module):
    def __init__(self, model: cfg.Model, vocabulary: Vocabulary, window: int, *, musical: bool):
        super().__init__()
        library = need("transformers", "pip install transformers")
        config = library.GPT2Config(
            vocab_size=vocabulary.size,
            n_positions=window,
            n_embd=model.width,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.ff_width,
            activation_function="gelu_pytorch_tanh",
            attn_implementation="sdpa",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.decoder, self.make_cache = library.GPT2LMHeadModel(config), library.DynamicCache

    def forward(self, batch: Arrays, cache: Any = None) -> tuple[Tensor, Any]:
        # By position: the name of this argument changes from version to version.
        cache = None if self.training else cache or self.make_cache()
        return self.decoder(batch["tokens"], cache, use_cache=not self.training).logits, cache


DECODERS: dict[str, Callable[..., nn.Module]] = {x.__name__: x for x in (XTransformers, GPT2, MusicTransformer)}


class Learner:
    """A rival in training, or trained."""

    def __init__(self, name: str, config: cfg.Config, vocabulary: Vocabulary):
        torch.manual_seed(config.train.seed)
        self.name, self.config, self.vocabulary = name, config, vocabulary
        rival = RIVALS[name]
        self.corpus = ""  # the fingerprint of the one that a trained one has learned
        self.window, self.learning_rate = rival.window, rival.learning_rate
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        make, musical = DECODERS[rival.decoder], not rival.tokenizer
        self.model = make(config.model, vocabulary, self.window, musical=musical).to(self.device)
        matrices, others = ([x for x in self.model.parameters() if (x.ndim > 1) == which] for which in (True, False))
        decay = config.train.weight_decay
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0}]
        _, self.schedule = make_optimizer(config)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, config.train.beta2))

    def step(self, batch: Batch, progress: float) -> float:
        """One optimizer step; the mean loss in nats.

        Args:
            progress: the share of the training that is done, 0 to 1.
        """
        train = self.config.train
        share = float(self.schedule(progress * train.steps)) / train.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        self.model.train()
        inputs = self._tensors(batch)
        loss = cross_entropy(self.model(inputs)[0], inputs["targets"])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def nats(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """The loss of each token of each song but sos, float32 [N - 1]."""
        self.model.eval()
        found, half = [], self.window // 2
        for sequence in sequences:
            targets, parts = len(sequence.tokens) - 1, []
            for first in range(0, max(targets - half, 1), half):
                inputs = self._tensors(_part(sequence, first, first + self.window))
                logits = self.model(inputs)[0]
                nats = cross_entropy(logits, inputs["targets"], reduction="none").cpu().numpy()
                parts.append(nats if first == 0 else nats[half:])
            found.append(np.concatenate(parts))
        return found

    def loss(self, corpus: Corpus, songs: np.ndarray) -> float:
        """Total loss in nats over all tokens but sos of whole songs."""
        return float(sum(self.nats([corpus.sequence_of(song)])[0].sum(dtype=float) for song in songs.tolist()))

    def save(self, path: Path, corpus: Corpus) -> None:
        arrays = {name: x.detach().cpu().numpy() for name, x in self.model.state_dict().items()}
        rest = {
            "format_version": FORMAT_VERSION,
            "rival": self.name,
            "vocabulary": self.vocabulary.to_json(),
            "corpus": corpus.fingerprint,
        }
        write_tensors(path, arrays, KIND, {**rest, "config": cfg.flatten(self.config)})

    @classmethod
    def load(cls, path: Path) -> "Learner":
        """
        Raises:
            InputError: there is no such file, or it is damaged or not of a rival.
        """
        arrays, rest = read_tensors(path, KIND, FORMAT_VERSION)
        if rest["rival"] not in RIVALS:
            raise InputError(f"{path}: of a rival {rest['rival']!r} that this version does not have; train it again")
        vocabulary = vocabulary_from_json(rest["vocabulary"])
        learner = cls(rest["rival"], cfg.from_flat(rest["config"], str(path)), vocabulary)
        learner.corpus = rest["corpus"]
        learner.model.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()})
        return learner

    def _tensors(self, batch: Batch) -> Arrays:
        return {name: torch.from_numpy(x).to(self.device, torch.long) for name, x in batch.items()}


def _part(sequence: TokenSequence, first: int, end: int) -> Batch:
    """A window of a song, up to its last token but one: a batch of one."""
    tokens, bar, position = (x[first : end + 1].astype(np.int32)[None] for x in sequence)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "bar": bar[:, :-1], "position": position[:, :-1]}
