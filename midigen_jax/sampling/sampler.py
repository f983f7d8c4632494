"""Sampling: from a prompt to its continuation, token by token, in one compiled program.

Each row of a batch has its own prompt, its own end and its own position in its song; a row that is done waits while the
others continue. Letters of shapes are those of `shapes`; B are rows.
"""

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import config as cfg
from .. import vocab
from ..errors import InputError
from ..model import memory as mem
from ..model.cache import Cache
from ..music.midi import read_with
from ..music.song import Prompt, Song, TokenSequence, cut, new_song, notes_of, tokens_of
from ..run import trained
from ..run.trained import TrainedModel
from . import prompts as prompting
from .continuation import Continuation
from .decode_state import Timeline
from .generation import Chunk, Generation, make_timeline, most_notes, span
from .logits_processors import SettingArrays, make_setting_arrays
from .programs import CHUNK, programs
from .session import SamplerState, Session, load_session
from .settings import DEFAULTS, GenerationSettings, Length, check_best_of, check_rows, check_seed

FIRST_CHUNK = 8  # tokens per row; fewer than CHUNK, so that the first notes come sooner


class Sampler:
    """A trained model, ready to continue songs."""

    def __init__(self, model: TrainedModel):
        self.model = model
        self._programs = programs(model.config, model.vocabulary)

    @classmethod
    def load(cls, path: Path, *, best: bool = False) -> "Sampler":
        """Loads a model from a run's folder or from an exported file.

        Raises:
            InputError: it can't be used.
        """
        return cls(trained.load(path, best=best))

    @property
    def config(self) -> cfg.Config:
        return self.model.config

    @property
    def vocabulary(self) -> vocab.Vocabulary:
        return self.model.vocabulary

    def set_model(self, model: TrainedModel) -> None:
        """Continues with other parameters of the same config and vocabulary; what is compiled is kept."""
        self.model = model

    def load_state(self, path: Path | str) -> list[Continuation]:
        """The continuations of a state file, to be continued.

        Raises:
            InputError: it can't be read, or is of another model.
        """
        session = load_session(
            Path(path),
            partial(self._programs.abstract_state, self.model.params),
            self.model.fingerprint,
            self.vocabulary.scheme,
        )
        return [
            Continuation(row.song_so_far(self.vocabulary), row.end, session, i, self.vocabulary)
            for i, row in enumerate(session.rows)
        ]

    def read(self, songs: Sequence[TokenSequence]) -> Cache:
        """Reads the beginnings of songs, a row each, segment by segment as in training, up to their last tokens."""
        segment = self.config.data.segment
        n_read = np.array([len(song.tokens) - 1 for song in songs])
        last = n_read // segment  # the segment in which each ends
        length = (int(last.max()) + 1) * segment
        batch: dict[str, np.ndarray] = {
            name: np.stack([np.pad(x[:-1].astype(np.int32), (0, length - len(x) + 1)) for x in arrays])
            for name, arrays in zip(TokenSequence._fields, zip(*songs, strict=True), strict=True)
        }
        batch["song"] = np.where(np.arange(length) < n_read[:, None], 0, vocab.NO_SONG).astype(np.int32)
        batch["targets"] = np.full_like(batch["song"], vocab.NO_TARGET)
        memory, ended = mem.init_memory(self.config, len(songs)), None
        for i in range(last.max() + 1):
            here: Any = {name: x[:, i * segment : (i + 1) * segment] for name, x in batch.items()}
            after, memory = self._programs.read_segment(self.model.params, memory, here)
            if (last == i).any():
                ended = after if ended is None else self._programs.where_active(last == i, after, ended)
        assert ended is not None
        return self._programs.from_segments(*ended, jnp.asarray(n_read % segment, jnp.int32))

    def prefill(self, prompts: Sequence[Prompt]) -> Session:
        """Reads the prompts, a row each; one that is given several times is read once.

        Raises:
            InputError: a prompt is too long.
        """
        distinct = list({id(prompt): prompt for prompt in prompts}.values())
        encoded = [prompting.encode(prompt, self.vocabulary) for prompt in distinct]
        cache = self.read([prompt.read for prompt in encoded])
        state = SamplerState(cache, prompting.initial_state(encoded, self.vocabulary))
        session = Session(state, prompting.initial_rows(encoded, self.vocabulary), self.model.fingerprint)
        which = [next(i for i, x in enumerate(distinct) if x is prompt) for prompt in prompts]
        if which != list(range(len(distinct))):
            session = session.select(which)
        return session.with_streams(range(len(prompts)))

    def sample_chunks(
        self, state: SamplerState, timeline: Timeline, settings: SettingArrays, seed: int = 0
    ) -> Generator[Chunk, bool | None, SamplerState]:
        """Yields chunks until all rows are done, and returns the state after them.

        What a row draws follows from its state, the settings and the seed. Send True to get one more chunk, the last.
        """
        # The states that are given and returned are the caller's; those in between are overwritten.
        state = SamplerState(self._programs.align(state.cache), jax.tree.map(jnp.copy, state.decode))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), state.decode.stream)
        max_tokens, continues = FIRST_CHUNK, True
        result = self._programs.sample_chunk(self.model.params, state, timeline, keys, settings, max_tokens)
        while continues:
            state, sampled = result
            # The next chunk is computed while the host looks at this one; if all rows are done it is empty.
            result = self._programs.sample_chunk(self.model.params, state, timeline, keys, settings, CHUNK)
            tokens, next_time, active = jax.device_get(sampled)
            continues = bool(active.any())
            stop = yield Chunk(tokens[:max_tokens], next_time, active)
            max_tokens = CHUNK
            if stop and continues:
                yield Chunk(*jax.device_get(result[1]))
                break
        return result[0]

    def sample(
        self,
        session: Session,
        ends: Sequence[int],
        *,
        eos_from: Sequence[int] | None = None,
        settings: GenerationSettings = DEFAULTS,
        seed: int = 0,
        num: int | None = None,
    ) -> Generation:
        """Continues each row; iterate over the result for the songs so far.

        Args:
            num: how many continuations are wanted, the best of rows i, i + num, i + 2 num, ... each; None: all.
            ends: the time at which each row stops.
            eos_from: the time from which on each may end; None: it may not.
        """
        arrays = make_setting_arrays(settings, self.vocabulary)
        max_notes = most_notes(session, self.vocabulary, settings.max_density, self.model.densest_bar)
        chunks = self.sample_chunks(session.state, make_timeline(session, ends, eos_from, max_notes), arrays, seed)
        return Generation(chunks, session, ends, self.vocabulary, num or len(ends))

    def generate(
        self,
        prompt: Path | str | Song | Prompt | Continuation | Sequence[Continuation] | None = None,
        *,
        length: Length = Length(),  # noqa: B008  (it is frozen)
        prompt_bars: int = 8,
        context_song: Path | str | Song | None = None,
        num: int | None = None,
        best_of: int = 1,
        settings: GenerationSettings = DEFAULTS,
        seed: int = 0,
    ) -> Generation:
        """What `continue_` does, to be iterated over while it samples.

        Raises:
            InputError: the prompt can't be read, has no notes in these bars, or is of another model.
        """
        check_rows(num)
        check_best_of(best_of)
        check_seed(seed)
        if prompt is None or isinstance(prompt, str | Path | Song | Prompt):
            begun = self.prompt(prompt, prompt_bars=prompt_bars, context_song=context_song)
            num = num or 1
            check_rows(num * best_of)
            session = self.prefill([begun] * (num * best_of))
        else:
            if context_song is not None:
                raise InputError("a continuation has its own context; give `context_song` with a file as prompt")
            given = [prompt] if isinstance(prompt, Continuation) else prompt
            takes = list(given) if isinstance(given, list | tuple) else []
            if not takes or not all(isinstance(take, Continuation) for take in takes):
                raise InputError(f"can't continue {prompt!r}; give a MIDI file, a song or continuations")
            if not all(take.session is takes[0].session for take in takes):
                raise InputError("these continuations were not sampled together; continue each by itself")
            num = num or len(takes)
            check_rows(num * best_of)
            in_turn = [takes[i % len(takes)].row for i in range(num)]
            session = takes[0].session.select(in_turn * best_of)
        if session.model != self.model.fingerprint:
            raise InputError("this state is of another model, or of another checkpoint of it; use the one it came from")
        spans = [span(length, row.song, row.end) for row in session.rows]
        eos_from, ends = [first for first, _ in spans], [end for _, end in spans]
        return self.sample(session, ends, eos_from=eos_from, settings=settings, seed=seed, num=num)

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
        context_song: Path | str | Song | None = None,
        num: int | None = None,
        best_of: int = 1,
        seed: int = 0,
        progress: bool = False,
        **settings: Any,
    ) -> list[Continuation]:
        """Continues a song, or invents one.

            music = midigen_jax.load("runs/mine")
            takes = music.continue_("tune.mid", prompt_bars=8, bars=16, num=4, temperature=0.8)
            takes[2].save("tune-3")  # .mid, .png, .wav
            more = music.continue_(takes[2], bars=16, num=4)  # with everything it remembers

        Args:
            prompt: a MIDI file, of which the first `prompt_bars` are read; a song; continuations, to continue from
                where they stopped, with everything they remember; None, to invent.
            bars, seconds: how much to add; seconds are rounded up to the next bar line. 16 bars if neither is given.
            eos: the song may end early, after `min_bars` or `min_seconds`.
            context_song: a song that the memories hold, as if the prompt continued it.
            num: number of continuations, which take several given ones in turn; else one, or one of each.
            best_of: for each continuation so many are sampled, and the one with the fewest faults is kept.
            settings: those of `GenerationSettings`, which may be text: key="D minor", lowest="C3",
                instruments="0,32,drums".

        Raises:
            InputError: something can't be used; the message names it.
        """
        generation = self.generate(
            prompt,
            length=Length(bars, seconds, min_bars, min_seconds, eos),
            prompt_bars=prompt_bars,
            context_song=context_song,
            num=num,
            best_of=best_of,
            settings=GenerationSettings.parse(**settings),
            seed=seed,
        )
        return generation.finish(progress=progress)

    def prompt(
        self,
        song: Path | str | Song | Prompt | None,
        *,
        prompt_bars: int = 8,
        context_song: Path | str | Song | None = None,
    ) -> Prompt:
        """The first bars of a song, or an empty prompt for None.

        Raises:
            InputError: it can't be read, or no note begins in these bars.
        """
        if prompt_bars < 1:
            raise InputError(f"prompt_bars {prompt_bars}: give a number above 0")
        if song is None:
            prompt = Prompt(new_song(self.vocabulary.scheme), 0)
        else:
            prompt = song if isinstance(song, Prompt) else cut(self.song(song), prompt_bars)
        return prompt if context_song is None else prompt._replace(context=self.song(context_song))

    def song(self, song: Path | str | Song) -> Song:
        """A song as its tokens represent it.

        In the faithful scheme the notes after a rest of more than 256 grid steps move forward; meters and tempos stay.

        Raises:
            InputError: it can't be read.
        """
        song = song if isinstance(song, Song) else read_with(Path(song), self.vocabulary)
        if not self.vocabulary.scheme.faithful:
            return song  # its tokens give back the same notes
        return song._replace(notes=notes_of(tokens_of(song, self.vocabulary)[0], self.vocabulary))
