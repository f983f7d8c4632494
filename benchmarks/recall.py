"""A task that only long memory can solve: a motif heard once, thousands of tokens of filler, the motif again.

python benchmarks/recall.py

Every song has a motif of its own: a bar of random notes, one a step, so that no weights can know it. The filler is
another bar over and over. When the motif's first note returns, the others follow from what was heard long ago and from
nothing else; the steps in the bar, which every token carries, tell which note was where. The model that has no kNN
memory is the same otherwise. As a control the trained model with kNN memory plays with its ring emptied, and with the
ring of another song.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _ours import Ours, circumstances
from _shared import save
from flax import nnx

from midigen_jax import cli, model, process, vocab
from midigen_jax import config as cfg
from midigen_jax import memory as mem
from midigen_jax.vocab import Vocabulary

PITCHES, NOTES = 24, 16  # to draw from, and of a motif; chance is log(24) = 3.18 nats
FILLER = vocab.DURATION_0 + 1 + np.arange(NOTES)
# Tokens of filler: in the first half of training, within the window; then; in the test.
NEAR, FAR, TEST = (1, 20), (1, 512), (2000, 3000)

Batch = dict[str, np.ndarray]


def make_config(*, knn: bool, steps: int) -> cfg.Config:
    return cfg.Config(
        model=cfg.Model(layers=1, width=64, heads=2, ff_width=128, previous_tokens=0),
        memory=cfg.Memory(xl=64, knn=4096 * knn, knn_layer=1, top_k=8),
        data=cfg.Data(lanes=8, segment=64, segments=4),
        train=cfg.Train(steps=steps, learning_rate=0.01, warmup=50),
    )


def compose(random: np.random.Generator, gap: tuple[int, int], returns: int) -> dict[str, np.ndarray]:
    """A song's tokens, their steps in the bar, and which of them can be recalled."""
    motif = vocab.NOTE_0 + random.integers(0, PITCHES, NOTES)
    tokens, steps, recalled = [vocab.SOS, *motif], [0, *range(NOTES)], [False] * (NOTES + 1)
    for _ in range(returns):
        place = np.arange(int(np.exp(random.uniform(*np.log(gap))))) % NOTES
        tokens += [*FILLER[place], *motif]
        steps += [*(NOTES + place), *range(NOTES)]
        recalled += [False] * (len(place) + 1) + [True] * (NOTES - 1)
    return {"tokens": np.array(tokens), "step": np.array(steps), "recalled": np.array(recalled)}


def batches(config: cfg.Config, gap: tuple[int, int], returns: int, *, seed: int) -> Iterator[Batch]:
    """Endless: every lane goes from song to song. `recalled` says which targets can be recalled."""
    random = np.random.default_rng(seed)
    n = config.data.segment * config.data.segments
    lanes: list[dict[str, np.ndarray]] = [{} for _ in range(config.data.lanes)]
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
            row = {name: lane[name][:n] for name in ("tokens", "step", "song")}
            row["targets"] = np.where(same, lane["tokens"][1 : n + 1], -1)
            row["recalled"] = lane["recalled"][1 : n + 1] & same
            rows.append(row)
            lanes[i] = {name: x[n:] for name, x in lane.items()}
        batch = {name: np.stack([row[name] for row in rows]).astype(np.int32) for name in rows[0]}
        yield batch | {"bar": np.zeros_like(batch["tokens"])}


def score(
    graphdef: nnx.GraphDef, params: dict, config: cfg.Config, n_batches: int, ring: str = "own"
) -> dict[str, Any]:
    """Mean loss and accuracy on the recalled notes of songs not trained on.

    Args:
        ring: "own"; "empty": nothing is ever found; "another's": what is found is the next lane's.
    """

    @partial(jax.jit, donate_argnums=0)
    def read(memory: mem.Memory, batch: Batch) -> tuple[mem.Memory, jax.Array, jax.Array]:
        knn = memory.knn
        if knn is not None and ring == "empty":
            knn = knn._replace(song=jnp.full_like(knn.song, mem.NO_SONG))
        if knn is not None and ring == "another's":
            knn = knn._replace(keys=jnp.roll(knn.keys, 1, 0), token=jnp.roll(knn.token, 1, 0))
        inputs = (batch[name] for name in ("tokens", "bar", "step", "song"))
        output = nnx.merge(graphdef, params)(*inputs, mem.Memory(memory.xl, knn))
        logarithms = jax.nn.log_softmax(output.logits)
        nats = -jnp.take_along_axis(logarithms, jnp.maximum(batch["targets"], 0)[..., None], -1)[..., 0]
        memory = mem.roll(output.window, memory.knn, config.data.segment)
        return memory, nats, output.logits.argmax(-1) == batch["targets"]

    memory, all_nats, all_right = mem.init_memory(config, config.data.lanes), [], []
    source = batches(config, TEST, 1, seed=1)
    for _ in range(n_batches):
        batch = next(source)
        for begin in range(0, batch["tokens"].shape[1], config.data.segment):
            part = {name: x[:, begin : begin + config.data.segment] for name, x in batch.items()}
            memory, nats, right = read(memory, part)
            recalled = part["recalled"] > 0
            all_nats.append(np.asarray(nats)[recalled])
            all_right.append(np.asarray(right)[recalled])
    nats, right = np.concatenate(all_nats), np.concatenate(all_right)
    if len(nats) == 0:
        raise cli.InputError(f"--batches {n_batches}: no motif is recalled in so few; give at least 10")
    return {"nats": float(nats.mean()), "accuracy": float(right.mean()), "notes": len(nats)}


def learn(config: cfg.Config) -> tuple[Ours, float]:
    """The trained model, and the seconds that it took."""
    begin = time.perf_counter()
    side = Ours(config, Vocabulary())
    near, far = (batches(config, gap, 8, seed=0) for gap in (NEAR, FAR))
    for i in range(config.train.steps):
        batch = next(near if i < config.train.steps // 2 else far)
        side.step({name: batch[name] for name in ("tokens", "targets", "bar", "step", "song")})
    return side, time.perf_counter() - begin


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", help="not used: the songs are made here")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps an arm")
    parser.add_argument("--batches", type=int, default=50, help="batches of the test")
    args = parser.parse_args()
    process.keep_freed_memory()
    rows: dict[str, dict[str, Any]] = {}
    for name, knn in (("with kNN memory", True), ("without", False)):
        config = make_config(knn=knn, steps=args.steps)
        side, seconds = learn(config)
        graphdef = model.abstract(config, Vocabulary())
        rows[name] = score(graphdef, side.state.params, config, args.batches) | {"training_seconds": seconds}
        for ring in ("empty", "another's") if knn else ():
            rows[f"with kNN memory, {ring} ring"] = score(graphdef, side.state.params, config, args.batches, ring)
        print(f"{name}: trained {args.steps} steps in {seconds:.0f} s", flush=True)
    print(
        f"{'recalled notes, 2,000 to 3,000 tokens on':44}{'nats':>8}{'right':>8}   (chance: {np.log(PITCHES):.2f} nats)"
    )
    for name, row in rows.items():
        print(f"{name:44}{row['nats']:>8.3f}{row['accuracy']:>8.1%}")
    save(
        f"recall-{jax.default_backend()}",
        {**circumstances(make_config(knn=True, steps=args.steps), None), "arms": rows},
        otherwise=any(getattr(args, name) != parser.get_default(name) for name in ("steps", "batches")),
    )


if __name__ == "__main__":
    cli.run(main)
