"""A recall probe: a theme, a long filler, then the theme's first bar again. What does the model know of the rest?

Themes are bars of songs that the model was not trained on, and the same bars with random pitches, which no weights can
know; these return as they were, transposed, or with some notes changed. The filler is music of other songs. In the
control the theme before the filler is another song's. The kNN memory is made as long as the probe needs, whatever its
length in training: it has no parameters.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

import numpy as np

from .. import vocab
from ..errors import InputError
from ..music.pitches import fitting_shift
from ..music.song import Prompt, Song, TokenSequence, excerpt, make_song, tokens_of
from ..sampling.sampler import Sampler
from ..sampling.settings import GenerationSettings
from ..vocab import Scheme, Vocabulary
from . import ablations
from .ablations import SongReader, difference_name
from .bootstrap import ratio
from .repeats import reach_of

DISTANCES = (0.5, 1, 2, 4, 8, 16, 32)  # in contexts: XL memory and a segment
THEME_BARS, FEWEST = 4, 4  # bars of a theme, and the fewest notes in each of them
SPARE_TOKENS = 4096  # of the ring, for the theme and for the filler's last bar
OTHER_THEME = "XL and kNN, another theme"  # the control
UNSEEN, RANDOM = "themes of songs not trained on", "random pitches"
TRANSPOSED, VARIED = "random pitches, transposed", "random pitches, varied"  # when they return
KINDS = (UNSEEN, RANDOM, TRANSPOSED, VARIED)
SHIFTS = range(1, 12)  # semitones by which a theme is transposed
CHANGED = (0.1, 0.3)  # the share of its notes that are changed when it is varied is drawn from between these

Bar = np.ndarray  # its notes, int32 [N, 5] as of a `Song`, from time 0


class Trial(NamedTuple):
    """What a model reads: `shown`, the filler, and the first bar of `theme`."""

    shown: list[Bar]  # the theme; in the control another one
    filler: list[Bar]
    theme: list[Bar]  # as it returns


def most_common_bar_length(songs: Sequence[Song]) -> int:
    """In grid steps; 0 if there are no bars."""
    lengths = np.concatenate([np.diff(song.bar_lines(song.end)) for song in songs])
    return int(np.bincount(lengths).argmax()) if len(lengths) else 0


def bars_of(song: Song, length: int) -> list[Bar]:
    """The song's bars of a length in grid steps; notes that last into the next bar are cut."""
    lengths = np.diff(song.bar_lines(song.end))
    return [excerpt(song, bar, 1).notes for bar in np.flatnonzero(lengths == length).tolist()]


def find_theme(bars: Sequence[Bar]) -> list[Bar] | None:
    """The first consecutive bars that each have enough notes and are all different; None if there are none."""
    for i in range(len(bars) - THEME_BARS + 1):
        theme = bars[i : i + THEME_BARS]
        contents = {frozenset(map(tuple, notes[:, [0, 2]].tolist())) for notes in theme}
        if min(map(len, theme)) >= FEWEST and len(contents) == THEME_BARS:
            return list(theme)
    return None


def randomise_pitches(theme: Sequence[Bar], random: np.random.Generator, scheme: Scheme) -> list[Bar]:
    """The same rhythms with pitches drawn from the theme's range, all pitches of a chord different. Drums stay."""
    pitched = np.concatenate([notes[_pitched(notes, scheme)] for notes in theme])
    low, high = (int(pitched[:, 2].min()), int(pitched[:, 2].max())) if len(pitched) else (0, 0)
    drawn = []
    for notes in theme:
        notes = notes.copy()
        for onset in np.unique(notes[:, 0]):
            chord = (notes[:, 0] == onset) & _pitched(notes, scheme)
            n_pitches = max(high - low + 1, int(chord.sum()))
            notes[chord, 2] = min(low, 128 - n_pitches) + random.permutation(n_pitches)[: chord.sum()]
        drawn.append(notes)
    return drawn


def transpose(theme: Sequence[Bar], random: np.random.Generator, scheme: Scheme) -> list[Bar]:
    """The theme in another key, higher or, where that is too high, lower; as it is if neither fits. Drums stay."""
    pitches = np.concatenate([notes[_pitched(notes, scheme), 2] for notes in theme])
    shift = fitting_shift(pitches.min(initial=127), pitches.max(initial=0), int(random.choice(SHIFTS)))
    transposed = [notes.copy() for notes in theme]
    for notes in transposed:
        notes[_pitched(notes, scheme), 2] += shift
    return transposed


def vary(theme: Sequence[Bar], random: np.random.Generator, scheme: Scheme) -> list[Bar]:
    """The theme with some pitches up to two semitones higher or lower. Drums stay."""
    share, varied = random.uniform(*CHANGED), []
    for notes in theme:
        notes = notes.copy()
        free = set(range(128)) - set(notes[:, 2].tolist())  # no two notes become one
        for i in np.flatnonzero((random.random(len(notes)) < share) & _pitched(notes, scheme)).tolist():
            near = [pitch for pitch in range(notes[i, 2] - 2, notes[i, 2] + 3) if pitch in free]
            if near:
                notes[i, 2] = random.choice(near)
                free.discard(int(notes[i, 2]))
        varied.append(notes)
    return varied


def _pitched(notes: Bar, scheme: Scheme) -> np.ndarray:
    """Which notes are not of drums: bool [N]."""
    return (notes[:, 3] != vocab.DRUMS) | (not scheme.multi)


def join_bars(bars: Sequence[Bar], length: int, scheme: Scheme) -> Song:
    """A song of these bars, each of a length in grid steps."""
    notes = np.concatenate(bars)
    notes[:, 0] += length * np.repeat(np.arange(len(bars)), [len(bar) for bar in bars]).astype(np.int32)
    parts = notes[:, 3] if scheme.multi else 0 * notes[:, 3]
    notes = notes[np.lexsort((-notes[:, 2], parts, notes[:, 0]))]
    meter = np.array([[0, length, 4 * scheme.steps_per_beat]], np.int32)
    return make_song(notes, meter, np.array([[0, 500_000]], np.int32), scheme)


class Themes(NamedTuple):
    """Themes and, for each, all bars of the other songs, shuffled by song."""

    themes: list[list[Bar]]
    filler: list[list[Bar]]
    length: int  # of a bar, in grid steps


def find_themes(songs: Sequence[Song], n_themes: int, *, seed: int = 0) -> Themes:
    """Themes of the first songs that have one.

    Raises:
        InputError: fewer than two have one.
    """
    length = most_common_bar_length(songs)
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


def cut_fillers(
    theme: list[Bar], filler: list[Bar], tokens: Sequence[float], length: int, vocabulary: Vocabulary
) -> list[list[Bar]]:
    """For each number of tokens, the fewest bars of the filler that have at least as many; it is repeated if needed."""
    bars, endless = list[Bar](), cycle(filler)
    while True:
        bars += islice(endless, 64)
        sequence = tokens_of(join_bars([*theme, *bars], length, vocabulary.scheme), vocabulary)
        first = np.searchsorted(sequence.bar, np.arange(len(theme), len(theme) + len(bars)))
        if first[-1] - first[0] >= max(tokens):
            return [bars[: int(np.searchsorted(first - first[0], n))] for n in tokens]


def probe(
    sampler: Sampler,
    source: Themes,
    *,
    kinds: Sequence[str] = KINDS,
    furthest: float = DISTANCES[-1],
    seed: int = 0,
) -> dict[str, Any]:
    """Loss and note F1 of the theme's other bars, by distance and ablation, with intervals over themes.

    Args:
        source: of songs that the model was not trained on.
        kinds: how the themes return.
        furthest: the longest filler, in contexts.
    """
    model = sampler.model
    config, vocabulary = model.config, model.vocabulary
    distances = [distance for distance in DISTANCES if distance <= furthest]
    context = reach_of(config)
    fillers = [
        cut_fillers(theme, filler, [context * d for d in distances], source.length, vocabulary)
        for theme, filler in zip(source.themes, source.filler, strict=True)
    ]
    random = np.random.default_rng(seed)
    scheme = vocabulary.scheme
    random_themes = [randomise_pitches(theme, random, scheme) for theme in source.themes]
    returns = {
        UNSEEN: (source.themes, source.themes),
        RANDOM: (random_themes, random_themes),
        TRANSPOSED: (random_themes, [transpose(theme, random, scheme) for theme in random_themes]),
        VARIED: (random_themes, [vary(theme, random, scheme) for theme in random_themes]),
    }
    # A lane for each theme, and a ring that holds the longest trial.
    slots = -(-int(max(distances) * context + SPARE_TOKENS) // config.data.segment) * config.data.segment
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, lanes=len(source.themes)),
        memory=dataclasses.replace(config.memory, knn=slots if config.memory.knn else 0),
    )
    model = dataclasses.replace(model, config=config)
    reader, long_sampler = SongReader(model), Sampler(model)
    found: dict[str, Any] = {"context": context, "themes": len(source.themes), "distances": list(distances)}
    for name in kinds:
        themes, returning = returns[name]
        rows = []
        for i in range(len(distances)):
            trials = [Trial(*x) for x in zip(themes, (filler[i] for filler in fillers), returning, strict=True)]
            others = [*themes[1:], themes[0]]
            controls = [trial._replace(shown=other) for trial, other in zip(trials, others, strict=True)]
            rows.append(_at_one_distance(reader, long_sampler, trials, controls, source.length))
        found[name] = {
            what: {ablation: [row[what].get(ablation) for row in rows] for ablation in rows[0][what]}
            for what in ("nats", "F1")
        }
    return found


def _at_one_distance(
    reader: SongReader, sampler: Sampler, trials: list[Trial], controls: list[Trial], length: int
) -> dict[str, dict[str, Any]]:
    """Loss and F1 in each ablation, and the differences in loss from XL memory alone."""
    complete, model = reader.complete, reader.model
    cases = {complete: (trials, complete)}
    if reader.config.memory.knn:
        cases |= {ablations.XL: (trials, ablations.XL), OTHER_THEME: (controls, complete)}
    sums, matches = {}, {}
    hidden = dataclasses.replace(model, params=ablations.without_knn(model.params))
    for name, (read, ablation) in cases.items():
        sums[name], counts = _loss(reader, read, ablation, length)
        sampler.set_model(hidden if name == ablations.XL else model)
        matches[name] = _matching_notes(sampler, read, length)
    f1 = {name: ratio(*x) for name, x in matches.items()}
    nats = {name: ratio(x, counts) for name, x in sums.items()}
    for name in (ablations.KNN, OTHER_THEME):
        if ablations.XL in sums and name in sums:
            nats[difference_name(name, ablations.XL)] = ratio(sums[name] - sums[ablations.XL], counts)
    return {"nats": nats, "F1": f1}


def _loss(reader: SongReader, trials: list[Trial], ablation: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each trial the total loss of the theme's bars after the first, and the number of their tokens."""
    vocabulary = reader.model.vocabulary
    sequences, counted = [], []
    for trial in trials:
        song = join_bars([*trial.shown, *trial.filler, *trial.theme], length, vocabulary.scheme)
        sequence = TokenSequence(*(x[:-1] for x in tokens_of(song, vocabulary)))  # without eos: it need not end here
        sequences.append(sequence)
        counted.append(sequence.bar[1:] > len(trial.shown) + len(trial.filler))
    nats = reader.nats(sequences, ablation)
    return (
        np.array([row[here].sum() for row, here in zip(nats, counted, strict=True)]),
        np.array([here.sum() for here in counted]),
    )


def _matching_notes(sampler: Sampler, trials: list[Trial], length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each trial, twice the notes (onset and pitch) that both the greedy continuation and the theme have, and the
    notes of the two together: the ratio is F1."""
    scheme = sampler.vocabulary.scheme
    prompts = []
    for trial in trials:
        bars = [*trial.shown, *trial.filler, trial.theme[0]]
        prompts.append(Prompt(join_bars(bars, length, scheme), len(bars) * length))
    rest = (THEME_BARS - 1) * length
    greedy = GenerationSettings(top_k=1, loop_bars=0)
    session = sampler.prefill(prompts)
    continuations = sampler.sample(session, [prompt.end + rest for prompt in prompts], settings=greedy).finish()
    both, total = [], []
    for trial, prompt, continuation in zip(trials, prompts, continuations, strict=True):
        new = continuation.song.notes[continuation.song.notes[:, 0] >= prompt.end]
        written = {(onset - prompt.end, pitch) for onset, pitch in new[:, [0, 2]].tolist()}
        theme = set(map(tuple, join_bars(trial.theme[1:], length, scheme).notes[:, [0, 2]].tolist()))
        both.append(2 * len(written & theme))
        total.append(len(written) + len(theme))
    return np.array(both), np.array(total)
