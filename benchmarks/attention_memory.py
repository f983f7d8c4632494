"""Why a memory of attention's own keys and values is worth what it is: how stale its keys are, and what it finds.

    python benchmarks/attention_memory.py --data CORPUS_OR_MIDI_DIR

Trains with `memory.retrieval=attention`, each song in its own key. Several times in training it computes the whole kNN
memory anew with the weights of that moment, and compares keys (cosine of the angle between the stored and the new one)
and losses (of the next steps' tokens, with weights that stand still). At the end it reads the test songs and asks of
the tokens in far repeats: is the token at the hit, or the one that followed it, the one to be predicted? The trained
model is exported to --workdir, where `memories.py --only attention --trained` finds it.
"""

from collections import deque
from itertools import islice
from typing import Any

import _ours
import _shared
import jax
import jax.numpy as jnp
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances
from flax import nnx
from memories import MEMORIES
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.evaluation import repeats
from midigen_jax.evaluation.ablations import SongReader
from midigen_jax.evaluation.evaluate import read_songs
from midigen_jax.model.decoder import abstract_decoder
from midigen_jax.model.memory import Memory, init_memory
from midigen_jax.model.reader import read_segments
from midigen_jax.run import runtime, trained
from midigen_jax.run.trained import TrainedModel
from midigen_jax.training.sharding import put_batch
from midigen_jax.vocab import NO_SONG

MOMENTS = 4  # in training
NEXT = 8  # steps whose loss is compared


class Staleness:
    """Compares the kNN memory of a decoder in training with what its weights would make of the same tokens now."""

    def __init__(self, side: Ours):
        self.side, self.config = side, side.config
        graphdef = abstract_decoder(side.config, side.vocabulary)

        def read(params: dict, memory: Memory, batch: Any) -> tuple[Any, Memory]:
            return read_segments(nnx.merge(graphdef, params), memory, batch)

        self._read = jax.jit(read)
        self.tokens_of_step = batch_tokens(side.config) // side.config.data.lanes  # in each lane
        steps = -(-(side.config.memory.knn + side.config.memory.xl) // self.tokens_of_step)
        self.last: deque[dict[str, np.ndarray]] = deque(maxlen=steps)

    def measure(self, following: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        stale = self.side.state.memory
        fresh = init_memory(self.config, self.config.data.lanes)
        for batch in self.last:
            _, fresh = self._step(fresh, batch)
        assert stale.knn is not None
        assert fresh.knn is not None
        fresh = stale._replace(knn=fresh.knn)
        hidden = stale._replace(knn=stale.knn._replace(song=jnp.full_like(stale.knn.song, NO_SONG)))
        return {
            "step": int(self.side.state.step),
            "cosine_by_age": self._cosines(stale, fresh),
            "nats": {
                name: self._loss(memory, following)
                for name, memory in (("stored", stale), ("computed anew", fresh), ("emptied", hidden))
            },
        }

    def _step(self, memory: Memory, batch: dict[str, np.ndarray]) -> tuple[Any, Memory]:
        return self._read(self.side.state.params, memory, put_batch(batch, self.side.mesh))

    def _loss(self, memory: Memory, batches: list[dict[str, np.ndarray]]) -> float:
        nats = targets = 0.0
        for batch in batches:
            losses, memory = self._step(memory, batch)
            nats, targets = nats + float(losses.nats), targets + float(losses.targets)
        return nats / targets

    def _cosines(self, stale: Memory, fresh: Memory) -> list[list[float]]:
        """The age of slots in steps, rounded down to a power of two, and their keys' mean cosine; of current songs."""
        stale_ring, fresh_ring = stale.knn, fresh.knn
        assert stale_ring is not None
        assert fresh_ring is not None
        song = np.asarray(stale_ring.song)
        slots = song.shape[1]
        # The fresh ring begins to be written at slot 0, the other went round many times.
        newest = [np.asarray(ring.write)[:, None] - 1 - np.arange(slots) for ring in (stale_ring, fresh_ring)]
        keys = [
            np.take_along_axis(np.asarray(ring.keys, np.float32), (at % slots)[:, None, :, None], 2)
            for ring, at in zip((stale_ring, fresh_ring), newest, strict=True)
        ]
        current = np.take_along_axis(song, newest[0] % slots, 1) == np.asarray(stale.xl.song)[:, -1:]
        age = 1 + np.arange(slots) // self.tokens_of_step
        group = np.broadcast_to(2 ** np.floor(np.log2(age)).astype(int), current.shape)
        cosine = np.sum(keys[0] * keys[1], -1) / np.maximum(
            np.linalg.norm(keys[0], axis=-1) * np.linalg.norm(keys[1], axis=-1), 1e-9
        )
        mean = cosine.mean(1)
        return [
            [int(x), float(mean[current & (group == x)].mean())]
            for x in np.unique(group)
            if (current & (group == x)).any()
        ]


def answers(model: TrainedModel, corpus: Corpus) -> dict[str, list[float]]:
    """Per head, the share of its attention to hits in far repeats that goes to the token to be predicted, and to those
    that such a token followed; and the memory's share of the attention there."""
    reader = SongReader(model)
    songs = read_songs(corpus, corpus.songs_of("test"), repeats.reach_of(model.config))
    total = np.zeros((4, model.config.model.heads))
    for song, kinds, (ages, weights) in zip(
        songs.sequences, songs.kinds, reader.retrieved(songs.sequences), strict=True
    ):
        tokens = song.tokens.astype(int)
        here = np.flatnonzero(kinds == repeats.FAR)
        ages, weights, target = ages[:, here], weights[:, here], tokens[here + 1][:, None]
        hit = here[:, None] - ages
        found = ages > 0
        total += [
            (weights * (found & right)).sum((1, 2))
            for right in (tokens[hit] == target, tokens[hit + 1] == target, True)
        ] + [np.full(len(weights), len(here))]
    is_target, before_target, weight, n = total
    weight, n = np.maximum(weight, 1e-9), np.maximum(n, 1)  # where nothing returns
    return {
        "to the token itself": (is_target / weight).tolist(),
        "to the token before it": (before_target / weight).tolist(),
        "share of the attention": (total[2] / n).tolist(),
    }


def main() -> None:
    parser = _ours.parser(__doc__)
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    config = cfg.override(cfg.load(args.config), [*MEMORIES["attention"], *args.set])
    side, moments = Ours(config, corpus.vocabulary), []
    staleness = Staleness(side)
    every = max(config.train.steps // MOMENTS, 1)
    batches = batches_of(config, corpus, config.train.steps + NEXT)
    waiting: deque[dict[str, np.ndarray]] = deque(islice(batches, NEXT))
    for step in tqdm(range(1, config.train.steps + 1), unit="step"):
        batch = waiting.popleft()
        waiting.append(next(batches))
        side.step(batch)
        staleness.last.append(batch)
        if step % every == 0:
            moments.append(staleness.measure(list(waiting)))
            print(moments[-1], flush=True)
    model = side.model(corpus)
    trained.export(args.workdir / "memory-attention.safetensors", model)
    result = {**circumstances(config, corpus), "moments": moments, "answers": answers(model, corpus)}
    print(result["answers"])
    usual = _shared.has_defaults(parser, args, "set")
    name = f"attention-memory-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    _shared.save(args.results, name, result, usual=usual)


if __name__ == "__main__":
    command.run(main)
