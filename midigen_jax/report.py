"""Continues a song that a run was not trained on, and writes RUN/report.md with the picture and the figures.

    python -m midigen_jax.report RUN --data MIDI_DIR

The song is one of the validation split. Beside the report it leaves RUN/sample.mid, sample.png and sample.wav.
"""

import json
from pathlib import Path

from . import cli, files
from .cli import InputError
from .continuation import Length
from .sampler import Sampler
from .train import get_corpus
from .watch import typical_song


def last_metrics(run: Path) -> dict[str, float]:
    """The newest value of every metric of a run, by name."""
    values: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values |= json.loads(line)
    if "validation/nats_per_token" not in values:
        raise InputError(f"{run}: has not been validated yet; train on to the next validation")
    return values


def describe(values: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    loss, floor = values["validation/nats_per_token"], values["validation/floor_nats_per_token"]
    rows = [
        ("steps", f"{values['step']:,}"),
        ("validation loss, nats a token", f"{loss:.3f}"),
        ("bigram floor, nats a token", f"{floor:.3f}"),
        ("below the floor", f"{1 - loss / floor:.1%}"),
        ("validation loss, bits a note", f"{values['validation/bits_per_note']:.2f}"),
        ("validation loss, bits a beat", f"{values['validation/bits_per_beat']:.2f}"),
        ("kNN searches that hit", f"{values['hit_rate']:.0%}"),
        ("mean age of the hits, tokens", f"{values['hit_age']:,.0f}"),
        ("mean gate (share of the kNN memory)", f"{values['gate']:.2f}"),
        ("training, tokens a second", f"{values['tokens_per_second']:,.0f}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a trained run's folder")
    parser.add_argument("--data", type=Path, required=True, metavar="MIDI_DIR", help="the folder it was trained on")
    parser.add_argument("--prompt-bars", type=int, default=8, help="bars of the song to begin with")
    parser.add_argument("--bars", type=int, default=16, help="bars to add")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same music")
    args = parser.parse_args()
    sampler, metrics = Sampler.from_run(args.run), last_metrics(args.run)
    corpus = get_corpus(args.data, args.run)
    songs = corpus.songs_of("validation")
    if len(songs) == 0:
        raise InputError(f"{corpus.path}: has no validation songs; give sample.py a --prompt of your own")
    name = corpus.names[typical_song(corpus, songs)]
    playing = sampler.extend(args.data / name, prompt_bars=args.prompt_bars, length=Length(args.bars), seed=args.seed)
    (take,) = playing.finish(progress=True)
    take.save(args.run / "sample", title=f"{name}, continued")
    report = f"""# {args.run.name}

The first {args.prompt_bars} bars of `{name}`, which the model was not trained on, and {args.bars} bars of its own
({take.new_notes} notes): [sample.mid](sample.mid), [sample.wav](sample.wav).

![Piano roll of the prompt and its continuation](sample.png)

{describe(metrics)}

The losses are those of whole validation songs, each heard from its own empty memory. The floor is a bigram model of
the same tokens, interpolated with the unigram.
"""
    files.write_text(args.run / "report.md", report)
    print(report)


if __name__ == "__main__":
    cli.run(main)
