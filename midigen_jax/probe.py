"""A theme, long filler, the theme's first bar again: what a model still knows of the rest.

Themes are bars of songs that the model was not trained on; and the same with pitches drawn at random, which no weights
can know. The filler is music of other songs. As a control the theme that was heard is another song's. The ring is made
as long as it takes, whatever it was in training: it has no parameters.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

import numpy as np

from . import arms, vocab
from .arms import Reader
from .bootstrap import ratio
from .cli import InputError
from .controls import Controls
from .sampler import Sampler
from .song import Prompt, Song, Tape, make_song, stretch, tokens_of
from .vocab import Scheme

DISTANCES = (0.5, 1, 2, 4, 8, 16, 32)  # in contexts: XL memory and a segment
THEME_BARS, FEWEST = 4, 4  # bars of a theme, and notes in each of them
OTHER_THEME = "XL and kNN, another theme"  # the control: the theme that was heard is another one
UNSEEN, RANDOM = "themes of songs not trained on", "random pitches"

Bar = np.ndarray  # its notes, int32 [N, 5] as of a `Song`, from step 0


class Trial(NamedTuple):
    """What a model reads: `heard`, so much filler, and the first bar of `theme`."""

    heard: list[Bar]
    filler: list[Bar]
    theme: list[Bar]


def commonest_bar(songs: Sequence[Song]) -> int:
    """The length that most bars have, in steps."""
    lengths = np.concatenate([np.diff(song.bar_lines(song.n_steps)) for song in songs])
    return int(np.bincount(lengths).argmax()) if len(lengths) else 0


def bars_of(song: Song, length: int) -> list[Bar]:
    """The song's bars of a length in steps; notes that go on into the next bar are cut."""
    lengths = np.diff(song.bar_lines(song.n_steps))
    return [stretch(song, bar, 1).notes for bar in np.flatnonzero(lengths == length).tolist()]


def find_theme(bars: Sequence[Bar]) -> list[Bar] | None:
    """The first bars in a row that all hold notes enough and of which no two are alike; None if there are none."""
    for i in range(len(bars) - THEME_BARS + 1):
        theme = bars[i : i + THEME_BARS]
        contents = {frozenset(map(tuple, notes[:, [0, 2]].tolist())) for notes in theme}
        if min(map(len, theme)) >= FEWEST and len(contents) == THEME_BARS:
            return list(theme)
    return None


def randomised(theme: Sequence[Bar], random: np.random.Generator, scheme: Scheme) -> list[Bar]:
    """The same rhythms with pitches drawn from the theme's range, no two of a chord alike. Drums stay."""
    pitched = np.concatenate([notes if not scheme.multi else notes[notes[:, 3] != vocab.DRUMS] for notes in theme])
    low, high = (int(pitched[:, 2].min()), int(pitched[:, 2].max())) if len(pitched) else (0, 0)
    drawn = []
    for notes in theme:
        notes = notes.copy()
        for onset in np.unique(notes[:, 0]):
            chord = notes[:, 0] == onset
            if scheme.multi:
                chord &= notes[:, 3] != vocab.DRUMS
            room = max(high - low + 1, int(chord.sum()))
            notes[chord, 2] = min(low, 128 - room) + random.permutation(room)[: chord.sum()]
        drawn.append(notes)
    return drawn


def joined(bars: Sequence[Bar], length: int, scheme: Scheme) -> Song:
    """A song of these bars."""
    notes = np.concatenate([notes + np.array([i * length, 0, 0, 0, 0], np.int32) for i, notes in enumerate(bars)])
    parts = notes[:, 3] if scheme.multi else 0 * notes[:, 3]
    notes = notes[np.lexsort((-notes[:, 2], parts, notes[:, 0]))]
    meter = np.array([[0, length, 4 * scheme.steps_per_beat]], np.int32)
    return make_song(notes, meter, np.array([[0, 500_000]], np.int32), scheme)


class Themes(NamedTuple):
    """Themes and, for each, all bars of other songs, in an order of its own."""

    themes: list[list[Bar]]
    filler: list[list[Bar]]
    length: int  # of a bar, in steps


def find_themes(songs: Sequence[Song], n_themes: int, *, seed: int = 0) -> Themes:
    """Themes of the first songs that have one.

    Raises:
        InputError: fewer than two have one.
    """
    length = commonest_bar(songs)
    bars = [bars_of(song, length) for song in songs]
    found = [(i, theme) for i, theme in enumerate(map(find_theme, bars)) if theme is not None][:n_themes]
    if len(found) < 2:
        raise InputError(
            f"the recall probe needs two songs with {THEME_BARS} different bars in a row; give more songs, or "
            "--themes 0"
        )

    def others(own: int) -> list[Bar]:
        rest = [i for i in range(len(bars)) if i != own and any(map(len, bars[i]))]
        order = np.random.default_rng((seed, own)).permutation(rest)
        return list(chain.from_iterable(bars[i] for i in order))

    return Themes([theme for _, theme in found], [others(i) for i, _ in found], length)


def _enough(
    theme: list[Bar], filler: list[Bar], tokens: Sequence[float], length: int, sampler: Sampler
) -> list[list[Bar]]:
    """So many of the filler's bars that at least so many tokens lie between the theme and its return, for each."""
    bars, endless = list[Bar](), cycle(filler)
    while True:
        bars += islice(endless, 64)
        tape = tokens_of(joined([*theme, *bars], length, sampler.vocabulary.scheme), sampler.vocabulary)
        first = np.searchsorted(tape.bar, np.arange(len(theme), len(theme) + len(bars)))
        if first[-1] - first[0] >= max(tokens):
            return [bars[: int(np.searchsorted(first - first[0], n))] for n in tokens]


def probe(sampler: Sampler, source: Themes, *, furthest: float = DISTANCES[-1], seed: int = 0) -> dict[str, Any]:
    """Loss and note F1 of the theme's other bars, by distance and arm, with intervals over themes.

    Args:
        source: of songs that the model was not trained on.
        furthest: the longest filler, in contexts.
    """
    config, scheme = sampler.config, sampler.vocabulary.scheme
    distances = [distance for distance in DISTANCES if distance <= furthest]
    context = config.memory.xl + config.data.segment
    fillers = [
        _enough(theme, filler, [context * d for d in distances], source.length, sampler)
        for theme, filler in zip(source.themes, source.filler, strict=True)
    ]
    random = np.random.default_rng(seed)
    drawn = [randomised(theme, random, scheme) for theme in source.themes]
    # Room for the longest, in the ring and in a row for each theme.
    slots = -(-int(max(distances) * context + 4096) // config.data.segment) * config.data.segment
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, lanes=len(source.themes)),
        memory=dataclasses.replace(config.memory, knn=slots if config.memory.knn else 0),
    )
    reader = Reader(config, sampler.params, sampler.vocabulary)
    player = Sampler(config, sampler.params, sampler.vocabulary)
    found: dict[str, Any] = {"context": context, "themes": len(source.themes), "distances": list(distances)}
    for name, kind in ((UNSEEN, source.themes), (RANDOM, drawn)):
        rows = []
        for i in range(len(distances)):
            heard = [Trial(theme, filler[i], theme) for theme, filler in zip(kind, fillers, strict=True)]
            others = [*kind[1:], kind[0]]
            another = [
                Trial(other, filler[i], theme) for other, theme, filler in zip(others, kind, fillers, strict=True)
            ]
            rows.append(_at_one_distance(reader, player, heard, another, source.length))
        found[name] = {
            what: {arm: [row[what].get(arm) for row in rows] for arm in rows[0][what]} for what in ("nats", "F1")
        }
    return found


def _at_one_distance(
    reader: Reader, player: Sampler, heard: list[Trial], another: list[Trial], length: int
) -> dict[str, dict[str, Any]]:
    """Loss and F1 in each arm, and the differences from XL memory alone."""
    whole = reader.whole
    arms_of = {whole: (heard, whole)}
    if reader.config.memory.knn:
        arms_of |= {arms.XL: (heard, arms.XL), OTHER_THEME: (another, whole)}
    sums, hits = {}, {}
    for name, (trials, arm) in arms_of.items():
        sums[name], counts = _loss(reader, trials, arm, length)
        player.use(arms.without_knn(reader.params) if name == arms.XL else reader.params)
        hits[name] = _hits(player, trials, length)
    f1 = {name: ratio(*x) for name, x in hits.items()}
    nats = {name: ratio(x, counts) for name, x in sums.items()}
    for name in (arms.KNN, OTHER_THEME):
        if arms.XL in sums and name in sums:
            nats[arms.less(name, arms.XL)] = ratio(sums[name] - sums[arms.XL], counts)
    return {"nats": nats, "F1": f1}


def _loss(reader: Reader, trials: list[Trial], arm: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each trial the loss of the theme's bars after the first, and the tokens of these."""
    tapes, counted = [], []
    for trial in trials:
        song = joined([*trial.heard, *trial.filler, *trial.theme], length, reader.vocabulary.scheme)
        tape = Tape(*(x[:-1] for x in tokens_of(song, reader.vocabulary)))  # it need not end here
        tapes.append(tape)
        counted.append(tape.bar[1:] > len(trial.heard) + len(trial.filler))
    nats = reader.nats(tapes, arm)
    return (
        np.array([row[here].sum() for row, here in zip(nats, counted, strict=True)]),
        np.array([here.sum() for here in counted]),
    )


def _hits(player: Sampler, trials: list[Trial], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest continuation of each trial against the theme: twice the notes (onset and pitch) that both have, and
    the notes of both; their ratio is F1."""
    prompts = []
    for trial in trials:
        begun = [*trial.heard, *trial.filler, trial.theme[0]]
        prompts.append(Prompt(joined(begun, length, player.vocabulary.scheme), len(begun) * length))
    rest = (THEME_BARS - 1) * length
    greedy = Controls(top_k=1, loop_bars=0)
    takes = player.play(player.begin(prompts), [prompt.end + rest for prompt in prompts], settings=greedy).finish()
    both, all_notes = [], []
    for trial, prompt, take in zip(trials, prompts, takes, strict=True):
        said = take.song.notes[take.song.notes[:, 0] >= prompt.end]
        written = {(onset - prompt.end, pitch) for onset, pitch in said[:, [0, 2]].tolist()}
        theme = joined(trial.theme[1:], length, player.vocabulary.scheme).notes
        true = set(map(tuple, theme[:, [0, 2]].tolist()))
        both.append(2 * len(written & true))
        all_notes.append(len(written) + len(true))
    return np.array(both), np.array(all_notes)
