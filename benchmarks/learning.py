"""Learning side by side: this project and the PyTorch baseline, with the same songs, split and number of tokens.

    python benchmarks/learning.py --data CORPUS_OR_MIDI_DIR

Each trains as it is meant to: with its own batches, optimizer and schedule. Both are evaluated by the same function, on
whole songs, each from empty memories: on validation songs during training and at its end, and at the end also on the
test songs, which influenced no choice. This project then reads the test songs without its kNN memory, and with
attention to all of the memory in place of a search.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import _ours
import _shared
import jax
import numpy as np
from _ours import Ours, batch_tokens, batches_of, circumstances, programs_of

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.evaluation.ablations import without_knn
from midigen_jax.run import runtime
from midigen_jax.training import losses

OURS, BASELINE = "this project", "MIDIGen (PyTorch)"

Loss = Callable[[np.ndarray], float]  # total loss of these songs in nats


def curve(
    contestant: Any, batches: Any, total: int, every: int, loss: Loss, corpus: Corpus, few: int
) -> dict[str, Any]:
    """Trains on `total` tokens; validates on a few songs during training and on all of them at its end, then tests."""
    songs = corpus.songs_of("validation")
    seen, points = 0, []
    while seen < total:
        batch = next(batches)
        contestant.step(batch)
        before, seen = seen, seen + int((batch["tokens"] != vocab.PAD).sum())
        if seen // every > before // every or seen >= total:
            here = songs if seen >= total else songs[:few]
            figures = losses.figures(loss(here), corpus, here)
            points.append({"trained_tokens": seen, "songs": len(here), **figures._asdict()})
            print(f"{seen:>10,} tokens: {figures} ({len(here)} songs)", flush=True)
    return {"curve": points, "test": test_figures(loss, corpus)}


def test_figures(loss: Loss, corpus: Corpus) -> dict[str, float]:
    songs = corpus.songs_of("test")
    figures = losses.figures(loss(songs), corpus, songs)
    print(f"{'test':>18}: {figures} ({len(songs)} songs)", flush=True)
    return figures._asdict()


def ours(config: cfg.Config, corpus: Corpus, total: int, every: int, few: int) -> dict[str, Any]:
    config = cfg.override(config, [f"train.steps={-(-total // batch_tokens(config))}"])
    side, programs = Ours(config, corpus.vocabulary), programs_of(config, corpus.vocabulary)
    batches = batches_of(config, corpus, config.train.steps)
    result = curve(side, batches, total, every, lambda songs: side.loss(corpus, songs), corpus, few)
    if not config.memory.knn:
        return result
    print("without its kNN memory, then with attention to all of it:")
    params = side.state.params
    without = without_knn(params)
    result["test, without kNN memory"] = test_figures(lambda songs: programs.loss(without, corpus, songs), corpus)
    dense = programs_of(cfg.override(config, ["memory.backend=dense"]), corpus.vocabulary)
    result["test, dense"] = test_figures(lambda songs: dense.loss(params, corpus, songs), corpus)
    return result


def baseline_sizes(config: cfg.Config, corpus: Corpus) -> Any:
    """Its blocks are as long as our XL memory, as its author had them; shorter ones would leave out more songs.

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
    parser.add_argument("--tokens", type=int, default=2_500_000, help="tokens to train on")
    parser.add_argument("--every", type=int, default=500_000, help="tokens between validations")
    parser.add_argument("--songs", type=int, default=20, help="validation songs during training")
    args = parser.parse_args()
    runtime.retain_freed_memory()
    config = cfg.override(cfg.load(args.config), args.set)
    corpus = open_or_encode(args.data, args.workdir)
    training, validation = corpus.songs_of("train"), corpus.songs_of("validation")
    bigram, figures = losses.bigram_baseline(corpus, training, validation)
    print(f"bigram model (weight {bigram.weight:.2f}): {figures} ({len(validation)} songs)")
    result = {**circumstances(config, corpus, "torch"), "bigram": figures._asdict()}
    contestants = {OURS: ours, BASELINE: baseline}
    if importlib.util.find_spec("torch") is None:
        print(f"{BASELINE} is left out: PyTorch is not installed")
        del contestants[BASELINE]
    else:
        baseline_sizes(config, corpus)  # tells early if no song is left
    usual = _shared.has_defaults(parser, args, "set", "tokens", "every", "songs")
    name = f"learning-{args.config.stem}-{args.data.name}-{jax.default_backend()}"
    for contestant, train in contestants.items():
        print(contestant)
        result[contestant] = train(config, corpus, args.tokens, args.every, args.songs)
        _shared.save(args.results, name, result, usual=usual)
    for split in ("validation", "test"):
        ends = []
        for contestant in contestants:
            scores = result[contestant]
            ends.append((scores["curve"][-1] if split == "validation" else scores["test"])["bits_per_note"])
        below = f", {1 - ends[0] / ends[1]:.1%} below" if len(ends) > 1 else ""
        print(f"bits per note at the end, {split} songs: {' and '.join(f'{x:.2f}' for x in ends)}{below}")


if __name__ == "__main__":
    command.run(main)
