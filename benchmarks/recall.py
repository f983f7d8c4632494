"""A task that only long memory can solve: a motif, thousands of tokens of filler, the motif again.

    python benchmarks/recall.py

Every song has its own motif: a bar of random notes, one per grid step, which no weights can know. The filler is another
bar, repeated. When the motif's first note returns, the others can only be predicted from the first time; the position
in the bar, which every token has, tells them apart. The model without kNN memory is otherwise the same. As a control,
the model trained with kNN memory reads the test songs with its ring empty, and with the ring of another song.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import _shared
import jax
import numpy as np
from _ours import BATCH_ARRAYS, Ours, circumstances
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.cli import command
from midigen_jax.errors import InputError
from midigen_jax.model.decoder import abstract_decoder
from midigen_jax.model.memory import Memory, init_memory
from midigen_jax.model.reader import Batch, Visible, read_segment
from midigen_jax.run import runtime
from midigen_jax.shapes import Array
from midigen_jax.vocab import Vocabulary

PITCHES, NOTES = 24, 16  # of a motif: pitches to choose from, and notes; chance is log(24) = 3.18 nats
FILLER = vocab.DURATION_0 + 1 + np.arange(NOTES)
# Tokens of filler: in the first half of training, where the window holds the motif; in the second half; in the test.
NEAR, FAR, TEST = (1, 20), (1, 512), (2000, 3000)
RINGS = OWN, EMPTY, OTHER = "own", "empty", "another song's"  # which a model reads; another song's: the next lane's

Arrays = dict[str, np.ndarray]


def make_config(*, knn: bool, steps: int) -> cfg.Config:
    return cfg.Config(
        model=cfg.Model(layers=1, width=64, heads=2, ff_width=128, previous_tokens=0),
        memory=cfg.Memory(xl=64, knn=4096 * knn, retrieval="context", knn_layer=1, top_k=8),
        data=cfg.Data(lanes=8, segment=64, segments=4),
        train=cfg.Train(steps=steps, learning_rate=0.01, warmup=50),
    )


def compose(random: np.random.Generator, gap: tuple[int, int], returns: int) -> Arrays:
    """A song's tokens, their positions in the bar, and which of them can be recalled."""
    motif = vocab.NOTE_0 + random.integers(0, PITCHES, NOTES)
    tokens, positions, recalled = [vocab.SOS, *motif], [0, *range(NOTES)], [False] * (NOTES + 1)
    for _ in range(returns):
        filler = np.arange(int(np.exp(random.uniform(*np.log(gap))))) % NOTES
        tokens += [*FILLER[filler], *motif]
        positions += [*(NOTES + filler), *range(NOTES)]
        recalled += [False] * (len(filler) + 1) + [True] * (NOTES - 1)
    return {"tokens": np.array(tokens), "position": np.array(positions), "recalled": np.array(recalled)}


def batches(config: cfg.Config, gap: tuple[int, int], returns: int, *, seed: int) -> Iterator[Arrays]:
    """Endless batches in which every lane reads song after song; `recalled` marks the targets that can be recalled."""
    random = np.random.default_rng(seed)
    n = config.data.segment * config.data.segments
    lanes: list[Arrays] = [{} for _ in range(config.data.lanes)]
    songs = 0
    while True:
        rows = []
        for i, lane in enumerate(lanes):
            while len(lane.get("tokens", ())) <= n:
                song = compose(random, gap, returns)
                song["song"] = np.full(len(song["tokens"]), songs)
                songs += 1
                lane = {name: np.concatenate([lane.get(name, x[:0]), x]) for name, x in song.items()}
            same = lane["song"][1 : n + 1] == lane["song"][:n]
            row = {name: lane[name][:n] for name in ("tokens", "position", "song")}
            row["targets"] = np.where(same, lane["tokens"][1 : n + 1], vocab.NO_TARGET)
            row["recalled"] = lane["recalled"][1 : n + 1] & same
            rows.append(row)
            lanes[i] = {name: x[n:] for name, x in lane.items()}
        batch = {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in rows[0]}
        yield batch | {"bar": np.zeros_like(batch["tokens"])}


def make_reader(side: Ours) -> Callable[[Memory, Batch, str], tuple[Memory, Array, Array]]:
    """A function of (memory, batch, ring): the memory after a segment, the loss of its targets, and which are correct.

    The memory is donated.
    """
    graphdef = abstract_decoder(side.config, side.vocabulary)

    @partial(jax.jit, donate_argnums=1)
    def read(params: dict, memory: Memory, batch: Batch, sees_knn: bool, lanes: Array) -> tuple[Memory, Array, Array]:
        knn, visible = memory.knn, Visible()
        if knn is not None:
            # The slots keep the songs of their lane, so that as many are valid as in its own ring.
            other = knn._replace(keys=knn.keys[lanes], values=knn.values[lanes])
            visible = Visible(knn=sees_knn, other_knn=other)
        output = read_segment(nnx.merge(graphdef, params), memory, batch, visible)
        return output.memory, output.nats, output.logits.argmax(-1) == batch["targets"]

    own = np.arange(side.config.data.lanes)
    return lambda memory, batch, ring: read(
        side.state.params, memory, batch, ring != EMPTY, np.roll(own, 1) if ring == OTHER else own
    )


def score(side: Ours, n_batches: int, rings: Sequence[str]) -> list[dict[str, Any]]:
    """Mean loss and accuracy on the recalled notes of songs that are not in the training data, with each ring."""
    read = make_reader(side)
    return [score_ring(read, side.config, n_batches, ring) for ring in rings]


def score_ring(read: Any, config: cfg.Config, n_batches: int, ring: str) -> dict[str, Any]:
    memory, all_nats, all_right = init_memory(config, config.data.lanes), [], []
    source = batches(config, TEST, 1, seed=1)
    for _ in range(n_batches):
        batch = next(source)
        for begin in range(0, batch["tokens"].shape[1], config.data.segment):
            segment: Any = {name: batch[name][:, begin : begin + config.data.segment] for name in BATCH_ARRAYS}
            memory, nats, right = read(memory, segment, ring)
            recalled = batch["recalled"][:, begin : begin + config.data.segment] > 0
            all_nats.append(np.asarray(nats)[recalled])
            all_right.append(np.asarray(right)[recalled])
    losses, hits = np.concatenate(all_nats), np.concatenate(all_right)
    if len(losses) == 0:
        raise InputError(f"--batches {n_batches}: too few, no motif returns in them; give at least 10")
    return {"nats": float(losses.mean()), "accuracy": float(hits.mean()), "notes": len(losses)}


def train(config: cfg.Config) -> tuple[Ours, float]:
    """The trained model, and how many seconds training took."""
    began = time.perf_counter()
    side = Ours(config, Vocabulary())
    near, far = (batches(config, gap, 8, seed=0) for gap in (NEAR, FAR))
    for i in range(config.train.steps):
        batch = next(near if i < config.train.steps // 2 else far)
        side.step({name: batch[name] for name in BATCH_ARRAYS})
    return side, time.perf_counter() - began


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", help="ignored: the songs are made here")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each model")
    parser.add_argument("--batches", type=int, default=50, help="batches of the test")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    rows: dict[str, dict[str, Any]] = {}
    for name, knn in (("with kNN memory", True), ("trained without kNN memory", False)):
        config = make_config(knn=knn, steps=args.steps)
        side, seconds = train(config)
        own, *others = score(side, args.batches, RINGS if knn else (OWN,))
        rows[name] = own | {"training_seconds": seconds}
        rows |= {f"{name}, {ring} ring": row for ring, row in zip(RINGS[1:], others, strict=False)}
        print(f"{name}: trained {args.steps} steps in {seconds:.0f} s", flush=True)
    chance = f"(chance: {np.log(PITCHES):.2f} nats, {1 / PITCHES:.1%})"
    print(f"{'recalled notes, after 2,000 to 3,000 tokens':46}{'nats':>8}{'correct':>9}   {chance}")
    for name, row in rows.items():
        print(f"{name:46}{row['nats']:>8.3f}{row['accuracy']:>9.1%}")
    _shared.save(
        args.results,
        f"recall-{jax.default_backend()}",
        {**circumstances(make_config(knn=True, steps=args.steps), None), "ablations": rows},
        usual=_shared.has_defaults(parser, args, "steps", "batches"),
    )


if __name__ == "__main__":
    command.run(main)
