"""How the memory shapes what is written: songs continued at several temperatures, and with more or less copying.

    python benchmarks/continuations.py --data CORPUS_OR_MIDI_DIR --model RUN_OR_FILE [--rivals FILE...]

The first bars of test songs are continued without limiting loops. For each setting: how much of a bar recurs 1 to 16
bars later, beside the songs' own continuations; how much more after 4, 8 and 16 bars, at which phrases return, than
after other distances; and in how many continuations a loop lasts for more than 8 bars, each of which is the same as one
before or varies it. What the sampler does to the memory's candidates is chosen with --split validation. And how well a
classifier tells them from the songs' own (`evaluation.discriminator`).

Rivals that learning.py has trained on the same corpus continue the same songs, without a grammar (`_continuing`).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _ours
import _shared
import jax
import numpy as np
from _ours import circumstances, train_model
from tqdm import tqdm

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.data.corpus import Corpus
from midigen_jax.data.encode import open_or_encode
from midigen_jax.errors import InputError
from midigen_jax.evaluation import generation_metrics
from midigen_jax.evaluation.bootstrap import Interval
from midigen_jax.evaluation.discriminator import discriminate
from midigen_jax.evaluation.generation_metrics import SETTINGS, EvaluationPrompt, self_similarity_error
from midigen_jax.music.metrics import LAGS
from midigen_jax.music.song import Song
from midigen_jax.run import runtime, trained
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import GenerationSettings
from midigen_jax.vocab import Vocabulary

TEMPERATURES, COPIES = (0.8, 0.9, 1.0), (0.0, 0.25, 0.75, 1.0)  # `copy` is 0.5 by default
PHRASES = np.isin(LAGS, (4, 8, 16))
REAL = "the songs"


class Continued(NamedTuple):
    songs: list[Song]  # the bars after each prompt
    ended: list[bool]  # whether each song ended within them


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


def continued(sampler: Sampler, prompts: list[EvaluationPrompt], bars: int, settings: GenerationSettings) -> Continued:
    pairs = generation_metrics.continue_songs(sampler, prompts, bars=bars, settings=settings)
    ended = [pair.continuation.stopped == "ended by itself" for pair in pairs]
    return Continued([pair.written for pair in pairs], ended)


def continued_by(learner: Any, corpus: Corpus, prompts: list[EvaluationPrompt], bars: int) -> Continued:
    """The same by a rival."""
    from _continuing import continue_song

    pairs = [continue_song(learner, corpus.vocabulary, x.prompt, bars, seed=i) for i, x in enumerate(tqdm(prompts))]
    return Continued([song for song, _ in pairs], [ended for _, ended in pairs])


def read_rivals(paths: list[Path], corpus: Corpus) -> dict[str, Any]:
    """Trained rivals by name.

    Raises:
        InputError: one can't be read, or is of another corpus or on other tokens.
    """
    if not paths:
        return {}
    from _windowed import Learner  # imports PyTorch

    rivals: dict[str, Learner] = {}
    for path in paths:
        learner = Learner.load(path)
        if (learner.corpus, type(learner.vocabulary)) != (corpus.fingerprint, Vocabulary):
            raise InputError(f"{path}: was not trained on {corpus.path} in this project's tokens; leave it out")
        rivals[f"{learner.name} ({path.stem})" if learner.name in rivals else learner.name] = learner
    return rivals


def print_table(songs: int, rows: dict[str, dict[str, Any]]) -> None:
    columns = ["self-similarity", "error", "returns", "loops", "varied loops", "notes per beat", "told apart (AUC)"]
    print(f"\n| {songs} songs | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name, row in rows.items():
        curve = [x for x in row["self-similarity"] if x is not None]
        figures = [np.mean(curve) if curve else None, row["error"], row["returns"]]
        cells = ["-" if x is None else f"{x:.3f}" for x in figures]
        cells += [f"{row[f'share with a {loop}'] * songs:.0f}" for loop in ("loop", "varied loop")]
        cells.append("-" if (notes := row.get("notes per beat")) is None else f"{notes:.2f}")
        cells.append("-" if (told := row.get("told apart")) is None else f"{told['area']}")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = _ours.parser(__doc__)
    parser.add_argument("--model", type=Path, metavar="RUN_OR_FILE", help="trained on this music; else one is trained")
    parser.add_argument("--rivals", type=Path, nargs="+", default=[], metavar="FILE", help="trained by learning.py")
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
    rivals, sampler, songs = read_rivals(args.rivals, corpus), Sampler(model), len(prompts)
    own = Continued([x.real for x in prompts], [x.ends for x in prompts])
    real = generation_metrics.describe(*own)
    rows = {REAL: summary(real, real)}
    settings = {f"temperature {x}": dataclasses.replace(SETTINGS, temperature=x) for x in TEMPERATURES}
    settings |= {f"copy {x}": dataclasses.replace(SETTINGS, copy=x) for x in COPIES}
    takes: dict[str, Callable[[], Continued]] = {
        label: partial(continued, sampler, prompts, args.bars, changes) for label, changes in settings.items()
    }
    takes |= {label: partial(continued_by, x, corpus, prompts, args.bars) for label, x in rivals.items()}
    name = f"continuations-{args.data.name}-{jax.default_backend()}"
    usual = _shared.has_defaults(parser, args, "config", "set", "split", "songs", "prompt_bars", "bars")
    for label, take in tqdm(takes.items()):
        written = take()
        rows[label] = summary(generation_metrics.describe(*written), real)
        rows[label]["told apart"] = discriminate(own.songs, written.songs, args.bars)
        print_table(songs, rows)
        result = {**circumstances(model.config, corpus), "songs": songs, "settings": rows}
        _shared.save(args.results, name, result, usual=usual)


if __name__ == "__main__":
    command.run(main)
