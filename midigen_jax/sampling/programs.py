"""The compiled programs of a sampler, shared by all samplers of one config and vocabulary.

Letters of shapes are those of `shapes`; B are rows.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from flax import nnx

from .. import config as cfg
from .. import vocab
from ..model import cache as caches
from ..model import memory as mem
from ..model.alignment import AlignmentMemory
from ..model.decode import attention_weights, decode_token
from ..model.decoder import abstract_decoder
from ..model.reader import Batch, read_segment
from ..shapes import Array, Bool, Int
from ..vocab import Vocabulary
from .decode_state import DecodeState, Timeline, advance, allowed_tokens, bar_position, enter_bar, where_active
from .logits_processors import SettingArrays, process_logits
from .note_order import init_note_order
from .recent_bars import init_recent_bars
from .session import SamplerState

# On a CPU, XLA computes a sum of more than 32 numbers, such as that of a layer's features, in several small programs.
# Where one token is read at a time, starting these takes longer than the sums.
WHOLE_SUMS = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}
CHUNK = 32  # tokens per row that are sampled between two looks at the host


class Programs:
    def __init__(self, config: cfg.Config, vocabulary: Vocabulary):
        self.config, self.vocabulary = config, vocabulary
        self._graphdef = abstract_decoder(config, vocabulary)
        self.read_segment = jax.jit(self._read_segment, donate_argnames="memory")
        options = WHOLE_SUMS if jax.default_backend() == "cpu" else None
        self.sample_chunk = jax.jit(self._sample_chunk, donate_argnames="state", compiler_options=options)
        self.from_segments = jax.jit(partial(caches.from_segments, config=config))
        self.align = jax.jit(caches.align)
        self.where_active = jax.jit(where_active)

    def abstract_state(self, params: dict, n_rows: int) -> SamplerState:
        """The shapes of the state of this many rows."""

        def state() -> SamplerState:
            segments = jnp.zeros((n_rows, self.config.data.segment), jnp.int32)
            batch: Batch = dict.fromkeys(Batch.__annotations__, segments)  # type: ignore[assignment]
            ended, _ = self._read_segment(params, mem.init_memory(self.config, n_rows), batch)
            ints = jnp.zeros(n_rows, jnp.int32)
            cache = caches.from_segments(*ended, ints, self.config)
            order, recent = init_note_order(ints), init_recent_bars(ints, self.vocabulary.scheme)
            return SamplerState(cache, DecodeState(ints, ints, ints, ints, ints, ints, ints, order, recent))

        return jax.eval_shape(state)

    def _read_segment(
        self, params: dict, memory: mem.Memory, batch: Batch
    ) -> tuple[tuple[mem.XLMemory, mem.KNNMemory | None, AlignmentMemory | None], mem.Memory]:
        """What `cache.from_segments` needs of the songs that end in a segment; and the memories after it."""
        output = read_segment(nnx.merge(self._graphdef, params), memory, batch)
        return (output.window, output.knn, output.memory.alignment), output.memory

    def _sample_chunk(
        self,
        params: dict,
        state: SamplerState,
        timeline: Timeline,
        keys: Array,
        settings: SettingArrays,
        max_tokens: Int[Array, ""],
    ) -> tuple[SamplerState, tuple[Int[Array, "n B"], Int[Array, " B"], Bool[Array, " B"]]]:
        """Samples tokens; also returns the time after them, and which rows continue.

        Args:
            max_tokens: per row, at most CHUNK; tokens are PAD where a row is done.
        """
        decoder = nnx.merge(self._graphdef, params)
        weights = attention_weights(decoder)
        # All noise that the chunk can need at once: token by token it would take as long as a layer.
        counters = state.decode.drawn + jnp.arange(CHUNK)[:, None]
        row_keys = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(keys, counters)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (self.vocabulary.size,))))(row_keys)

        def active(decode: DecodeState) -> Bool[Array, " B"]:
            continues = (decode.next_time < timeline.end) & (decode.drawn < timeline.max_drawn)
            return continues & (decode.token != vocab.EOS)

        def any_left(carry: tuple[SamplerState, Array, Array]) -> Array:
            state, _, i = carry
            return (i < max_tokens) & active(state.decode).any()

        def one_token(carry: tuple[SamplerState, Array, Array]) -> tuple[SamplerState, Array, Array]:
            (cache, decode), tokens, i = carry
            here = active(decode)
            bar, position, _ = bar_position(decode.time, timeline)
            inputs = (decode.token, bar, position, weights, cache, here, settings.copy)
            logits, copies, cache = decode_token(decoder, *inputs)
            entered, next_position = enter_bar(decode, timeline)
            legal = allowed_tokens(entered, timeline, next_position, settings, self.vocabulary)
            logits = process_logits(logits, copies, legal, settings)
            token = jnp.argmax(logits + noise[i], -1)
            decode = where_active(here, advance(entered, token, next_position, self.vocabulary), decode)
            return SamplerState(cache, decode), tokens.at[i].set(jnp.where(here, token, vocab.PAD)), i + 1

        tokens = jnp.full((CHUNK, len(keys)), vocab.PAD, jnp.int32)
        state = state._replace(cache=caches.begin_tokens(state.cache, CHUNK))
        state, tokens, _ = jax.lax.while_loop(any_left, one_token, (state, tokens, jnp.zeros((), jnp.int32)))
        state = state._replace(cache=caches.end_tokens(state.cache))
        return state, (tokens, state.decode.next_time, active(state.decode))


@lru_cache(maxsize=8)
def programs(config: cfg.Config, vocabulary: Vocabulary) -> Programs:
    return Programs(config, vocabulary)
