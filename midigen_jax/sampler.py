"""Sampling: from a prompt to its continuation, token by token, in one compiled program.

Each row of a batch has its own prompt, its own end and its own place in its song; a row that is done stands still while
the others go on. Letters of shapes are those of `shapes`; B are rows.
"""

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from . import cache as caches
from . import checkpoint, model, vocab
from . import config as cfg
from . import memory as mem
from .cache import Cache
from .kernels import meter
from .shapes import Array, Bool, Float, Int
from .song import Song, notes_of, tokens_of
from .step import init_state
from .vocab import Vocabulary

CHUNK = 64  # tokens a row that are sampled between two looks at the host
NOTES_PER_BAR = 256  # a row that writes more than this on average is stuck and is cut off
NEVER = np.iinfo(np.int32).max


class Controls(NamedTuple):
    """How tokens are drawn from the model's distribution; 0 switches top_k and min_p off, 1 top_p."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0  # the most likely tokens that together have this probability (Holtzman et al. 2020)
    min_p: float = 0.0  # tokens at least this share as likely as the likeliest (Nguyen et al. 2024)


DEFAULT_CONTROLS = Controls(temperature=0.9, top_p=0.95)


class Prompt(NamedTuple):
    """The beginning of a song, to go on from."""

    song: Song
    end: int  # the step at which what is new begins


class Cursor(NamedTuple):
    """Where each row is. Times are in steps."""

    token: Int[Array, " B"]  # the last one; it has not been read yet
    state: Int[Array, " B"]  # of the grammar, after it
    step: Int[Array, " B"]  # where it stands
    now: Int[Array, " B"]  # where the next token will stand
    drawn: Int[Array, " B"]  # tokens that were drawn


class State(NamedTuple):
    """What sampling carries from token to token."""

    cache: Cache
    cursor: Cursor


class Timeline(NamedTuple):
    """What times mean for each row, and where it begins and ends."""

    bars: Int[Array, "B n 3"]  # first step, steps a bar, number of the first bar, of every meter
    prompt_end: Int[Array, " B"]  # no sampled event begins before this step
    end: Int[Array, " B"]  # the row stops when time has come so far ...
    most: Int[Array, " B"]  # ... or when so many tokens were drawn


def allowed(cursor: Cursor, timeline: Timeline, vocabulary: Vocabulary) -> Bool[Array, "B V"]:
    """The tokens that may come next by the grammar, eos aside.

    Before the prompt's end nothing but rests that lead up to it; an invention begins with a note.
    """
    next_state, _ = vocabulary.grammar
    ids = jnp.arange(vocabulary.size)
    legal = jnp.asarray(next_state >= 0)[cursor.state] & (ids != vocab.EOS)
    missing = jnp.clip(timeline.prompt_end - cursor.now, 0, vocab.MAX_DURATION)[:, None]
    resting = jnp.isin(cursor.state, jnp.array([vocab.REST, vocab.START_REST]))[:, None]
    leading_up = jnp.where(resting, ids >= vocab.DURATION_0 + missing, ids == vocab.SEP)
    begins = (cursor.token == vocab.SOS)[:, None]
    notes = jnp.asarray(vocabulary.begins_with_note)
    return legal & ((missing == 0) | leading_up) & (~begins | (missing > 0) | notes)


def advance(cursor: Cursor, token: Int[Array, " B"], vocabulary: Vocabulary) -> Cursor:
    """The cursor after a token."""
    next_state, steps = vocabulary.grammar
    now = cursor.now + jnp.asarray(steps)[cursor.state, token]
    state = jnp.asarray(next_state, jnp.int32)[cursor.state, token]
    return Cursor(token, state, cursor.now, now, cursor.drawn + 1)


def position(cursor: Cursor, timeline: Timeline) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Bar of the last token and its step within the bar."""
    i = jnp.sum(timeline.bars[:, :, 0] <= cursor.step[:, None], 1) - 1
    first_step, bar_length, first_bar = jnp.take_along_axis(timeline.bars, i[:, None, None], 1)[:, 0].T
    since = cursor.step - first_step
    return first_bar + since // bar_length, since % bar_length


def restrict(logits: Float[Array, "B V"], controls: Controls) -> Float[Array, "B V"]:
    """Logits with what the controls rule out at minus infinity."""
    logits = logits / controls.temperature
    probabilities = jax.nn.softmax(logits)
    ranked = jnp.sort(probabilities, -1, descending=True)
    floor = controls.min_p * ranked[:, :1]
    if controls.top_k:
        floor = jnp.maximum(floor, ranked[:, controls.top_k - 1 : controls.top_k])
    if controls.top_p < 1:
        # A token stays if those before it have less than top_p, so that the likeliest always does.
        kept = jnp.cumsum(ranked, -1) - ranked < controls.top_p
        floor = jnp.maximum(floor, jnp.min(jnp.where(kept, ranked, 1.0), -1, keepdims=True))
    return jnp.where(probabilities >= floor, logits, -jnp.inf)


class Sampler:
    """A trained model, ready to continue songs."""

    def __init__(self, config: cfg.Config, params: dict, vocabulary: Vocabulary):
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self._graphdef = model.abstract(config, vocabulary)
        self._read = jax.jit(self._read_segment)
        self._roll = jax.jit(
            lambda window, knn: mem.roll(window, knn, config.data.segment, config.memory.knn_layer - 1)
        )
        self._sample = jax.jit(self._sample_chunk, static_argnames="controls", donate_argnames="state")

    @classmethod
    def from_run(cls, run: Path, *, best: bool = False) -> "Sampler":
        """The newest checkpoint of a run, or the one with the lowest validation loss.

        Raises:
            InputError: there is none, or it can't be used.
        """

        def parts(meta: dict[str, Any]) -> tuple[cfg.Config, Vocabulary]:
            return cfg.from_flat(meta["config"], str(run)), Vocabulary.from_json(meta["vocabulary"])

        def shapes(meta: dict[str, Any]) -> dict[str, Any]:
            return {"params": jax.eval_shape(lambda: init_state(*parts(meta))).params}

        with contextlib.closing(checkpoint.open_run(run)) as checkpoints:
            found = checkpoints.newest(shapes, best=best)
        config, vocabulary = parts(found.meta)
        return cls(config, found.items["params"], vocabulary)

    def _read_segment(
        self, params: dict, memory: mem.Memory, tokens: Array, bar: Array, step: Array, song: Array
    ) -> model.Output:
        return nnx.merge(self._graphdef, params)(tokens, bar, step, song, memory)

    def read(self, songs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Cache:
        """Reads the beginnings of songs segment by segment, as in training, but for their last tokens.

        Args:
            songs: tokens, bars and steps of each, [n], as in a corpus; a row each.
        """
        segment = self.config.data.segment
        n_read = np.array([len(tokens) - 1 for tokens, _, _ in songs])
        last = n_read // segment  # the segment in which each ends
        length = (int(last.max()) + 1) * segment
        arrays = [
            np.stack([np.pad(x[:-1].astype(np.int32), (0, length - n)) for x, n in zip(rows, n_read, strict=True)])
            for rows in zip(*songs, strict=True)
        ]
        arrays.append(np.where(np.arange(length) < n_read[:, None], 0, mem.NO_SONG).astype(np.int32))
        memory, ended = mem.init_memory(self.config, len(songs)), []
        for i in range(last.max() + 1):
            here = slice(i * segment, (i + 1) * segment)
            output = self._read(self.params, memory, *(x[:, here] for x in arrays))
            rows = np.flatnonzero(last == i)
            if len(rows):
                ended.append((rows, jax.tree.map(lambda x, rows=rows: x[rows], (output.window, output.knn))))
            if i < last.max():
                memory = self._roll(output.window, output.knn)
        order = np.argsort(np.concatenate([rows for rows, _ in ended]))
        window, knn = jax.tree.map(lambda *x: jnp.concatenate(x)[order], *(memories for _, memories in ended))
        return caches.from_segments(window, knn, jnp.asarray(n_read % segment, jnp.int32), self.config)

    def begin(self, prompts: Sequence[Prompt]) -> tuple[State, list[np.ndarray]]:
        """The state after the prompts, a row each, and their tokens."""
        distinct = {id(prompt): prompt for prompt in prompts}
        read = [tuple(x[:-1] for x in tokens_of(prompt.song, self.vocabulary)) for prompt in distinct.values()]
        row_of = dict(zip(distinct, range(len(distinct)), strict=True))
        rows = [row_of[id(prompt)] for prompt in prompts]
        places = []
        for (tokens, _, _), prompt in zip(read, distinct.values(), strict=True):
            state, notes = vocab.START, prompt.song.notes
            for token in tokens[1:].tolist():
                state = int(self.vocabulary.grammar[0][state, token])
            now = int(notes[-1, 0]) if len(notes) else 0
            places.append((int(tokens[-1]), state, now, now, 0))
        cursor = Cursor(*jnp.asarray(places, jnp.int32)[jnp.asarray(rows)].T)
        cache = self.read(read)  # type: ignore[arg-type]
        if rows != list(range(len(read))):
            cache = caches.take(cache, jnp.asarray(rows))
        return State(cache, cursor), [read[row][0] for row in rows]

    def _sample_chunk(
        self, params: dict, state: State, timeline: Timeline, keys: Array, controls: Controls
    ) -> tuple[State, Int[Array, "n B"], Int[Array, " B"], Bool[Array, " B"]]:
        """Draws up to CHUNK tokens a row, PAD where a row is done; also the time after them, and which rows go on."""
        decoder = nnx.merge(self._graphdef, params)
        weights = decoder.weights_for_decoding()

        def active(cursor: Cursor) -> Bool[Array, " B"]:
            goes_on = (cursor.now < timeline.end) & (cursor.drawn < timeline.most)
            return goes_on & (cursor.state != vocab.END)

        def go_on(carry: tuple[State, Array, Array]) -> Array:
            state, _, i = carry
            return (i < CHUNK) & active(state.cursor).any()

        def one_token(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            (cache, cursor), drawn, i = carry
            here = active(cursor)
            logits, cache = decoder.decode(cursor.token, *position(cursor, timeline), weights, cache, here)
            logits = jnp.where(allowed(cursor, timeline, self.vocabulary), logits, -jnp.inf)
            row_keys = jax.vmap(jax.random.fold_in)(keys, cursor.drawn)
            token = jax.vmap(jax.random.categorical)(row_keys, restrict(logits, controls))
            after = advance(cursor, token, self.vocabulary)
            cursor = Cursor(*(jnp.where(here, new, old) for new, old in zip(after, cursor, strict=True)))
            drawn = drawn.at[i].set(jnp.where(here, token, vocab.PAD))
            return State(cache, cursor), drawn, i + 1

        drawn = jnp.full((CHUNK, len(keys)), vocab.PAD, jnp.int32)
        state, drawn, _ = jax.lax.while_loop(go_on, one_token, (state, drawn, jnp.zeros((), jnp.int32)))
        return state, drawn, state.cursor.now, active(state.cursor)

    def draw(
        self, state: State, timeline: Timeline, keys: Array, controls: Controls
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, State]:
        """Yields chunks of drawn tokens, int [n, B] with PAD where a row is done, and the time [B] after each.

        The state before is given up; the one after all chunks is returned.
        """
        chunk = self._sample(self.params, state, timeline, keys, controls=controls)
        goes_on = True
        while goes_on:
            state, *said = chunk
            # The next chunk is on its way while the host looks at this one; if all rows are done it draws nothing.
            chunk = self._sample(self.params, state, timeline, keys, controls=controls)
            drawn, now, active = jax.device_get(said)
            goes_on = active.any()
            yield drawn, now
        return chunk[0]

    def continue_songs(
        self,
        prompts: Sequence[Prompt],
        *,
        bars: int = 16,
        controls: Controls = DEFAULT_CONTROLS,
        seed: int = 0,
        progress: bool = False,
    ) -> list[Song]:
        """Continuations of prompts, one each; a prompt may be given several times.

        Row i depends on its prompt, the controls, the seed and i.

        Args:
            bars: how many to add.
        """
        ends = []
        for song, end in prompts:
            bar = int(meter.bar_positions(np.array([end]), song.bars)[0][0])
            ends.append(song.bar_start(bar + bars))
        state, streams = self.begin(prompts)
        scheme = self.vocabulary.scheme
        most = bars * NOTES_PER_BAR * (2 + scheme.multi + scheme.velocities)
        timeline = make_timeline(prompts, ends, most)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
        rows = [np.zeros((0, len(prompts)), np.int32)]
        first = np.array([end for _, end in prompts])
        with tqdm(total=int(max(ends - first)), unit="step", desc="sampling", disable=not progress) as shown:
            for drawn, now in self.draw(state, timeline, keys, controls):
                rows.append(drawn)
                done = np.minimum(now, ends) - first
                shown.update(max(0, int(done.min()) - shown.n))
        songs = []
        for prompt, old, new, end in zip(prompts, streams, np.concatenate(rows).T, ends, strict=True):
            stream = np.concatenate([old, new[new != vocab.PAD].astype(np.uint16)])
            songs.append(_finish(prompt.song, notes_of(stream, self.vocabulary), end))
        return songs


def make_timeline(prompts: Sequence[Prompt], ends: Sequence[int], most: int) -> Timeline:
    """
    Args:
        ends: the step at which each row ends.
        most: so many tokens are drawn at most.
    """
    longest = max(len(song.bars) for song, _ in prompts)
    bars = [np.pad(song.bars, ((0, longest - len(song.bars)), (0, 0)), constant_values=NEVER) for song, _ in prompts]
    arrays = (np.stack(bars), [end for _, end in prompts], ends, [most] * len(prompts))
    return Timeline(*(jnp.asarray(x, jnp.int32) for x in arrays))


def _finish(prompt: Song, notes: np.ndarray, end: int) -> Song:
    """The song of a row's notes, cut at its end."""
    notes = notes[notes[:, 0] < end]
    notes[:, 1] = np.minimum(notes[:, 1], end - notes[:, 0])
    return prompt._replace(notes=notes)
