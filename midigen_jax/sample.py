"""Continues the first bars of a MIDI file, or invents a piece.

    python sample.py RUN --prompt FILE.mid --prompt-bars 8 --bars 16 --num 4

Writes each continuation as a MIDI file, a picture and a WAV file.
"""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from . import checkpoint, cli, model, render, vocab
from . import config as cfg
from . import memory as mem
from .cli import InputError
from .kernels import meter
from .midi import read_song, write_song
from .shapes import Array, Bool, Float, Int
from .song import Song, new_song, notes_of, tokens_of
from .step import init_state
from .vocab import Vocabulary

CHUNK = 64  # tokens a row that are sampled between two looks at the host
NOTES_PER_BAR = 256  # a row that writes more than this on average is stuck and is cut off


class Controls(NamedTuple):
    """How tokens are drawn from the model's distribution; 0 switches top_k and min_p off, 1 top_p."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0  # the most likely tokens that together have this probability (Holtzman et al. 2020)
    min_p: float = 0.0  # tokens at least this share as likely as the likeliest (Nguyen et al. 2024)


DEFAULT_CONTROLS = Controls(temperature=0.9, top_p=0.95)


class Cursor(NamedTuple):
    """Where each row is. Times are in steps."""

    token: Int[Array, " B"]  # the last one; it has not been read yet
    state: Int[Array, " B"]  # of the grammar, after it
    step: Int[Array, " B"]  # where it stands
    now: Int[Array, " B"]  # where the next token will stand
    at: Int[Array, " B"]  # the window's slot that the last token will have


class State(NamedTuple):
    """What sampling carries from token to token."""

    memory: mem.Memory  # its XL window has T slots more than in training, for the running segment
    cursor: Cursor


class Timeline(NamedTuple):
    """What times mean for the grammar and the positions."""

    bars: Int[Array, "n 3"]  # first step, steps a bar, number of the first bar, of every meter
    prompt_end: Array  # no sampled event begins before this step


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
    return Cursor(token, state, cursor.now, now, cursor.at + 1)


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

    def _roll(self, window: mem.XLMemory, knn: mem.KNNMemory | None) -> mem.Memory:
        return mem.roll(window, knn, self.config.data.segment, self.config.memory.knn_layer - 1)

    def _open_segment(self, window: mem.XLMemory, knn: mem.KNNMemory | None) -> mem.Memory:
        """Rolls a full window over and makes room for the next segment's tokens."""
        memory, segment = self._roll(window, knn), self.config.data.segment

        def room(x: Array) -> Array:
            return jnp.pad(x, ((0, 0), (0, 0), (0, segment), (0, 0)))

        song = jnp.pad(memory.xl.song, ((0, 0), (0, segment)), constant_values=mem.NO_SONG)
        token = jnp.pad(memory.xl.token, ((0, 0), (0, segment)))
        xl = mem.XLMemory(tuple(map(room, memory.xl.keys)), tuple(map(room, memory.xl.values)), song, token)
        return mem.Memory(xl, memory.knn)

    def read(self, tokens: np.ndarray, bar: np.ndarray, step: np.ndarray, now: int, rows: int) -> State:
        """Reads a prompt segment by segment, as in training; its last token is left to the first sampling step.

        Args:
            tokens, bar, step: [n], as in a corpus.
            now: step at which the prompt's last event begins.
            rows: of the state, all alike.
        """
        segment, xl = self.config.data.segment, self.config.memory.xl
        memory, n_read = mem.init_memory(self.config, 1), len(tokens) - 1
        length = (n_read // segment + 1) * segment
        arrays = [np.pad(x[:-1].astype(np.int32), (0, length - n_read))[None] for x in (tokens, bar, step)]
        song = np.where(np.arange(length) < n_read, 0, mem.NO_SONG).astype(np.int32)[None]
        for begin in range(0, length, segment):
            here = slice(begin, begin + segment)
            window = self._read(self.params, memory, *(x[:, here] for x in arrays), song[:, here]).window
            if begin + segment < length:
                memory = self._roll(window, memory.knn)
        memory = jax.tree.map(lambda x: jnp.repeat(x, rows, 0), mem.Memory(window, memory.knn))
        state = vocab.START
        for token in tokens[1:].tolist():
            state = int(self.vocabulary.grammar[0][state, token])
        places = (int(tokens[-1]), state, now, now, xl + n_read % segment)
        return State(memory, Cursor(*(jnp.full(rows, place, jnp.int32) for place in places)))

    def _sample_chunk(
        self, params: dict, state: State, timeline: Timeline, keys: Array, first: Array, controls: Controls
    ) -> tuple[State, tuple[Int[Array, "n B"], Int[Array, "n B"]]]:
        """Samples CHUNK tokens a row; returns them and the time after each."""
        decoder = nnx.merge(self._graphdef, params)
        segment, xl = self.config.data.segment, self.config.memory.xl

        def one_token(state: State, i: Array) -> tuple[State, tuple[Array, Array]]:
            memory, cursor = state
            meter = jnp.searchsorted(timeline.bars[:, 0], cursor.step, side="right") - 1
            first_step, bar_length, first_bar = timeline.bars[meter].T
            since = cursor.step - first_step
            output = decoder(
                cursor.token[:, None],
                (first_bar + since // bar_length)[:, None],
                (since % bar_length)[:, None],
                jnp.zeros_like(cursor.token)[:, None],
                memory,
                at=cursor.at,
            )
            logits = jnp.where(allowed(cursor, timeline, self.vocabulary), output.logits[:, 0], -jnp.inf)
            row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, first + i)
            token = jax.vmap(jax.random.categorical)(row_keys, restrict(logits, controls))
            cursor = advance(cursor, token, self.vocabulary)
            # All rows have read equally many tokens, so they reach the segment's end together.
            full = cursor.at[0] == xl + segment
            memory = jax.lax.cond(full, self._open_segment, mem.Memory, output.window, output.knn)
            cursor = cursor._replace(at=jnp.where(full, xl, cursor.at))
            return State(memory, cursor), (token, cursor.now)

        return jax.lax.scan(one_token, state, jnp.arange(CHUNK))

    def continue_song(
        self,
        prompt: Song,
        prompt_end: int,
        *,
        bars: int = 16,
        num: int = 4,
        controls: Controls = DEFAULT_CONTROLS,
        seed: int = 0,
        progress: bool = False,
    ) -> list[Song]:
        """Continuations of a prompt; each begins with it.

        Row i depends on the prompt, the controls, the seed and i.

        Args:
            prompt, prompt_end: what `cut` gives, or `new_song(scheme)` and 0 to invent.
            bars: how many to add after `prompt_end`.
        """
        prompt_bar = int(meter.bar_positions(np.array([prompt_end]), prompt.bars)[0][0])
        end = prompt.bar_start(prompt_bar + bars)
        tokens, bar, step = (x[:-1] for x in tokens_of(prompt, self.vocabulary))
        now = int(prompt.notes[-1, 0]) if len(prompt.notes) else 0
        state = self.read(tokens, bar, step, now=now, rows=num)
        timeline = Timeline(jnp.asarray(prompt.bars, jnp.int32), jnp.asarray(prompt_end, jnp.int32))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))
        rows = [np.repeat(tokens[:, None], num, 1)]
        tokens_per_note = 2 + prompt.scheme.multi + prompt.scheme.velocities
        with tqdm(total=end - prompt_end, unit="step", desc="sampling", disable=not progress) as shown:
            for first in range(0, bars * NOTES_PER_BAR * tokens_per_note, CHUNK):
                state, (chunk, times) = self._sample(
                    self.params, state, timeline, keys, jnp.asarray(first), controls=controls
                )
                rows.append(np.asarray(chunk))
                now = int(np.asarray(times)[-1].min())
                shown.update(max(0, min(end, now) - prompt_end - shown.n))
                if now >= end:
                    break
        streams = np.ascontiguousarray(np.concatenate(rows).T, np.uint16)
        return [_finish(prompt, notes_of(stream, self.vocabulary), end) for stream in streams]


def cut(song: Song, bars: int) -> tuple[Song, int]:
    """The song's first bars as a prompt, and the step at which they end.

    Kept are the notes that begin in these bars, and meters and tempos up to their end; a meter that begins there holds
    for what follows. A shorter song ends at the end of the bar in which its last note begins.

    Raises:
        InputError: no note begins in these bars.
    """
    notes = song.notes[song.notes[:, 0] < song.bar_start(bars)]
    if len(notes) == 0:
        raise InputError(f"no note begins in the prompt's first {bars} bars; give a larger --prompt-bars")
    last_bar = int(meter.bar_positions(notes[-1:, 0], song.bars)[0][0])
    end = song.bar_start(min(bars, last_bar + 1))
    kept = {name: getattr(song, name) for name in ("bars", "meters", "tempos")}
    return song._replace(notes=notes, **{name: rows[rows[:, 0] <= end] for name, rows in kept.items()}), end


def _finish(prompt: Song, notes: np.ndarray, end: int) -> Song:
    """The song of a row's notes, cut at its end."""
    notes = notes[notes[:, 0] < end]
    notes[:, 1] = np.minimum(notes[:, 1], end - notes[:, 0])
    return prompt._replace(notes=notes)


def write_sample(song: Song, stem: Path, *, prompt_end: int | None, title: str) -> None:
    """Writes stem.mid, stem.png and stem.wav. `prompt_end` is None for an invention."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    midi, picture, sound = (stem.with_name(stem.name + suffix) for suffix in (".mid", ".png", ".wav"))
    write_song(midi, song)
    onset, duration, pitch, *_ = song.notes.T
    render.piano_roll(
        picture,
        onset,
        duration,
        pitch,
        bar_lines=song.bar_lines(song.n_steps),
        prompt_end=prompt_end,
        steps_per_beat=song.scheme.steps_per_beat,
        title=title,
    )
    render.wav(midi, sound)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the lowest validation loss; else the newest"
    )
    parser.add_argument("--prompt", type=Path, metavar="FILE.mid", help="the song to go on with; none: invent one")
    parser.add_argument("--prompt-bars", type=int, default=8, help="bars of the prompt to begin with")
    parser.add_argument("--bars", type=int, default=16, help="bars to add")
    parser.add_argument("--num", type=int, default=4, help="continuations to write")
    parser.add_argument(
        "--temperature", type=float, default=DEFAULT_CONTROLS.temperature, help="below 1 safer, above 1 wilder"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=DEFAULT_CONTROLS.top_p, help="draw from the likeliest tokens of this probability"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens this share as likely as the likeliest"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder for the files")
    args = parser.parse_args()
    for name in ("prompt_bars", "bars", "num"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least 1")
    if args.temperature <= 0 or not 0 < args.top_p <= 1 or not 0 <= args.min_p <= 1:
        raise InputError("--temperature has to be above 0, --top-p above 0 and up to 1, --min-p from 0 to 1")
    sampler = Sampler.from_run(args.run, best=args.best)
    if not 0 <= args.top_k <= sampler.vocabulary.size:
        raise InputError(f"--top-k {args.top_k}: give 0 to {sampler.vocabulary.size}, the size of the vocabulary")
    name = args.prompt.stem if args.prompt else "invention"
    prompt, prompt_end = new_song(sampler.vocabulary.scheme), 0
    if args.prompt:
        try:
            prompt, prompt_end = cut(read_song(args.prompt, sampler.vocabulary.scheme), args.prompt_bars)
        except InputError as error:
            raise InputError(f"--prompt {args.prompt}: {str(error).removeprefix(f'{args.prompt}: ')}") from None
    controls = Controls(args.temperature, args.top_k, args.top_p, args.min_p)
    began = time.perf_counter()
    songs = sampler.continue_song(
        prompt, prompt_end, bars=args.bars, num=args.num, controls=controls, seed=args.seed, progress=True
    )
    seconds = time.perf_counter() - began
    for i, song in enumerate(songs, 1):
        stem = args.out / f"{name}-{i}"
        title = f"{name}, continuation {i}" if args.prompt else f"{name} {i}"
        write_sample(song, stem, prompt_end=prompt_end if args.prompt else None, title=title)
        new = int(np.sum(song.notes[:, 0] >= prompt_end))
        print(f"{stem}.mid .png .wav: {args.bars} new bars, {new} new notes")
    print(f"sampled in {seconds:.1f} s, compilation included")


if __name__ == "__main__":
    cli.run(main)
