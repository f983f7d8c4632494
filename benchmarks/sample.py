"""Sampling speed side by side, the cost of a token late in a song, and the time to the first note.

    python benchmarks/sample.py --data CORPUS_OR_MIDI_DIR

This project with an empty and with a full ring, also with its keys alone and T5 positions, and, where PyTorch
is installed, the baseline, x-transformers with its cache and Hugging Face's GPT-2: the same sizes, slice by slice in
turn in one process, then each in a process of its own for its peak memory. The weights are random, which does not
change the time; `--run RUN` takes those of a run, and then also measures how many seconds of music are sampled per
second.
"""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _ours
import _shared
import jax
import jax.numpy as jnp
import numpy as np
from _ours import circumstances

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus, open_corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.model.attention import normalize
from midigen_jax.model.cache import Ring
from midigen_jax.model.decoder import init_params
from midigen_jax.music.song import Prompt, new_song
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling.decode_state import NEVER
from midigen_jax.sampling.generation import make_timeline
from midigen_jax.sampling.logits_processors import make_setting_arrays
from midigen_jax.sampling.programs import CHUNK, programs
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.session import SamplerState, Session
from midigen_jax.sampling.settings import DEFAULTS

EMPTY, FULL = "this project, ring empty", "this project, ring full"
KEYS = "ring full, keys alone, T5 positions"
BASELINE, PEER, GPT2 = "MIDIGen (PyTorch)", "x-transformers", "GPT-2 (Hugging Face)"
CONTESTANTS = (EMPTY, FULL, KEYS, BASELINE, PEER, GPT2)
SLICE = 4 * CHUNK  # tokens per row between two readings of the clock; the baseline, which is slow, draws 8
PAUSE = 0.5  # seconds before a slice: OpenMP's threads (PyTorch's, Faiss's) spin for a while when their work is done
FIRST_NOTE_TOKENS = 1000  # of the prompt
MUSIC_BARS = 64  # of a trained model


class Ours:
    """Samples chunk after chunk from a state, as `Sampler.sample_chunks` does."""

    def __init__(self, sampler: Sampler, state: SamplerState, session: Session):
        self.params, n_rows = sampler.model.params, len(session.rows)
        self.sample_chunk = programs(sampler.config, sampler.vocabulary).sample_chunk
        self.state = jax.tree.map(jnp.copy, state)
        never = jnp.full(n_rows, NEVER, jnp.int32)
        self.timeline = make_timeline(session, [NEVER] * n_rows)._replace(max_drawn=never)
        self.settings = make_setting_arrays(DEFAULTS, sampler.vocabulary)
        self.keys = jax.random.split(jax.random.key(0), n_rows)

    def generate(self, n: int) -> None:
        for _ in range(n // CHUNK):
            self.state, sampled = self.sample_chunk(
                self.params, self.state, self.timeline, self.keys, self.settings, CHUNK
            )
        jax.block_until_ready(sampled)


def random_prompt(sampler: Sampler, n: int) -> Prompt:
    """About n tokens: two notes every quarter of a beat, and rests."""
    random, notes = np.random.default_rng(0), list[tuple[int, ...]]()
    for i in range(n // 6):
        notes += [(2 * i, 2, int(pitch), 0, 80) for pitch in np.sort(random.choice(60, 2, False) + 36)[::-1]]
    song = new_song(sampler.vocabulary.scheme)._replace(notes=np.array(notes, np.int32))
    return Prompt(song, len(notes))


def fill_ring(state: SamplerState, config: cfg.Config) -> SamplerState:
    """The state with a ring full of random entries of the current song."""
    index, ring = state.cache.cache_index, state.cache.ring
    assert ring is not None
    keys = tuple(normalize(jax.random.normal(jax.random.key(i), x.shape, x.dtype)) for i, x in enumerate(ring.keys))
    values = jax.random.randint(jax.random.key(9), ring.values.shape, vocab.NOTE_0, vocab.DURATION_0)
    values = values.astype(ring.values.dtype)  # tokens, or numbers in the place of a layer's values
    index = index._replace(before_segment=jnp.full_like(index.before_segment, config.memory.xl + config.memory.knn))
    return state._replace(cache=state.cache._replace(ring=Ring(keys, values), cache_index=index))


def start(name: str, sampler: Sampler, rows: int) -> Any:
    """A contestant that has read its prompt.

    Raises:
        ImportError, InputError, ValueError: what it needs is not installed, or it can't sample so many rows or layers.
    """
    config = sampler.config
    if name == KEYS:
        if not (config.memory.aligns and config.memory.has_keys):
            raise InputError("the config has only one of them")
        keys = config.memory.retrieval.removesuffix("+alignment")
        params = {part: x for part, x in sampler.model.params.items() if part != "pointer"}
        earlier = cfg.override(config, [f"memory.retrieval={keys}", "model.positions=t5"])
        model = TrainedModel(earlier, params, sampler.vocabulary)
        return start(FULL, Sampler(model), rows)
    if name == FULL and not config.memory.has_keys:
        raise InputError("the config has no ring of keys")
    if name in (EMPTY, FULL):
        session = sampler.prefill([Prompt(new_song(sampler.vocabulary.scheme), 0)] * rows)
        return Ours(sampler, session.state if name == EMPTY else fill_ring(session.state, config), session)
    import _generation
    import _midigen
    import torch

    sizes = dataclasses.replace(_midigen.sizes_of(config, sampler.vocabulary), block=config.memory.xl, lanes=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    window = config.memory.xl + config.data.segment
    if name == BASELINE:
        contestant: Any = _generation.MIDIGenGenerator(sizes, rows, slides=True, device=device)
    elif name == PEER:
        contestant = _generation.XTransformersGenerator(sizes, rows, window=window, device=device)
    else:
        contestant = _generation.GPT2Generator(sizes, rows, window=window, device=device)
    n_prompt = window - 1  # the windows are full from the start, as they are for most of a song
    prompt = np.random.default_rng(0).integers(4, sampler.vocabulary.size, (rows, n_prompt))
    contestant.prompt(prompt.astype(np.int32))
    return contestant


def seconds_per_token(contestants: dict[Any, Any], slices: int) -> dict[Any, float]:
    """Seconds per token of a row: the median of slices, sampled in turn; the first of each is not counted."""
    times: dict[Any, list[float]] = {name: [] for name in contestants}
    for i, (name, contestant) in itertools.product(range(-1, slices), contestants.items()):
        n = 8 if name == BASELINE else SLICE
        time.sleep(PAUSE)
        began = time.perf_counter()
        contestant.generate(n)
        if i >= 0:
            times[name].append((time.perf_counter() - began) / n)
    return {name: float(np.median(x)) for name, x in times.items()}


def compare(sampler: Sampler, rows: int, slices: int) -> dict[str, dict[str, float]]:
    """Tokens per second of all rows together."""
    contestants = {}
    for name in CONTESTANTS:
        try:
            contestants[name] = start(name, sampler, rows)
        except (ImportError, ValueError) as error:  # InputError is a ValueError
            print(f"{name}, {rows} rows: left out ({error})")
    return {
        name: {"tokens_per_second": rows / seconds, "milliseconds_per_token": 1e3 * seconds}
        for name, seconds in seconds_per_token(contestants, slices).items()
    }


def measure_alone(name: str, rows: int, run: str | None, settings: dict[str, Any], corpus: str) -> float:
    """Peak memory of this process in megabytes, while a contestant samples.

    Args:
        run: the folder whose weights are taken; None: random ones.
        settings: the config by dotted key.
        corpus: its folder.
    """
    sampler = make_sampler(Path(run) if run else None, cfg.from_flat(settings, "config"), open_corpus(Path(corpus)))
    start(name, sampler, rows).generate(SLICE)
    return _shared.resident_megabytes()


def by_length(sampler: Sampler, lengths: Sequence[int], slices: int) -> dict[str, dict[str, float]]:
    """The cost of a token after prompts of so many tokens, one row."""
    contestants, valid = {}, {}
    for n in lengths:
        session = sampler.prefill([random_prompt(sampler, n)])
        n_tokens = len(session.rows[0].tokens)
        contestants[n_tokens] = Ours(sampler, session.state, session)
        valid[n_tokens] = max(int(session.state.cache.cache_index.before_segment[0]) - sampler.config.memory.xl, 0)
    return {
        str(n): {"milliseconds_per_token": 1e3 * seconds, "valid_slots": valid[n]}
        for n, seconds in seconds_per_token(contestants, slices).items()
    }


def first_note(sampler: Sampler, tokens: int, times: int) -> float:
    """Seconds from a prompt of so many tokens to its first new notes, in a warm process; the median."""
    seconds = []
    for i in range(times + 1):
        time.sleep(PAUSE)
        began = time.perf_counter()
        session = sampler.prefill([random_prompt(sampler, tokens)])
        generation = sampler.sample(session, [session.rows[0].end + 16 * 32], seed=i)
        n_prompt = len(session.rows[0].tokens)
        while (rows := next(generation)) and len(rows[0].tokens) < n_prompt + 2:
            pass
        seconds.append(time.perf_counter() - began)
        generation.stop()
        generation.finish()
    return float(np.median(seconds[1:]))


def music(sampler: Sampler, rows: int, bars: int) -> dict[str, float]:
    """Seconds of music that are sampled per second, all rows together."""
    sampler.continue_(num=rows, bars=2)
    began = time.perf_counter()
    continuations = sampler.continue_(num=rows, bars=bars)
    seconds = time.perf_counter() - began
    length = sum(x.song.seconds_at(x.song.end) for x in continuations)
    notes = sum(x.new_notes for x in continuations)
    return {"music_seconds_per_second": length / seconds, "notes_per_second": notes / seconds}


def make_sampler(run: Path | None, config: cfg.Config, corpus: Corpus) -> Sampler:
    if run:
        return Sampler.load(run)
    params = init_params(config, corpus.vocabulary, seed=0)[1]
    return Sampler(TrainedModel(config, params, corpus.vocabulary))


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--run", type=Path, help="a trained run, whose weights and config are taken")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16], help="batch sizes")
    parser.add_argument("--slices", type=int, default=15, help=f"of {SLICE} tokens per row, for each contestant")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1000, 10_000, 100_000], help="tokens of prompts")
    parser.add_argument("--first-notes", type=int, default=7, help="times that the time to the first note is taken")
    args = parser.parse_args()
    corpus = open_or_encode(args.data, args.workdir)
    sampler = make_sampler(args.run, cfg.override(cfg.load(args.config), args.set), corpus)
    result: dict[str, Any] = circumstances(sampler.config, corpus, "torch", "x-transformers", "transformers")
    result["rows"] = {}
    for rows in args.rows:
        contestants = compare(sampler, rows, args.slices)
        for name, row in contestants.items():
            settings, run = cfg.flatten(sampler.config), args.run and str(args.run)
            row["peak_megabytes"] = _shared.in_new_process(measure_alone, name, rows, run, settings, str(corpus.path))
        result["rows"][str(rows)] = contestants
        print(f"{f'{rows} rows':32}{'tokens/s':>10}{'ms per token':>14}{'peak, MB':>10}")
        for name, row in contestants.items():
            figures = (row["tokens_per_second"], row["milliseconds_per_token"], row["peak_megabytes"])
            print(f"{name:32}{figures[0]:>10,.0f}{figures[1]:>14.2f}{figures[2]:>10,.0f}", flush=True)
    name = f"sample-{args.run.name if args.run else args.config.stem}-{jax.default_backend()}"
    usual = _shared.has_defaults(parser, args, "set", "slices", "lengths", "first_notes")
    _shared.save(args.results, name, result, usual=usual)
    result["lengths"] = by_length(sampler, args.lengths, args.slices)
    for n, row in result["lengths"].items():
        valid, milliseconds = row["valid_slots"], row["milliseconds_per_token"]
        print(f"after {int(n):,} tokens, {valid:,} slots valid: {milliseconds:.2f} ms per token")
    result["first_note_seconds"] = first_note(sampler, FIRST_NOTE_TOKENS, args.first_notes)
    seconds = result["first_note_seconds"]
    print(f"first note after a prompt of {FIRST_NOTE_TOKENS:,} tokens: {seconds:.3f} s")
    if args.run:
        result["music"] = {str(rows): music(sampler, rows, MUSIC_BARS) for rows in args.rows}
        for rows, row in result["music"].items():
            print(f"{rows} rows: {row['music_seconds_per_second']:,.0f} s of music per second")
    _shared.save(args.results, name, result, usual=usual)


if __name__ == "__main__":
    command.run(main)
