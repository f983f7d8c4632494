"""Learning side by side: this project and the PyTorch baseline, the same songs, split and number of tokens.

python benchmarks/learning.py --data CORPUS_OR_MIDI_DIR

Each trains as it is meant to: its own batches, optimizer and schedule. Both are measured by the same function, on whole
validation songs, each from its own empty memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _ours import Ours, batches_of
from _shared import environment, save

from midigen_jax import cli, evaluate, step, vocab
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus
from midigen_jax.train import get_corpus


def curve(
    contestant: Any, batches: Any, total: int, every: int, loss: Callable[[np.ndarray], float], corpus: Corpus, few: int
) -> dict[str, Any]:
    """Trains on `total` tokens; validates on a few songs on the way and on all of them at the end."""
    songs = corpus.songs_of("validation")
    seen, points = 0, []
    while seen < total:
        batch = next(batches)
        contestant.step(batch)
        before, seen = seen, seen + int((batch["tokens"] != vocab.PAD).sum())
        if seen // every > before // every or seen >= total:
            here = songs if seen >= total else songs[:few]
            figures = evaluate.figures(loss(here), corpus, here)
            points.append({"tokens": seen, "songs": len(here), **figures._asdict()})
            print(f"{seen:>10,} tokens: {figures} ({len(here)} songs)", flush=True)
    return {"curve": points}


def ours(config: cfg.Config, corpus: Corpus, total: int, every: int, few: int) -> dict[str, Any]:
    tokens = config.data.lanes * config.data.segment * config.data.segments
    config = cfg.override(config, [f"train.steps={-(-total // tokens)}"])
    side = Ours(config, corpus.vocabulary)
    loss = step.make_loss(side.graphdef, config, side.mesh)
    batches = batches_of(config, corpus, config.train.steps)
    return curve(side, batches, total, every, lambda songs: loss(side.state.params, corpus, songs), corpus, few)


def baseline(config: cfg.Config, corpus: Corpus, total: int, every: int, few: int) -> dict[str, Any]:
    import _midigen
    import torch

    model = config.model
    sizes = _midigen.Sizes(
        vocabulary=corpus.vocabulary.size,
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        ff_width=model.ff_width,
        block=config.data.segment,
        lanes=config.data.lanes,
    )
    side = _midigen.Baseline(sizes, device="cuda" if torch.cuda.is_available() else "cpu")
    batches = _midigen.training_batches(corpus, corpus.songs_of("train"), sizes)
    return curve(side, batches, total, every, lambda songs: _midigen.evaluate(side.model, corpus, songs), corpus, few)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR")
    parser.add_argument("--config", type=Path, default=Path("configs/pop909.py"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting of ours")
    parser.add_argument("--tokens", type=int, default=2_500_000, help="to learn from")
    parser.add_argument("--every", type=int, default=500_000, help="tokens between validations")
    parser.add_argument("--songs", type=int, default=20, help="validation songs on the way")
    parser.add_argument("--workdir", type=Path, default=Path("runs/bench"), help="where a MIDI folder is encoded")
    args = parser.parse_args()
    step.keep_freed_memory()
    config = cfg.override(cfg.load(args.config), args.set)
    corpus = get_corpus(args.data, args.workdir)
    training, validation = corpus.songs_of("train"), corpus.songs_of("validation")
    bigram, floor = evaluate.bigram_floor(corpus, training, validation)
    print(f"bigram (weight {bigram.weight:.2f}): {floor} ({len(validation)} songs)")
    result = {
        "config": cfg.flatten(config),
        "environment": {
            "device": jax.devices()[0].device_kind,
            **environment(("jax", "flax", "optax", "numpy", "faiss-cpu", "torch")),
        },
        "bigram": floor._asdict(),
    }
    for name, train in (("this project", ours), ("MIDIGen (PyTorch)", baseline)):
        print(name)
        result[name] = train(config, corpus, args.tokens, args.every, args.songs)
        save(f"learning-{args.config.stem}-{jax.default_backend()}", result)
    ends = [result[name]["curve"][-1]["bits_per_note"] for name in ("this project", "MIDIGen (PyTorch)")]
    print(f"bits a note at the end: {ends[0]:.2f} and {ends[1]:.2f}, {1 - ends[0] / ends[1]:.1%} below")


if __name__ == "__main__":
    cli.run(main)
