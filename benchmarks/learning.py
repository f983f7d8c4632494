"""Learning side by side: this project and the PyTorch baseline, the same songs, split and number of tokens.

python benchmarks/learning.py --data CORPUS_OR_MIDI_DIR

Each trains as it is meant to: its own batches, optimizer and schedule. Both are measured by the same function, on whole
songs, each from its own empty memory: on validation songs on the way and at the end, and at the end on the test songs
too, by which nothing was chosen. Ours then reads the test songs without its kNN memory, and with attention to all of it
in place of a search.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import _ours
import jax
import numpy as np
from _ours import Ours, batches_of, circumstances
from _shared import save

from midigen_jax import arms, cli, losses, model, process, step, vocab
from midigen_jax import config as cfg
from midigen_jax.corpus import Corpus
from midigen_jax.train import get_corpus


def curve(
    contestant: Any, batches: Any, total: int, every: int, loss: Callable[[np.ndarray], float], corpus: Corpus, few: int
) -> dict[str, Any]:
    """Trains on `total` tokens; validates on a few songs on the way and on all of them at the end, then tests."""
    songs = corpus.songs_of("validation")
    seen, points = 0, []
    while seen < total:
        batch = next(batches)
        contestant.step(batch)
        before, seen = seen, seen + int((batch["tokens"] != vocab.PAD).sum())
        if seen // every > before // every or seen >= total:
            here = songs if seen >= total else songs[:few]
            figures = losses.figures(loss(here), corpus, here)
            points.append({"tokens": seen, "songs": len(here), **figures._asdict()})
            print(f"{seen:>10,} tokens: {figures} ({len(here)} songs)", flush=True)
    return {"curve": points, "test": tested(loss, corpus)}


def tested(loss: Callable[[np.ndarray], float], corpus: Corpus) -> dict[str, float]:
    songs = corpus.songs_of("test")
    figures = losses.figures(loss(songs), corpus, songs)
    print(f"{'test':>18}: {figures} ({len(songs)} songs)", flush=True)
    return figures._asdict()


def ours(config: cfg.Config, corpus: Corpus, total: int, every: int, few: int) -> dict[str, Any]:
    tokens = config.data.lanes * config.data.segment * config.data.segments
    config = cfg.override(config, [f"train.steps={-(-total // tokens)}"])
    side = Ours(config, corpus.vocabulary)

    loss = step.make_loss(side.graphdef, config, side.mesh)
    batches = batches_of(config, corpus, config.train.steps)
    result = curve(side, batches, total, every, lambda songs: loss(side.state.params, corpus, songs), corpus, few)
    if not config.memory.knn:
        return result

    print("with the gate of the kNN memory closed, and with attention to all of it:")
    without = arms.without_knn(side.state.params)
    result["test, gate closed"] = tested(lambda songs: loss(without, corpus, songs), corpus)
    dense = cfg.override(config, ["memory.backend=dense"])
    dense_loss = step.make_loss(model.abstract(dense, corpus.vocabulary), dense, side.mesh)
    result["test, dense"] = tested(lambda songs: dense_loss(side.state.params, corpus, songs), corpus)
    return result


def baseline_sizes(config: cfg.Config, corpus: Corpus) -> Any:
    """Its blocks are as long as our XL memory, which is its own: shorter ones would leave out more songs.

    Raises:
        InputError: all songs would be left out.
    """
    import _midigen
    import _midigen_training

    sizes = dataclasses.replace(_midigen.sizes_of(config, corpus.vocabulary), block=config.memory.xl)
    songs = corpus.songs_of("train")
    kept = _midigen_training.short_songs(corpus, songs, sizes)
    print(f"of {len(songs)} training songs MIDIGen leaves out {len(songs) - len(kept)}, which are too long for it")
    return sizes


def baseline(config: cfg.Config, corpus: Corpus, total: int, every: int, few: int) -> dict[str, Any]:
    import _midigen_training
    import torch

    sizes = baseline_sizes(config, corpus)
    side = _midigen_training.Baseline(sizes, device="cuda" if torch.cuda.is_available() else "cpu")
    batches = _midigen_training.training_batches(corpus, corpus.songs_of("train"), sizes)
    return curve(
        side, batches, total, every, lambda songs: _midigen_training.evaluate(side.model, corpus, songs), corpus, few
    )


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2_500_000, help="to learn from")
    parser.add_argument("--every", type=int, default=500_000, help="tokens between validations")
    parser.add_argument("--songs", type=int, default=20, help="validation songs on the way")
    args = parser.parse_args()
    process.keep_freed_memory()
    config = cfg.override(cfg.load(args.config), args.set)
    corpus = get_corpus(args.data, args.workdir)
    training, validation = corpus.songs_of("train"), corpus.songs_of("validation")
    bigram, floor = losses.bigram_floor(corpus, training, validation)
    print(f"bigram (weight {bigram.weight:.2f}): {floor} ({len(validation)} songs)")
    result = {**circumstances(config, corpus, "torch"), "bigram": floor._asdict()}
    sides = {"this project": ours, "MIDIGen (PyTorch)": baseline}
    usual = all(getattr(args, name) == parser.get_default(name) for name in ("set", "tokens", "every", "songs"))
    if importlib.util.find_spec("torch") is None:
        print("MIDIGen is left out: PyTorch is not installed")
        del sides["MIDIGen (PyTorch)"]
    else:
        baseline_sizes(config, corpus)
    for name, train in sides.items():
        print(name)
        result[name] = train(config, corpus, args.tokens, args.every, args.songs)
        save(f"learning-{args.config.stem}-{args.data.name}-{jax.default_backend()}", result, otherwise=not usual)
    for split, figure in (("validation", lambda side: side["curve"][-1]), ("test", lambda side: side["test"])):
        ends = [figure(result[name])["bits_per_note"] for name in sides]
        below = f", {1 - ends[0] / ends[1]:.1%} below" if len(ends) > 1 else ""
        print(f"bits a note at the end, {split} songs: {' and '.join(f'{x:.2f}' for x in ends)}{below}")


if __name__ == "__main__":
    cli.run(main)
