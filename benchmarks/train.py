"""Training throughput side by side, and what the kNN memory costs.

python benchmarks/train.py --data CORPUS_OR_MIDI_DIR

First this project with and without kNN memory, the PyTorch baseline and two PyTorch libraries, where PyTorch is
installed: the same sizes, the same music, step by step in turn in one process, then each alone in a process of its own
for its peak memory and the time to its first step. Then the cost of a full ring, for each size and each backend.
"""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import _ours
import jax
import jax.numpy as jnp
import numpy as np
from _ours import Ours, batches_of, circumstances
from _shared import resident_megabytes, save

from midigen_jax import cli, process, step, vocab
from midigen_jax import config as cfg
from midigen_jax import memory as mem
from midigen_jax.attention import normalize
from midigen_jax.corpus import Corpus
from midigen_jax.train import get_corpus

Batches = Iterator[dict[str, np.ndarray]]

OURS, PLAIN, PEER = "this project", "without kNN memory", "x-transformers"
SIDES = (OURS, PLAIN, "MIDIGen (PyTorch)", PEER, "memorizing-transformers-pytorch")
BACKENDS = ("faiss", "xla", "dense")
WARMUP = 15  # steps before the clock starts: all lanes begin with a song, and their rings are empty


def start(side: str, config: cfg.Config, corpus: Corpus, steps: int) -> tuple[Any, Batches]:
    """A contestant before its first step, and the batches that it reads.

    Raises:
        ImportError, InputError: what it needs is not installed.
    """
    batches = batches_of(config, corpus, steps + WARMUP)
    if side in SIDES[:2]:
        return Ours(config if side == OURS else cfg.override(config, ["memory.knn=0"]), corpus.vocabulary), batches
    import _midigen
    import _midigen_training
    import _peers
    import torch

    sizes = _midigen.sizes_of(config, corpus.vocabulary)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if side == "MIDIGen (PyTorch)":
        # As its author ran it: its own dropout, and its own batches, in which songs never meet.
        return _midigen_training.Baseline(sizes, device=device), _midigen_training.training_batches(
            corpus, corpus.songs_of("train"), sizes
        )
    sizes = dataclasses.replace(sizes, dropout=config.model.dropout)
    if side == PEER:
        return _peers.XTransformers(sizes, device=device), batches
    return _peers.MemorizingTransformers(sizes, memories=config.memory.knn, device=device), batches


def alone(side: str, config: cfg.Config, corpus: Corpus, steps: int) -> dict[str, float]:
    """Time to the end of the first step, compilation included, and the peak memory of this process."""
    if side in SIDES[:2]:
        process.keep_freed_memory()
    else:
        import _midigen_training  # noqa: F401  (as JAX, it has been imported before the clock starts)
        import _peers  # noqa: F401
    begin = time.perf_counter()
    contestant, batches = start(side, config, corpus, steps)
    contestant.step(next(batches))
    first = time.perf_counter() - begin
    for batch in itertools.islice(batches, steps - 1):
        contestant.step(batch)
    peak = resident_megabytes()
    if jax.default_backend() == "gpu":
        if side in SIDES[:2]:
            peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        else:
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
    return {"first_step_seconds": first, "peak_megabytes": peak}


def compare(config: cfg.Config, corpus: Corpus, steps: int) -> dict[str, dict[str, float]]:
    """Median time of a step of every contestant, in turn, so that all see the same noise.

    All run in a process that keeps freed memory, and Faiss multiplies matrices in the baseline's searches too, which
    its author's did not: both are in favour of the others. Tokens are those that are learned from.
    """
    process.keep_freed_memory()
    contestants: dict[str, tuple[Any, Batches]] = {}
    for side in SIDES:
        try:
            contestants[side] = start(side, config, corpus, steps)
        except (ImportError, cli.InputError) as error:
            print(f"{side} is left out: {error}")
    seconds: dict[str, list[float]] = {side: [] for side in contestants}
    tokens, slots = dict.fromkeys(contestants, 0), []
    for i in range(-WARMUP, steps):
        for side, (contestant, batches) in contestants.items():
            batch = next(batches)
            begin = time.perf_counter()
            contestant.step(batch)
            if i >= 0:
                seconds[side].append(time.perf_counter() - begin)
                tokens[side] += int(((batch["targets"] >= 0) & (batch["targets"] != vocab.PAD)).sum())
        if i >= 0:
            slots.append(float(contestants[OURS][0].metrics["slots"]))
    rows = {}
    for side, times in seconds.items():
        median = float(np.median(times))
        rows[side] = {
            "milliseconds_per_step": median * 1e3,
            "tokens_per_second": tokens[side] / len(times) / median,
        }
    rows[OURS]["mean_filled_slots"] = float(np.mean(slots))
    return rows


def fill(state: step.TrainState, song: int) -> step.TrainState:
    """The state with a ring that is full of random entries of one song."""
    knn = state.memory.knn
    assert knn is not None
    keys = normalize(jax.random.normal(jax.random.key(0), knn.keys.shape)).astype(knn.keys.dtype)
    full = mem.KNNMemory(keys, keys + 1, jnp.full_like(knn.song, song), knn.write)
    return state._replace(memory=state.memory._replace(knn=jax.device_put(full, knn.keys.sharding)))


def full_rings(config: cfg.Config, corpus: Corpus, sizes: list[int], steps: int) -> list[dict[str, Any]]:
    """Steps with every slot of the ring valid, by size and backend; in turn steps without kNN memory, and
    x-transformers', which has none either."""
    batch = next(batches_of(config, corpus, 1))
    batch["song"] = np.zeros_like(batch["song"])
    others: dict[str, Any] = {}
    for side in (PLAIN, PEER):
        with contextlib.suppress(ImportError):
            others[side], _ = start(side, config, corpus, 1)
            others[side].step(batch)
    rows = []
    for size, backend in itertools.product(sizes, BACKENDS):
        changed = [f"memory.knn={size}", f"memory.backend={backend}"]
        try:
            side = Ours(cfg.override(config, changed), corpus.vocabulary)
            side.step(batch)
        except (cli.InputError, jax.errors.JaxRuntimeError) as error:
            print(f"{size:,} slots, {backend}: {str(error).splitlines()[0]}")
            continue
        times: dict[str, list[float]] = {name: [] for name in (OURS, *others)}
        for _ in range(steps):
            side.state = jax.block_until_ready(fill(side.state, song=0))
            for name, contestant in ((OURS, side), *others.items()):
                begin = time.perf_counter()
                contestant.step(batch)
                times[name].append(time.perf_counter() - begin)
        milliseconds = {name: 1e3 * float(np.median(x)) for name, x in times.items()}
        cost, valid = milliseconds[OURS] / milliseconds[PLAIN] - 1, float(side.metrics["slots"])
        rows.append({"slots": size, "valid": valid, "backend": backend, "milliseconds": milliseconds, "cost": cost})
        line = f"{size:>8,} {backend:>8} {milliseconds[OURS]:>10,.0f} ms a step {cost:>+10.0%}"
        if PEER in milliseconds:
            line += f"; {milliseconds[PEER] / milliseconds[OURS]:.2f} times the speed of {PEER}"
        print(line, flush=True)
        del side
    return rows


def model_flops(config: cfg.Config, vocabulary: int) -> float:
    """Floating point operations of a step: the products of the decoder, forward and twice as many backward.

    Scores that the mask hides are counted, as they are computed; the search is not.
    """
    model, tokens = config.model, config.data.lanes * config.data.segment * config.data.segments
    ff = (3 if model.activation == "swiglu" else 2) * model.ff_width
    weights = model.layers * model.width * (4 * model.width + ff) + model.width * vocabulary
    attention = model.layers * 2 * (config.memory.xl + config.data.segment) * model.width
    return 3 * 2 * tokens * (weights + attention)


def peak_flops(dtype: str) -> float:
    """Operations a second of a large matrix product in this dtype, the best of ten."""
    n = 8192 if jax.default_backend() == "gpu" else 2048
    x = jnp.ones((n, n), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * n**3 / min(times)


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="steps a side")
    parser.add_argument("--rings", type=int, nargs="*", default=[2048, 8192, 32768, 65536], help="slots of full rings")
    parser.add_argument("--ring-steps", type=int, default=4, help="steps with each full ring")
    parser.add_argument("--alone", choices=SIDES, help="only this one, for its peak memory; prints JSON")
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), args.set)
    corpus = get_corpus(args.data, args.workdir)
    if args.alone:
        print(json.dumps(alone(args.alone, config, corpus, args.steps)))
        return
    rows = compare(config, corpus, args.steps)
    for side, row in rows.items():
        command = [sys.executable, *sys.argv, "--alone", side, "--steps", "6"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row |= json.loads(done.stdout.splitlines()[-1])
    own = rows[OURS]["tokens_per_second"]
    print(f"{'':32}{'ms a step':>10}{'tokens/s':>10}{'ours, times':>12}{'first step, s':>15}{'peak, MB':>10}")
    for side, row in rows.items():
        milliseconds, speed = row["milliseconds_per_step"], row["tokens_per_second"]
        print(
            f"{side:32}{milliseconds:>10,.0f}{speed:>10,.0f}{own / speed:>12.2f}"
            f"{row['first_step_seconds']:>15.1f}{row['peak_megabytes']:>10,.0f}"
        )
    cost = rows[OURS]["milliseconds_per_step"] / rows[PLAIN]["milliseconds_per_step"] - 1
    filled = rows[OURS]["mean_filled_slots"]
    print(f"the kNN memory adds {cost:.0%} to a step, {filled:,.0f} of {config.memory.knn:,} slots valid on average")
    flops, peak = model_flops(config, corpus.vocabulary.size), peak_flops(config.model.dtype)
    utilisation = flops / (rows[OURS]["milliseconds_per_step"] / 1e3) / peak
    print(f"{flops / 1e9:,.0f} GFLOP a step, {peak / 1e9:,.0f} GFLOP/s at best: utilisation {utilisation:.0%}")
    result = {
        **circumstances(config, corpus, "torch", "x-transformers", "memorizing-transformers-pytorch"),
        "sides": rows,
        "knn_cost": cost,
        "flops_per_step": flops,
        "peak_flops": peak,
        "utilisation": utilisation,
    }
    name = f"train-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    save(name, result)
    print("full rings:")
    save(name, result | {"full_rings": full_rings(config, corpus, args.rings, args.ring_steps)})


if __name__ == "__main__":
    cli.run(main)
