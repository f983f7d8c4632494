"""Training throughput side by side, and the cost of the kNN memory.

    python benchmarks/train.py --data CORPUS_OR_MIDI_DIR

First this project with and without kNN memory, also with the keys of that memory alone and T5 positions, and, where
PyTorch is installed, the PyTorch baseline and two PyTorch libraries: the same sizes, the same music, step by step in
turn in one process, then each in a process of its own for its peak memory and the time to its first step. Then the cost
of a full ring, for each size and each backend.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _ours
import _shared
import jax
import jax.numpy as jnp
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus, open_corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.model.attention import normalize
from midigen_jax.run import runtime
from midigen_jax.training.state import TrainState

Batches = Iterator[dict[str, np.ndarray]]

OURS, KEYS, PLAIN = "this project", "its keys alone, T5 positions", "without kNN memory"
BASELINE, PEER, MEMORIZING = "MIDIGen (PyTorch)", "x-transformers", "memorizing-transformers-pytorch"
CONTESTANTS = (OURS, KEYS, PLAIN, BASELINE, PEER, MEMORIZING)
BACKENDS = ("faiss", "xla", "dense")
WARMUP = 15  # steps before the clock starts: at first all lanes begin a song, and their rings are empty
MEMORY_STEPS = 6  # in a process of its own


def start(name: str, config: cfg.Config, corpus: Corpus, steps: int) -> tuple[Any, Batches]:
    """A contestant before its first step, and the batches that it reads.

    Raises:
        ImportError, InputError: what it needs is not installed.
    """
    batches = batches_of(config, corpus, steps)
    if name == OURS:
        return Ours(config, corpus.vocabulary), batches
    if name == KEYS:
        if not config.memory.aligns:
            raise InputError("the config has none")
        keys = config.memory.retrieval.removesuffix("+alignment")
        settings = [f"memory.retrieval={keys}", "model.positions=t5"]
        return Ours(cfg.override(config, settings), corpus.vocabulary), batches
    if name == PLAIN:
        return Ours(cfg.override(config, ["memory.knn=0"]), corpus.vocabulary), batches
    import _midigen
    import _midigen_training
    import _peers
    import torch

    sizes = _midigen.sizes_of(config, corpus.vocabulary)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == BASELINE:
        # As its author ran it: with its own dropout, and its own batches, in which songs never meet.
        songs = corpus.songs_of("train")
        return _midigen_training.Baseline(sizes, device=device), _midigen_training.training_batches(
            corpus, songs, sizes
        )
    sizes = dataclasses.replace(sizes, dropout=config.model.dropout)
    if name == PEER:
        return _peers.XTransformers(sizes, device=device), batches
    return _peers.MemorizingTransformers(sizes, memories=config.memory.knn, device=device), batches


def measure_alone(name: str, settings: dict[str, Any], corpus: str, steps: int) -> dict[str, float]:
    """Seconds to the end of the first step, compilation included, and the peak memory of this process.

    Args:
        settings: the config by dotted key.
        corpus: its folder.
    """
    if name in (OURS, KEYS, PLAIN):
        runtime.retain_freed_memory()
    else:
        # Like JAX, these are imported before the clock starts.
        import _midigen_training  # noqa: F401
        import _peers  # noqa: F401
    began = time.perf_counter()
    contestant, batches = start(name, cfg.from_flat(settings, "config"), open_corpus(Path(corpus)), steps)
    contestant.step(next(batches))
    first = time.perf_counter() - began
    for batch in itertools.islice(batches, steps - 1):
        contestant.step(batch)
    peak = _shared.resident_megabytes()
    if jax.default_backend() == "gpu":
        if name in (OURS, KEYS, PLAIN):
            peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        else:
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
    return {"first_step_seconds": first, "peak_megabytes": peak}


def compare(config: cfg.Config, corpus: Corpus, steps: int, warmup: int) -> dict[str, dict[str, float]]:
    """Median time per step of every contestant, in turn, so that all see the same noise.

    All run in a process that keeps freed memory, and Faiss uses matrix products in the baseline's searches too, which
    its author's did not: both favour the others. Tokens are those with a target.
    """
    runtime.retain_freed_memory()
    contestants: dict[str, tuple[Any, Batches]] = {}
    for name in CONTESTANTS:
        try:
            contestants[name] = start(name, config, corpus, steps + warmup)
        except (ImportError, InputError) as error:
            print(f"{name} is left out: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    tokens, slots = dict.fromkeys(contestants, 0), []
    for i in range(-warmup, steps):
        for name, (contestant, batches) in contestants.items():
            batch = next(batches)
            began = time.perf_counter()
            contestant.step(batch)
            if i >= 0:
                seconds[name].append(time.perf_counter() - began)
                tokens[name] += int(((batch["targets"] >= 0) & (batch["targets"] != vocab.PAD)).sum())
        if i >= 0:
            slots.append(float(contestants[OURS][0].metrics["valid_slots"]))
    rows = {}
    for name, times in seconds.items():
        median = float(np.median(times))
        rows[name] = {
            "milliseconds_per_step": median * 1e3,
            "tokens_per_second": tokens[name] / len(times) / median,
        }
    rows[OURS]["mean_valid_slots"] = float(np.mean(slots))
    return rows


def fill_ring(state: TrainState, song: int, vocabulary: int) -> TrainState:
    """The state with a ring that is full of random entries of one song."""
    knn = state.memory.knn
    assert knn is not None
    keys = normalize(jax.random.normal(jax.random.key(0), knn.keys.shape)).astype(knn.keys.dtype)
    # Tokens, or numbers in the place of a layer's values.
    values = jax.random.randint(jax.random.key(1), knn.values.shape, 0, vocabulary).astype(knn.values.dtype)
    full = knn._replace(keys=keys, values=values, song=jnp.full_like(knn.song, song))
    return state._replace(memory=state.memory._replace(knn=jax.device_put(full, knn.keys.sharding)))


def full_rings(config: cfg.Config, corpus: Corpus, sizes: list[int], steps: int) -> list[dict[str, Any]]:
    """Steps with every slot of the ring valid, by size and backend; in turn with steps of the model without kNN memory
    and of x-transformers, which has none either."""
    batch = next(batches_of(config, corpus, 1))
    batch["song"] = np.zeros_like(batch["song"])
    others: dict[str, Any] = {}
    for name in (PLAIN, PEER):
        with contextlib.suppress(ImportError, InputError):
            others[name], _ = start(name, config, corpus, 1)
            others[name].step(batch)
    rows = []
    for size, backend in itertools.product(sizes, BACKENDS):
        changed = [f"memory.knn={size}", f"memory.backend={backend}"]
        try:
            side = Ours(cfg.override(config, changed), corpus.vocabulary)
            side.step(batch)
        except (InputError, jax.errors.JaxRuntimeError) as error:
            print(f"{size:,} slots, {backend}: {str(error).splitlines()[0]}")
            continue
        times: dict[str, list[float]] = {name: [] for name in (OURS, *others)}
        for _ in range(steps):
            side.state = jax.block_until_ready(fill_ring(side.state, 0, corpus.vocabulary.size))
            for name, contestant in ((OURS, side), *others.items()):
                began = time.perf_counter()
                contestant.step(batch)
                times[name].append(time.perf_counter() - began)
        milliseconds = {name: 1e3 * float(np.median(x)) for name, x in times.items()}
        cost, valid = milliseconds[OURS] / milliseconds[PLAIN] - 1, float(side.metrics["valid_slots"])
        rows.append({"slots": size, "valid": valid, "backend": backend, "milliseconds": milliseconds, "cost": cost})
        line = f"{size:>8,} {backend:>8} {milliseconds[OURS]:>10,.0f} ms per step {cost:>+10.0%}"
        if PEER in milliseconds:
            line += f"; {milliseconds[PEER] / milliseconds[OURS]:.2f} times the speed of {PEER}"
        print(line, flush=True)
        del side
    return rows


def model_flops(config: cfg.Config, vocabulary: int) -> float:
    """Floating point operations per step: the products of the decoder, forward and twice as many backward.

    Scores that the mask hides are counted, since they are computed; the search is not.
    """
    model = config.model
    ff = (3 if model.activation == "swiglu" else 2) * model.ff_width
    weights = model.layers * model.width * (4 * model.width + ff) + model.width * vocabulary
    attention = model.layers * 2 * (config.memory.xl + config.data.segment) * model.width
    return 3 * 2 * batch_tokens(config) * (weights + attention)


def peak_flops(dtype: str, n: int) -> float:
    """Operations per second of a product of two matrices [n, n] in this dtype, the best of ten."""
    x = jnp.ones((n, n), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)


def print_rows(rows: dict[str, dict[str, float]]) -> None:
    own = rows[OURS]["tokens_per_second"]
    print(f"{'':32}{'ms per step':>12}{'tokens/s':>10}{'ours, times':>12}{'first step, s':>15}{'peak, MB':>10}")
    for name, row in rows.items():
        milliseconds, speed = row["milliseconds_per_step"], row["tokens_per_second"]
        print(
            f"{name:32}{milliseconds:>12,.0f}{speed:>10,.0f}{own / speed:>12.2f}"
            f"{row['first_step_seconds']:>15.1f}{row['peak_megabytes']:>10,.0f}"
        )


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--steps", type=int, default=30, help="steps of each contestant")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps before the clock starts")
    parser.add_argument("--rings", type=int, nargs="*", default=[2048, 8192, 32768, 65536], help="slots of full rings")
    parser.add_argument("--ring-steps", type=int, default=4, help="steps with each full ring")
    parser.add_argument("--product", type=int, help="width of the matrices whose product gives the peak speed")
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), args.set)
    if not config.memory.has_keys:
        raise InputError("this benchmark measures a kNN memory with keys; give a config that has one")
    corpus = open_or_encode(args.data, args.workdir)
    rows = compare(config, corpus, args.steps, args.warmup)
    for name, row in rows.items():
        row |= _shared.in_new_process(measure_alone, name, cfg.flatten(config), str(corpus.path), MEMORY_STEPS)
    print_rows(rows)
    cost = rows[OURS]["milliseconds_per_step"] / rows[PLAIN]["milliseconds_per_step"] - 1
    valid = rows[OURS]["mean_valid_slots"]
    print(f"the kNN memory adds {cost:.0%} to a step, {valid:,.0f} of {config.memory.knn:,} slots valid on average")
    product = args.product or (8192 if jax.default_backend() == "gpu" else 2048)
    flops, peak = model_flops(config, corpus.vocabulary.size), peak_flops(config.model.dtype, product)
    utilisation = flops / (rows[OURS]["milliseconds_per_step"] / 1e3) / peak
    print(f"{flops / 1e9:,.0f} GFLOP per step, {peak / 1e9:,.0f} GFLOP/s at best: utilisation {utilisation:.0%}")
    result = {
        **circumstances(config, corpus, "torch", "x-transformers", "memorizing-transformers-pytorch"),
        "contestants": rows,
        "knn_cost": cost,
        "flops_per_step": flops,
        "peak_flops": peak,
        "utilisation": utilisation,
    }
    # A GPU has configs and rings of its own, so these may be any; --set names them in the result.
    usual = _shared.has_defaults(parser, args, "steps", "warmup", "ring_steps", "product")
    name = f"train-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    _shared.save(args.results, name, result, usual=usual)
    print("full rings:")
    rings = full_rings(config, corpus, args.rings, args.ring_steps)
    _shared.save(args.results, name, result | {"full_rings": rings}, usual=usual)


if __name__ == "__main__":
    command.run(main)
