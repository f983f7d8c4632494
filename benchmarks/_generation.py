"""Three PyTorch generators of the same size as our model, for the speed of sampling.

MIDIGen        the baseline's model and way: the whole window is run again for every token; one song; both memories.
x-transformers its cache of keys and values; T5's relative position bias; no memory beyond the window.
GPT-2          Hugging Face's, with its cache and positions learned; no memory beyond the window.

What was set so that the comparison is fair:

- Layers, width, heads, feed-forward width and vocabulary are those given; all run eagerly in float32.
- The window of x-transformers and GPT-2 is as long as our XL memory and segment together.
- All draw with temperature 0.9 and top-p 0.95, by x-transformers' filter. GPT-2 and x-transformers go without
  embeddings of bar and step, without a grammar, and without `generate` around them, which would cost more.

What was left, because it is their way:

- x-transformers drops the oldest key when its window is full, as its own `generate` does.
- GPT-2 knows no position beyond its window; when that is full, the newer half is read again. Few users would do better.
"""

import numpy as np
import torch
from _midigen import BARS, Memory, MIDIGen, Sizes
from _peers import _need
from torch import Tensor

TEMPERATURE, TOP_P = 0.9, 0.95


def draw(logits: Tensor) -> Tensor:
    """The next token of every row: [B, V] -> [B, 1]."""
    top_p = _need("x_transformers.autoregressive_wrapper", "pip install x-transformers").top_p
    return torch.multinomial(torch.softmax(top_p(logits, thres=TOP_P) / TEMPERATURE, -1), 1)


class _Peek:
    """A lane's kNN memory that is searched but not written, while its window is not complete."""

    def __init__(self, lane):  # type: ignore[no-untyped-def]
        self.search, self.top_k = lane.search, lane.top_k

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        pass


class MIDIGenGenerator:
    """One song; `tokens` [1, n] is the window so far."""

    def __init__(self, sizes: Sizes, rows: int, *, device: torch.device | str = "cpu", seed: int = 0):
        if rows != 1:
            raise ValueError("MIDIGen generates one song at a time")
        torch.manual_seed(seed)
        self.sizes = sizes
        self.model = MIDIGen(sizes).to(device).eval()
        self.memory = Memory(sizes, device)
        self.tokens = np.zeros((1, 0), np.int32)

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [1, n]."""
        for token in tokens.T:
            self._append(token[:, None])

    def _append(self, token: np.ndarray) -> None:
        if self.tokens.shape[1] == self.sizes.segment:
            self._run(self.memory)
            self.tokens = self.tokens[:, :0]
        self.tokens = np.concatenate([self.tokens, token], 1)

    def _run(self, memory: Memory) -> Tensor:
        """Logits of the window's last token. It is padded to its full length, as it is in training."""
        n = self.tokens.shape[1]
        window = np.pad(self.tokens, ((0, 0), (0, self.sizes.segment - n)))
        place = np.arange(self.sizes.segment, dtype=np.int32)[None]
        batch = {"tokens": window, "step": place, "bar": place % BARS, "song": np.zeros_like(window)}
        return self.model(batch, memory)[:, n - 1]

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Draws n tokens: [1, n]."""
        drawn = []
        for _ in range(n):
            peek = Memory.__new__(Memory)
            peek.xl, peek.knn, peek.song = list(self.memory.xl), [_Peek(x) for x in self.memory.knn], np.zeros(1, int)
            self.memory.turn_to(peek.song)
            token = draw(self._run(peek)).cpu().numpy().astype(np.int32)
            self._append(token)
            drawn.append(token)
        return np.concatenate(drawn, 1)


class XTransformersGenerator:
    def __init__(self, sizes: Sizes, rows: int, *, window: int, device: torch.device | str = "cpu", seed: int = 0):
        library = _need("x_transformers", "pip install x-transformers")
        torch.manual_seed(seed)
        self.window, self.device = window, torch.device(device)
        self.model = library.TransformerWrapper(
            num_tokens=sizes.vocabulary,
            max_seq_len=window,
            use_abs_pos_emb=False,
            attn_layers=library.Decoder(
                dim=sizes.width,
                depth=sizes.layers,
                heads=sizes.heads,
                attn_dim_head=sizes.width // sizes.heads,
                ff_mult=sizes.ff_width / sizes.width,
                rel_pos_bias=True,
            ),
        )
        self.model = self.model.to(self.device).eval()
        self.tokens = torch.zeros((rows, 0), dtype=torch.long, device=self.device)
        self.cache = None

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [B, n]; the last is read when the next is drawn."""
        self.tokens = torch.from_numpy(tokens).to(self.device, torch.long)
        if tokens.shape[1] > 1:
            _, self.cache = self.model(self.tokens[:, :-1][:, -self.window :], return_intermediates=True)

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Draws n tokens a row: [B, n]."""
        drawn = []
        for _ in range(n):
            if self.cache is not None:
                for layer in self.cache.attn_intermediates:
                    if layer.layer_type == "a":
                        layer.cached_kv = [x[..., -(self.window - 1) :, :] for x in layer.cached_kv]
            x = self.tokens[:, -self.window :]
            logits, self.cache = self.model(x, return_intermediates=True, cache=self.cache)
            token = draw(logits[:, -1])
            self.tokens = torch.cat([x, token], 1)
            drawn.append(token)
        return torch.cat(drawn, 1).cpu().numpy()


class GPT2Generator:
    def __init__(self, sizes: Sizes, rows: int, *, window: int, device: torch.device | str = "cpu", seed: int = 0):
        library = _need("transformers", "pip install transformers")
        torch.manual_seed(seed)
        self.window, self.device, self.library = window, torch.device(device), library
        config = library.GPT2Config(
            vocab_size=sizes.vocabulary,
            n_positions=window,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=sizes.ff_width,
        )
        self.model = library.GPT2LMHeadModel(config).to(self.device).eval()
        self.tokens = torch.zeros((rows, 0), dtype=torch.long, device=self.device)
        self.cache = library.DynamicCache()

    @torch.inference_mode()
    def prompt(self, tokens: np.ndarray) -> None:
        """Reads tokens [B, n]; the last is read when the next is drawn."""
        self.tokens = torch.from_numpy(tokens).to(self.device, torch.long)[:, -self.window :]
        self._begin()

    def _begin(self) -> None:
        self.cache = self.library.DynamicCache()
        if self.tokens.shape[1] > 1:
            self.model(self.tokens[:, :-1], past_key_values=self.cache, use_cache=True)

    @torch.inference_mode()
    def generate(self, n: int) -> np.ndarray:
        """Draws n tokens a row: [B, n]."""
        drawn = []
        for _ in range(n):
            if self.tokens.shape[1] > self.window:
                self.tokens = self.tokens[:, -self.window // 2 :]
                self._begin()
            logits = self.model(self.tokens[:, -1:], past_key_values=self.cache, use_cache=True).logits
            token = draw(logits[:, -1])
            self.tokens = torch.cat([self.tokens, token], 1)
            drawn.append(token)
        return torch.cat(drawn, 1).cpu().numpy()
