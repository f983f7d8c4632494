"""Three PyTorch generators of the same size as our model, for the speed of sampling.

MIDIGen         the baseline, as its author ran it: the whole window again for every token; one song; both memories.
x-transformers  its cache of keys and values, T5's relative position bias; no memory beyond the window.
GPT-2           Hugging Face's, with its cache and learned positions; no memory beyond the window.

All read a prompt and then sample any number of tokens, any number of times.

Set for a fair comparison:

- Layers, width, heads, feed-forward width and vocabulary are those given. All run eagerly in float32, in inference
  mode, without dropout, on as many threads as PyTorch has been given.
- The window of x-transformers and GPT-2 is as long as our XL memory and segment together.
- All sample with the temperature and top-p that are this project's defaults, each library by its own functions.

Set in their favour:

- x-transformers and GPT-2 run in a loop of their own here, with the libraries' forward pass and cache. Their `generate`
  does more for each token: x-transformers' embeds the whole window, Hugging Face's updates masks and checks for ends.
- They have no embeddings of bar and position, and none is held to the grammar.
- GPT-2 attends by PyTorch's fused attention, and its GELU (by tanh) is PyTorch's, the same function as its own and
  faster; its output layer reads the last token alone.
- MIDIGen's window is emptied when it is full, so that it is half full on average. Its author's slides (`slides`).

Left as the libraries have it:

- x-transformers' fused attention takes no T5 bias, so it is off, and the bias is computed again for every token.
- When its window is full, x-transformers drops the oldest key, as its own `generate` does.
- Both caches are copied for every token: keys and values are concatenated.
- GPT-2 has no positions beyond its window; when that is full, its newer half is read again. One token in half a window
  costs as much as that: a mean shows it, a median does not.
- x-transformers filters before it divides by the temperature, Hugging Face after.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from _midigen import BARS, LaneMemory, Memory, MIDIGen, Sizes
from _shared import need
from _x_transformers import make_decoder
from torch import Tensor

from midigen_jax.sampling.settings import DEFAULTS

TEMPERATURE, TOP_P = DEFAULTS.temperature, DEFAULTS.top_p


class _LastEntries:
    """A lane's kNN memory that keeps only the last `n` of the entries added, none for 0."""

    def __init__(self, lane: LaneMemory, n: int):
        self.lane, self.n, self.top_k, self.search = lane, n, lane.top_k, lane.search

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        if self.n:
            self.lane.add(keys[-self.n :], values[-self.n :])


class MIDIGenGenerator:
    """MIDIGen's model with XL and kNN memory; of one song, as its author has it.

    For every token the window of up to T - 1 tokens is run again, with a search for each of them.
    """

    def __init__(
        self, sizes: Sizes, rows: int, *, slides: bool = False, device: torch.device | str = "cpu", seed: int = 0
    ):
        """
        Args:
            slides: as its author has it: the window is the last T - 1 tokens, XL memory that of one token before, and
                each token enters the index when it is the last. Otherwise the window grows; when it is full, it enters
                both memories, as in training, and a new one begins.
        """
        if rows != 1:
            raise ValueError(f"rows={rows}: MIDIGen generates one song at a time")
        torch.manual_seed(seed)
        self.sizes, self.slides = dataclasses.replace(sizes, lanes=1), slides
        self.model = MIDIGen(self.sizes).to(device).eval()
        self.memory = Memory(self.sizes, device)
        self.memory.start_songs(np.zeros(1, int))
        self.window = np.zeros((1, 0), np.int32)
        self.begin = 0  # index of the window's first token in the song

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [1, n], n > 0; the last of them, up to T - 1, are the window."""
        length = self.sizes.segment
        whole = (tokens.shape[1] - 1) // length * length
        for i in range(0, whole, length):
            self.window, self.begin = tokens[:, i : i + length], i
            self._run(self.memory)
        self.window, self.begin = tokens[:, whole:], whole
        if self.slides and whole:
            self.window, self.begin = tokens[:, -length:], tokens.shape[1] - length

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Samples n tokens: [1, n]."""
        drawn = [self._next() for _ in range(n)]
        return np.concatenate(drawn, 1)

    def _next(self) -> np.ndarray:
        full = self.window.shape[1] == self.sizes.segment
        if self.slides:
            logits = self._run(self._memory_with(1))
        else:
            logits = self._run(self.memory if full else self._memory_with(0))
        probabilities = _nucleus(torch.softmax(logits / TEMPERATURE, -1))
        token = torch.multinomial(probabilities, 1).cpu().numpy().astype(np.int32)
        if full:
            dropped = 1 if self.slides else self.sizes.segment
            self.window, self.begin = self.window[:, dropped:], self.begin + dropped
        self.window = np.concatenate([self.window, token], 1)
        return token

    def _memory_with(self, n: int) -> Memory:
        """The same memory, where the index gets the window's last n tokens; for 0, XL memory gets none either."""
        view = Memory.__new__(Memory)
        view.xl = self.memory.xl if n else list(self.memory.xl)
        lanes: list[Any] = [_LastEntries(lane, n) for lane in self.memory.knn]
        view.knn, view.song = lanes, self.memory.song
        return view

    def _run(self, memory: Memory) -> Tensor:
        """Logits [1, V] of the window's last token. Its bars and positions are made up; the time is the same."""
        index = self.begin + np.arange(self.window.shape[1], dtype=np.int32)[None]
        batch = {"tokens": self.window, "position": index, "bar": index % BARS, "song": np.zeros_like(index)}
        return self.model.logits(self.model.read(batch, memory)[:, -1])


def _nucleus(probabilities: Tensor) -> Tensor:
    """The likeliest of [B, V] that together have TOP_P, and zeros: [B, V], not normalised."""
    likeliest, ids = probabilities.sort(descending=True)
    likeliest = likeliest.masked_fill(likeliest.cumsum(-1) - likeliest > TOP_P, 0)
    return torch.zeros_like(likeliest).scatter(-1, ids, likeliest)


class XTransformersGenerator:
    """x-transformers' decoder with its cache, as its `AutoregressiveWrapper.generate` uses it.

    The cache holds at most `window` - 1 tokens and slides: keys and values of the tokens that stay were computed when
    the tokens before them were there, so that a full cache holds more than a new reading of its window would.
    """

    def __init__(self, sizes: Sizes, rows: int, *, window: int, device: torch.device | str = "cpu", seed: int = 0):
        self.top_p = need("x_transformers.autoregressive_wrapper", "pip install x-transformers").top_p
        torch.manual_seed(seed)
        self.rows, self.window, self.device = rows, window, torch.device(device)
        model = make_decoder(sizes, sizes.vocabulary, window, {"rel_pos_bias": True})
        self.model = model.to(self.device).eval()
        self.last = torch.zeros((rows, 0), dtype=torch.long, device=self.device)  # sampled, but not yet read
        self.cache: Any = None

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [B, n], n > 0, of which it keeps the last `window`."""
        prompt = _last_tokens(tokens, self.rows, self.window, self.device)
        self.cache, self.last = None, prompt[:, -1:]
        if prompt.shape[1] > 1:
            self._read(prompt[:, :-1])

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Samples n tokens per row: [B, n]."""
        drawn = []
        for _ in range(n):
            likely = self.top_p(self._read(self.last), thres=TOP_P)
            self.last = torch.multinomial(torch.softmax(likely / TEMPERATURE, -1), 1)
            drawn.append(self.last)
        return torch.cat(drawn, 1).cpu().numpy()

    def _read(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after tokens [B, n], which come after those of the cache; with a cache, n is 1."""
        if self.cache is not None:
            for layer in self.cache.attn_intermediates:
                if layer.layer_type == "a" and layer.cached_kv[0].shape[-2] >= self.window:
                    layer.cached_kv = [x[..., 1 - self.window :, :] for x in layer.cached_kv]
        # Only the new token: without absolute positions, the library looks at no other.
        logits, self.cache = self.model(tokens, cache=self.cache, return_intermediates=True)
        return logits[:, -1]


class GPT2Generator:
    """Hugging Face's GPT-2 with its DynamicCache."""

    def __init__(self, sizes: Sizes, rows: int, *, window: int, device: torch.device | str = "cpu", seed: int = 0):
        library = need("transformers", "pip install transformers")
        torch.manual_seed(seed)
        self.rows, self.window, self.device = rows, window, torch.device(device)
        self.make_cache = library.DynamicCache
        self.warpers = (library.TemperatureLogitsWarper(TEMPERATURE), library.TopPLogitsWarper(TOP_P))
        config = library.GPT2Config(
            vocab_size=sizes.vocabulary,
            n_positions=window,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=sizes.ff_width,
            activation_function="gelu_pytorch_tanh",
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = library.GPT2LMHeadModel(config).to(self.device).eval()
        self.tokens = torch.zeros(
            (rows, 0), dtype=torch.long, device=self.device
        )  # the window; the last is not read yet
        self.cache: Any = None

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [B, n], n > 0, of which it keeps the last `window`."""
        self._begin(_last_tokens(tokens, self.rows, self.window, self.device))

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Samples n tokens per row: [B, n]."""
        drawn = []
        for _ in range(n):
            if self.tokens.shape[1] > self.window:
                self._begin(self.tokens[:, -(self.window // 2) :])
            logits = self._read(self.tokens[:, -1:])
            for warper in self.warpers:
                logits = warper(self.tokens, logits)
            token = torch.multinomial(torch.softmax(logits, -1), 1)
            self.tokens = torch.cat([self.tokens, token], 1)
            drawn.append(token)
        return torch.cat(drawn, 1).cpu().numpy()

    def _begin(self, tokens: Tensor) -> None:
        self.tokens, self.cache = tokens, self.make_cache()
        if tokens.shape[1] > 1:
            self._read(tokens[:, :-1])

    def _read(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after tokens [B, n], which come after those of the cache."""
        # By position: the name of this argument changes from version to version.
        return self.model(tokens, self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def _last_tokens(tokens: np.ndarray, rows: int, window: int, device: torch.device) -> Tensor:
    """The last tokens of a prompt [B, n], as many as the window holds."""
    if len(tokens) != rows:
        raise ValueError(f"a prompt of {len(tokens)} rows for a generator of {rows}")
    return torch.from_numpy(tokens[:, -window:]).to(device, torch.long)
