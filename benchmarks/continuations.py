"""How the memory shapes what is written: songs continued at several temperatures, and with more or less copying.

    python benchmarks/continuations.py --data CORPUS_OR_MIDI_DIR --model RUN_OR_FILE

The first bars of test songs are continued without limiting loops. For each setting: how much of a bar recurs 1 to 16
bars later, beside the songs' own continuations; how much more after 4, 8 and 16 bars, at which phrases return, than
after other distances; and in how many continuations a loop lasts for more than 8 bars, each of which is the same as one
before or varies it. What the sampler does to the memory's candidates is chosen with --split validation.
"""

import dataclasses
from pathlib import Path
from typing import Any

import _ours
import _shared
import jax
import numpy as np
from _ours import circumstances, train_model
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.evaluation import generation_metrics
from midigen_jax.evaluation.bootstrap import Interval
from midigen_jax.evaluation.generation_metrics import SETTINGS, EvaluationPrompt, self_similarity_error
from midigen_jax.music.metrics import LAGS
from midigen_jax.run import runtime, trained
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import GenerationSettings

TEMPERATURES, COPIES = (0.8, 0.9, 1.0), (0.0, 0.25, 0.75, 1.0)  # `copy` is 0.5 by default
PHRASES = np.isin(LAGS, (4, 8, 16))
REAL = "the songs"


def summary(described: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    """Of continuations: the self-similarity at each distance, how far it is from the songs' and how much higher at
    phrases, and the other metrics."""
    similarities: list[Interval | None] = described["self-similarity"]
    curve = [x and x.value for x in similarities] or [None] * len(LAGS)
    at_phrases, elsewhere = (
        [x for x, phrase in zip(curve, PHRASES, strict=True) if phrase == which and x is not None]
        for which in (True, False)
    )
    returns = float(np.mean(at_phrases) / np.mean(elsewhere)) if at_phrases and any(elsewhere) else None
    metrics = {name: x and x.value for name, x in described["metrics"].items()}
    error = self_similarity_error(described, real)
    return {"self-similarity": curve, "error": error, "returns": returns, **metrics}


def continued(
    sampler: Sampler, prompts: list[EvaluationPrompt], bars: int, settings: GenerationSettings
) -> dict[str, Any]:
    pairs = generation_metrics.continue_songs(sampler, prompts, bars=bars, settings=settings)
    ended = [pair.continuation.stopped == "ended by itself" for pair in pairs]
    return generation_metrics.describe([pair.written for pair in pairs], ended)


def print_table(songs: int, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n| {songs} songs | self-similarity | error | returns | loops | varied loops | notes per beat |")
    print("|---" * 7 + "|")
    for name, row in rows.items():
        curve = [x for x in row["self-similarity"] if x is not None]
        figures = [np.mean(curve) if curve else None, row["error"], row["returns"]]
        cells = ["-" if x is None else f"{x:.3f}" for x in figures]
        cells += [f"{row[f'share with a {loop}'] * songs:.0f}" for loop in ("loop", "varied loop")]
        print(f"| {name} | {' | '.join(cells)} | {row['notes per beat']:.2f} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--model", type=Path, metavar="RUN_OR_FILE", help="trained on this music; else one is trained")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--songs", type=int, default=48)
    parser.add_argument("--prompt-bars", type=int, default=8)
    parser.add_argument("--bars", type=int, default=32)
    args = parser.parse_args()
    runtime.retain_freed_memory()
    corpus = open_or_encode(args.data, args.workdir)
    if args.model:
        model = trained.load(args.model)
    else:
        model = train_model(cfg.override(cfg.load(args.config), args.set), corpus)
    if model.vocabulary != corpus.vocabulary:
        raise InputError(f"{args.data}: has another vocabulary than {args.model}; give the corpus of its training")
    prompts = generation_metrics.choose_prompts(
        corpus, corpus.songs_of(args.split), args.songs, prompt_bars=args.prompt_bars, bars=args.bars
    )
    sampler, songs = Sampler(model), len(prompts)
    real = generation_metrics.describe([x.real for x in prompts], [x.ends for x in prompts])
    rows = {REAL: summary(real, real)}
    settings = {f"temperature {x}": dataclasses.replace(SETTINGS, temperature=x) for x in TEMPERATURES}
    settings |= {f"copy {x}": dataclasses.replace(SETTINGS, copy=x) for x in COPIES}
    name = f"continuations-{args.data.name}-{jax.default_backend()}"
    usual = _shared.has_defaults(parser, args, "config", "set", "split", "songs", "prompt_bars", "bars")
    for label, changes in tqdm(settings.items()):
        rows[label] = summary(continued(sampler, prompts, args.bars, changes), real)
        print_table(songs, rows)
        result = {**circumstances(model.config, corpus), "songs": songs, "settings": rows}
        _shared.save(args.results, name, result, usual=usual)


if __name__ == "__main__":
    command.run(main)
