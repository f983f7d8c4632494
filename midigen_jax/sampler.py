"""Sampling: from a prompt to its continuation, token by token, in one compiled program.

Each row of a batch has its own prompt, its own end and its own place in its song; a row that is done stands still while
the others go on. Letters of shapes are those of `shapes`; B are rows.
"""

import contextlib
from collections.abc import Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import cache as caches
from . import checkpoint, chords, controls, export, model, vocab
from . import config as cfg
from . import held as held_state
from . import memory as mem
from .cache import Cache
from .cli import InputError
from .continuation import Continuation, Length
from .controls import Controls, Rules
from .cursor import Cursor, Timeline, advance, allowed, choose, position
from .held import Held, Row, State
from .midi import read_song
from .playing import Drawn, Playing, make_timeline
from .shapes import Array, Bool, Int
from .song import Prompt, Song, cut, new_song, notes_of, tokens_of
from .step import init_state
from .vocab import Vocabulary

CHUNK = 32  # tokens a row that are sampled between two looks at the host
FIRST_CHUNK = 8  # fewer, so that the first notes come sooner
MOST_ROWS = 4096  # at once
MOST_READ = 1 << 20  # tokens that a row may begin with
DEFAULTS = Controls()


class Sampler:
    """A trained model, ready to continue songs."""

    def __init__(
        self,
        config: cfg.Config,
        params: dict,
        vocabulary: Vocabulary,
        run: Path | None = None,
        step: int = 0,
        corpus: str = "",
    ):
        """
        Args:
            run, step, corpus: the folder of its run, the optimizer steps that it took, and the fingerprint of what it
                was trained on, where there is one.
        """
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self.run, self.step, self.corpus = run, step, corpus
        self._graphdef = model.abstract(config, vocabulary)
        self._read = jax.jit(self._read_segment)
        self._roll = jax.jit(lambda window, knn: mem.roll(window, knn, config.data.segment))
        self._choose = jax.jit(choose)
        self._from_segments = jax.jit(caches.from_segments, static_argnames="config")
        self._sample = jax.jit(self._sample_chunk, donate_argnames="state")
        self._catch_up = jax.jit(caches.catch_up)

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
        return cls(config, found.items["params"], vocabulary, run, found.step, found.meta["corpus"])

    @classmethod
    def open(cls, path: Path, *, best: bool = False) -> "Sampler":
        """A run's folder, or a file that `midigen_jax.export` wrote.

        Raises:
            InputError: it can't be used.
        """
        if path.is_file():
            exported = cls(*export.read(path))
            if best:
                raise InputError(f"{path}: an exported model is one checkpoint; choose the best when it is exported")
            return exported
        return cls.from_run(path, best=best)

    def use(self, params: dict) -> None:
        """Goes on with other parameters; what is compiled stays."""
        self.params = params
        self.__dict__.pop("fingerprint", None)

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same parameters."""
        return held_state.fingerprint(self.params)

    def load_state(self, path: Path | str) -> list[Continuation]:
        """The continuations of a state file, to be gone on from.

        Raises:
            InputError: it can't be read, or is of another model.
        """
        held = held_state.load(Path(path), self._abstract_state, self.fingerprint, self.vocabulary.scheme)
        return [
            Continuation(row.song_so_far(self.vocabulary), row.end, held, i, self.vocabulary)
            for i, row in enumerate(held.rows)
        ]

    def _abstract_state(self, n_rows: int) -> State:
        """The shapes of the state of so many rows."""

        def state() -> State:
            segments = jnp.zeros((n_rows, self.config.data.segment), jnp.int32)
            memory = mem.init_memory(self.config, n_rows)
            output = self._read_segment(self.params, memory, segments, segments, segments, segments)
            ints = jnp.zeros(n_rows, jnp.int32)
            cache = caches.from_segments(output.window, output.knn, ints, self.config)
            return State(
                cache,
                Cursor(ints, ints, ints, ints, ints, ints, ints, chords.init_chord(ints), controls.init_echo(ints)),
            )

        return jax.eval_shape(state)

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
        memory, ended = mem.init_memory(self.config, len(songs)), None
        for i in range(last.max() + 1):
            here = slice(i * segment, (i + 1) * segment)
            output = self._read(self.params, memory, *(x[:, here] for x in arrays))
            tapes = (output.window, output.knn)
            if (last == i).any():
                ended = tapes if ended is None else self._choose(last == i, tapes, ended)
            if i < last.max():
                memory = self._roll(*tapes)
        assert ended is not None
        window, knn = ended
        return self._from_segments(window, knn, jnp.asarray(n_read % segment, jnp.int32), config=self.config)

    def begin(self, prompts: Sequence[Prompt]) -> Held:
        """Reads the prompts, a row each; one that is given several times is read once.

        Raises:
            InputError: a prompt is too long.
        """
        distinct = list({id(prompt): prompt for prompt in prompts}.values())
        read = [self._tokens(prompt) for prompt in distinct]
        songs = [zip(before, own, strict=True) for before, own in read]
        cursors, rows = [], []
        for (_, (tokens, _, _)), prompt in zip(read, distinct, strict=True):
            state = vocab.START
            for token in tokens[1:].tolist():
                state = int(self.vocabulary.grammar[0][state, token])
            named = controls.instruments_named(self.vocabulary)[tokens]
            instrument = next((i for i in named[::-1].tolist() if i != controls.NO_INSTRUMENT), controls.NO_INSTRUMENT)
            now = int(prompt.song.notes[-1, 0]) if len(prompt.song.notes) else 0
            cursors.append((int(tokens[-1]), state, instrument, now, now, 0, 0))
            rows.append(Row(prompt.song, tokens, prompt.end, prompt.end, now))
        echo = controls.init_echo(jnp.asarray([prompt.end for prompt in distinct], jnp.int32))
        cache = self.read([(np.concatenate(a), np.concatenate(b), np.concatenate(c)) for a, b, c in songs])
        token, state_of, instrument_of, step, now_of, drawn, stream = jnp.asarray(cursors, jnp.int32).T
        # Rests lead up to the prompt's end before the next note.
        chord = chords.init_chord(token)
        cursor = Cursor(token, state_of, instrument_of, step, now_of, drawn, stream, chord, echo)
        held = Held(State(cache, cursor), rows, self.fingerprint)
        which = [next(i for i, x in enumerate(distinct) if x is prompt) for prompt in prompts]
        held = held if which == list(range(len(distinct))) else held.take(which)
        return held.with_streams(range(len(prompts)))

    def _tokens(self, prompt: Prompt) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Tokens, bars and steps of what was heard before, and of the prompt, without its eos."""
        own = tuple(x[:-1] for x in tokens_of(prompt.song, self.vocabulary))
        before = tokens_of(prompt.heard, self.vocabulary) if prompt.heard else tuple(x[:0] for x in own)
        if (length := len(before[0]) + len(own[0])) > MOST_READ:
            raise InputError(f"the prompt has {length:,} tokens, and at most {MOST_READ:,} are read; give fewer bars")
        return before, own

    def _sample_chunk(
        self, params: dict, state: State, timeline: Timeline, keys: Array, rules: Rules, most: Int[Array, ""]
    ) -> tuple[State, tuple[Int[Array, "n B"], Int[Array, " B"], Bool[Array, " B"]]]:
        """Draws tokens; also tells the time after them, and which rows go on.

        Args:
            most: so many tokens a row, at most CHUNK; PAD where a row is done.
        """
        decoder = nnx.merge(self._graphdef, params)
        weights = decoder.weights_for_decoding()
        # As much noise as the chunk can need, at once: token by token it would take as long as a layer.
        places = state.cursor.drawn + jnp.arange(CHUNK)[:, None]
        row_keys = jax.vmap(jax.vmap(jax.random.fold_in), (None, 0))(keys, places)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (self.vocabulary.size,))))(row_keys)

        def active(cursor: Cursor) -> Bool[Array, " B"]:
            goes_on = (cursor.now < timeline.end) & (cursor.drawn < timeline.most)
            return goes_on & (cursor.state != vocab.END)

        def go_on(carry: tuple[State, Array, Array]) -> Array:
            state, _, i = carry
            return (i < most) & active(state.cursor).any()

        def one_token(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            (cache, cursor), drawn, i = carry
            here = active(cursor)
            bar, step, bar_length = position(cursor, timeline)
            logits, cache = decoder.decode(cursor.token, bar, step, weights, cache, here)
            legal = allowed(cursor, timeline, bar_length, rules, self.vocabulary)
            logits = controls.restrict(jnp.where(legal, logits, -jnp.inf), rules)
            token = jnp.argmax(logits + noise[i], -1)
            cursor = choose(here, advance(cursor, token, self.vocabulary), cursor)
            return State(cache, cursor), drawn.at[i].set(jnp.where(here, token, vocab.PAD)), i + 1

        drawn = jnp.full((CHUNK, len(keys)), vocab.PAD, jnp.int32)
        state, drawn, _ = jax.lax.while_loop(go_on, one_token, (state, drawn, jnp.zeros((), jnp.int32)))
        return state, (drawn, state.cursor.now, active(state.cursor))

    def draw(
        self, state: State, timeline: Timeline, rules: Rules, seed: int = 0
    ) -> Generator[Drawn, bool | None, State]:
        """Yields what is drawn, chunk by chunk, until all rows are done; the state after it is returned.

        What a row draws follows from its state, the rules and the seed. Who sends True gets one more chunk, the last.
        """
        # The states that are given and returned are the caller's; those between are overwritten.
        state = State(self._catch_up(state.cache), jax.tree.map(jnp.copy, state.cursor))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), state.cursor.stream)
        most, goes_on = FIRST_CHUNK, True
        chunk = self._sample(self.params, state, timeline, keys, rules, most)
        while goes_on:
            state, said = chunk
            # The next chunk is on its way while the host looks at this one; if all rows are done it draws nothing.
            chunk = self._sample(self.params, state, timeline, keys, rules, CHUNK)
            tokens, now, active = jax.device_get(said)
            goes_on = bool(active.any())
            stop = yield Drawn(tokens[:most], now, active)
            most = CHUNK
            if stop and goes_on:
                yield Drawn(*jax.device_get(chunk[1]))
                break
        return chunk[0]

    def play(
        self,
        held: Held,
        ends: Sequence[int],
        *,
        eos_from: Sequence[int] | None = None,
        settings: Controls = DEFAULTS,
        seed: int = 0,
    ) -> "Playing":
        """Goes on with each row; iterate over the result for the songs so far.

        Args:
            ends: the step at which each row stops.
            eos_from: the step from which on each may end by itself; none: it does not.
        """
        rules = controls.make_rules(settings, self.vocabulary)
        chunks = self.draw(held.state, make_timeline(held, ends, eos_from), rules, seed)
        return Playing(chunks, held, ends, self.vocabulary)

    def extend(
        self,
        prompt: Path | str | Song | Prompt | Continuation | Sequence[Continuation] | None = None,
        *,
        length: Length = Length(),  # noqa: B008  (it is frozen)
        prompt_bars: int = 8,
        heard: Path | str | Song | None = None,
        num: int | None = None,
        settings: Controls = DEFAULTS,
        seed: int = 0,
    ) -> "Playing":
        """What `continue_` does, to be iterated over while it plays.

        Raises:
            InputError: the prompt can't be read, has no notes in these bars, or is of another model.
        """
        if num is not None and not 1 <= num <= MOST_ROWS:
            raise InputError(f"num {num}: give a number from 1 to {MOST_ROWS}")
        if not 0 <= seed < 1 << 32:
            raise InputError(f"seed {seed}: give a whole number from 0 to {(1 << 32) - 1}")
        if prompt is None or isinstance(prompt, str | Path | Song | Prompt):
            held = self.begin([self.prompt(prompt, prompt_bars=prompt_bars, heard=heard)] * (num or 1))
        else:
            if heard is not None:
                raise InputError("a song that was begun has heard what it has; give `heard` with a file as prompt")
            given = [prompt] if isinstance(prompt, Continuation) else prompt
            takes = list(given) if isinstance(given, list | tuple) else []
            if not takes or not all(isinstance(take, Continuation) for take in takes):
                raise InputError(f"can't go on from {prompt!r}; give a MIDI file, a song or continuations")
            if not all(take.held is takes[0].held for take in takes):
                raise InputError("these continuations were not played together; go on with each by itself")
            held = takes[0].held.take([takes[i % len(takes)].row for i in range(num or len(takes))])
        self._check(held)
        spans = [length.span(row.song, row.end) for row in held.rows]
        return self.play(
            held, [end for _, end in spans], eos_from=[first for first, _ in spans], settings=settings, seed=seed
        )

    def continue_(
        self,
        prompt: Path | str | Song | Continuation | Sequence[Continuation] | None = None,
        *,
        bars: int | None = None,
        seconds: float | None = None,
        min_bars: int | None = None,
        min_seconds: float | None = None,
        eos: bool = False,
        prompt_bars: int = 8,
        heard: Path | str | Song | None = None,
        num: int | None = None,
        seed: int = 0,
        progress: bool = False,
        **settings: Any,
    ) -> list[Continuation]:
        """Continues a song, or invents one.

            music = midigen_jax.load("runs/mine")
            takes = music.continue_("tune.mid", prompt_bars=8, bars=16, num=4, temperature=0.8)
            takes[2].save("tune-3")  # .mid, .png, .wav
            more = music.continue_(takes[2], bars=16, num=4)  # with all that it remembers

        Args:
            prompt: a MIDI file, of which the first `prompt_bars` are read; a song; continuations, to go on from where
                they stopped, with all that they remember; none, to invent.
            bars, seconds: how much to add; in seconds up to the next bar line. 16 bars where neither is given.
            eos: it may end by itself, after `min_bars` or `min_seconds`.
            heard: a song that the memories hold from before.
            num: so many continuations, of several that are given in turn; else one, or one of each.
            settings: those of `Controls`, which may be in words: key="D minor", lowest="C3", instruments="0,32,drums".

        Raises:
            InputError: something can't be used; the message names it.
        """
        playing = self.extend(
            prompt,
            length=Length(bars, seconds, min_bars, min_seconds, eos),
            prompt_bars=prompt_bars,
            heard=heard,
            num=num,
            settings=Controls.of(**settings),
            seed=seed,
        )
        return playing.finish(progress=progress)

    def prompt(
        self,
        song: Path | str | Song | Prompt | None,
        *,
        prompt_bars: int = 8,
        heard: Path | str | Song | None = None,
    ) -> Prompt:
        """The first bars of a song, or none of any.

        Raises:
            InputError: it can't be read, or no note begins in these bars.
        """
        if prompt_bars < 1:
            raise InputError(f"prompt_bars {prompt_bars}: give a number above 0")
        if song is None:
            begun = Prompt(new_song(self.vocabulary.scheme), 0)
        else:
            begun = song if isinstance(song, Prompt) else cut(self.song(song), prompt_bars)
        return begun if heard is None else begun._replace(heard=self.song(heard))

    def song(self, song: Path | str | Song) -> Song:
        """A song as its tokens say it.

        In the faithful scheme the notes after a rest of more than 256 steps come earlier; meters and tempos stay.

        Raises:
            InputError: it can't be read.
        """
        song = song if isinstance(song, Song) else read_song(Path(song), self.vocabulary.scheme)
        return song._replace(notes=notes_of(tokens_of(song, self.vocabulary)[0], self.vocabulary))

    def _check(self, held: Held) -> None:
        """Raises InputError if it is not of this model."""
        if held.fingerprint != self.fingerprint:
            raise InputError("this state is of another model, or of another checkpoint of it; use the one it came from")
