"""Sampling speed side by side, what a token costs late in a song, and how soon the first note comes.

python benchmarks/sample.py --data CORPUS_OR_MIDI_DIR

This project with an empty and with a full ring, the baseline's way, x-transformers with its cache and Hugging Face's
GPT-2, where PyTorch is installed: the same sizes, in turn, slice by slice, in one process; then each alone in a process
of its own for its peak memory. The weights are random, which makes no difference to the time; `--run RUN` takes those
of a run, and then tells how many seconds of music are written in a second.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _ours
import jax
import jax.numpy as jnp
import numpy as np
from _ours import circumstances
from _shared import resident_megabytes, save

from midigen_jax import cache as caches
from midigen_jax import cli, controls, model, vocab
from midigen_jax import config as cfg
from midigen_jax.attention import normalize
from midigen_jax.controls import Controls
from midigen_jax.corpus import Corpus
from midigen_jax.cursor import NEVER
from midigen_jax.held import State
from midigen_jax.playing import make_timeline
from midigen_jax.sampler import CHUNK, Sampler
from midigen_jax.song import Prompt, new_song
from midigen_jax.train import get_corpus

EMPTY, FULL = "this project, ring empty", "this project, ring full"
BASELINE, PEER, GPT2 = "MIDIGen (PyTorch)", "x-transformers", "GPT-2 (Hugging Face)"
SIDES = (EMPTY, FULL, BASELINE, PEER, GPT2)
SLICE = 4 * CHUNK  # tokens a row between two looks at the clock; the baseline, which is slow, draws 8
PAUSE = 0.5  # seconds before a slice: OpenMP's threads, PyTorch's and Faiss's, spin for a while when their work is done


class Ours:
    """Draws chunk after chunk from a state, as `Sampler.draw` does."""

    def __init__(self, sampler: Sampler, state: State, held: Any):
        self.sampler, rows = sampler, len(held.rows)
        self.state = jax.tree.map(jnp.copy, state)
        most = jnp.full(rows, NEVER, jnp.int32)
        self.timeline = make_timeline(held, [NEVER] * rows)._replace(most=most)
        self.rules = controls.make_rules(Controls(), sampler.vocabulary)
        self.keys = jax.random.split(jax.random.key(0), rows)

    def generate(self, n: int) -> None:
        for _ in range(n // CHUNK):
            self.state, drawn = self.sampler._sample(
                self.sampler.params, self.state, self.timeline, self.keys, self.rules, CHUNK
            )
        jax.block_until_ready(drawn)


def random_prompt(sampler: Sampler, n: int) -> Prompt:
    """About n tokens: notes two to a step of a quarter beat, and rests."""
    random, notes = np.random.default_rng(0), []
    for i in range(n // 6):
        notes += [(2 * i, 2, int(pitch), 0, 80) for pitch in np.sort(random.choice(60, 2, False) + 36)[::-1]]
    song = new_song(sampler.vocabulary.scheme)._replace(notes=np.array(notes, np.int32))
    return Prompt(song, 2 * len(notes) // 2)


def filled(state: State, config: cfg.Config) -> State:
    """The state with a ring full of random entries of the running song."""
    place, ring = state.cache.place, state.cache.ring
    assert ring is not None
    keys = tuple(normalize(jax.random.normal(jax.random.key(i), x.shape, x.dtype)) for i, x in enumerate(ring.keys))
    token = jax.random.randint(jax.random.key(9), ring.token.shape, vocab.NOTE_0, vocab.DURATION_0)
    before = jnp.full_like(place.before, config.memory.xl + config.memory.knn)
    return state._replace(
        cache=state.cache._replace(ring=caches.Ring(keys, token), place=place._replace(before=before))
    )


def start(side: str, sampler: Sampler, rows: int) -> Any:
    """A contestant that has begun.

    Raises:
        ImportError, InputError, ValueError: what it needs is not installed, or it draws no such batch.
    """
    config = sampler.config
    if side in (EMPTY, FULL):
        held = sampler.begin([Prompt(new_song(sampler.vocabulary.scheme), 0)] * rows)
        return Ours(sampler, held.state if side == EMPTY else filled(held.state, config), held)
    import _generation
    import _midigen
    import torch

    sizes = dataclasses.replace(_midigen.sizes_of(config, sampler.vocabulary), block=config.memory.xl, lanes=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    window = config.memory.xl + config.data.segment
    if side == BASELINE:
        contestant: Any = _generation.MIDIGenGenerator(sizes, rows, slides=True, device=device)
    elif side == PEER:
        contestant = _generation.XTransformersGenerator(sizes, rows, window=window, device=device)
    else:
        contestant = _generation.GPT2Generator(sizes, rows, window=window, device=device)
    n_heard = window - 1  # full at once, as they are for most of a song
    contestant.prompt(np.random.default_rng(0).integers(4, sampler.vocabulary.size, (rows, n_heard)).astype(np.int32))
    return contestant


def compare(sampler: Sampler, rows: int, slices: int) -> dict[str, dict[str, float]]:
    """Tokens a second of all rows together; the median of slices, drawn in turn."""
    contestants, times = {}, {}
    for side in SIDES:
        try:
            contestants[side] = start(side, sampler, rows)
        except (ImportError, ValueError) as error:  # cli.InputError is a ValueError
            print(f"{side}, {rows} rows: left out ({error})")
    for i, (side, contestant) in itertools.product(range(-1, slices), contestants.items()):
        n = 8 if side == BASELINE else SLICE
        time.sleep(PAUSE)
        begin = time.perf_counter()
        contestant.generate(n)
        if i >= 0:
            times.setdefault(side, []).append((time.perf_counter() - begin) / n)
    return {
        side: {"tokens_per_second": rows / float(np.median(x)), "milliseconds_per_token": 1e3 * float(np.median(x))}
        for side, x in times.items()
    }


def by_length(sampler: Sampler, lengths: list[int], slices: int) -> dict[str, dict[str, float]]:
    """What a token costs after so many tokens of song, one row; all were read as a prompt."""
    contestants = {}
    for n in lengths:
        held = sampler.begin([random_prompt(sampler, n)])
        heard = max(int(held.state.cache.place.before[0]) - sampler.config.memory.xl, 0)
        contestants[len(held.rows[0].tokens)] = (Ours(sampler, held.state, held), heard)
    times: dict[int, list[float]] = {n: [] for n in contestants}
    for i, (n, (contestant, _)) in itertools.product(range(-1, slices), contestants.items()):
        time.sleep(PAUSE)
        begin = time.perf_counter()
        contestant.generate(SLICE)
        if i >= 0:
            times[n].append((time.perf_counter() - begin) / SLICE)
    return {
        str(n): {"milliseconds_per_token": 1e3 * float(np.median(times[n])), "slots_filled": contestants[n][1]}
        for n in contestants
    }


def first_note(sampler: Sampler, tokens: int, times: int) -> float:
    """Seconds from a prompt of so many tokens to its first new notes, in a process that is warm; the median."""
    seconds = []
    for i in range(times + 1):
        time.sleep(PAUSE)
        begin = time.perf_counter()
        held = sampler.begin([random_prompt(sampler, tokens)])
        playing = sampler.play(held, [held.rows[0].end + 16 * 32], seed=i)
        old = len(held.rows[0].tokens)
        while (rows := next(playing)) and len(rows[0].tokens) < old + 2:
            pass
        seconds.append(time.perf_counter() - begin)
        for _ in playing:
            pass
    return float(np.median(seconds[1:]))


def music(sampler: Sampler, rows: int, bars: int) -> dict[str, float]:
    """Seconds of music that a second of sampling writes, all rows together."""
    sampler.continue_(num=rows, bars=2)
    begin = time.perf_counter()
    takes = sampler.continue_(num=rows, bars=bars)
    seconds = time.perf_counter() - begin
    heard = sum(take.song.seconds_at(take.song.n_steps) for take in takes)
    notes = sum(take.new_notes for take in takes)
    return {"music_seconds_per_second": heard / seconds, "notes_per_second": notes / seconds}


def make_sampler(args: Any, corpus: Corpus) -> Sampler:
    if args.run:
        return Sampler.open(args.run)
    config = cfg.override(cfg.load(args.config), args.set)
    return Sampler(config, model.init_params(config, corpus.vocabulary, seed=0)[1], corpus.vocabulary)


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--run", type=Path, help="a trained run, whose weights and config are taken")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16], help="batch sizes")
    parser.add_argument("--slices", type=int, default=15, help=f"of {SLICE} tokens a row and side")
    parser.add_argument("--lengths", type=int, nargs="*", default=[1000, 10_000, 100_000], help="tokens of song")
    parser.add_argument("--alone", choices=SIDES, help="only this one, for its peak memory; prints JSON")
    args = parser.parse_args()
    corpus = get_corpus(args.data, args.workdir)
    sampler = make_sampler(args, corpus)
    if args.alone:
        start(args.alone, sampler, args.rows[0]).generate(SLICE)
        print(json.dumps(resident_megabytes()))
        return
    result: dict[str, Any] = circumstances(sampler.config, corpus, "torch", "x-transformers", "transformers")
    result["rows"] = {}
    for rows in args.rows:
        sides = compare(sampler, rows, args.slices)
        for side, row in sides.items():
            command = [sys.executable, *sys.argv, "--rows", str(rows), "--alone", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row["peak_megabytes"] = json.loads(done.stdout.splitlines()[-1])
        result["rows"][str(rows)] = sides
        print(f"{f'{rows} rows':32}{'tokens/s':>10}{'ms a token':>12}{'peak, MB':>10}")
        for side, row in sides.items():
            figures = (row["tokens_per_second"], row["milliseconds_per_token"], row["peak_megabytes"])
            print(f"{side:32}{figures[0]:>10,.0f}{figures[1]:>12.2f}{figures[2]:>10,.0f}", flush=True)
    name = f"sample-{args.run.name if args.run else args.config.stem}-{jax.default_backend()}"
    usual = not args.set and all(getattr(args, x) == parser.get_default(x) for x in ("slices", "lengths"))
    save(name, result, otherwise=not usual)
    result["lengths"] = by_length(sampler, args.lengths, args.slices)
    for n, row in result["lengths"].items():
        filled_slots, milliseconds = row["slots_filled"], row["milliseconds_per_token"]
        print(f"after {int(n):,} tokens, {filled_slots:,} slots filled: {milliseconds:.2f} ms a token")
    result["first_note_seconds"] = first_note(sampler, 1000, 7)
    print(f"first note after a prompt of 1,000 tokens: {result['first_note_seconds']:.3f} s")
    if args.run:
        result["music"] = {str(rows): music(sampler, rows, 64) for rows in args.rows}
        for rows, row in result["music"].items():
            print(f"{rows} rows: {row['music_seconds_per_second']:,.0f} s of music a second")
    save(name, result, otherwise=not usual)


if __name__ == "__main__":
    cli.run(main)
