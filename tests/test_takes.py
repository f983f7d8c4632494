"""Long takes: shares of takes with known faults, and where they end."""

import numpy as np
import pytest

from midigen_jax.evaluation import plots, takes
from midigen_jax.evaluation.generation_metrics import choose_prompts
from midigen_jax.evaluation.takes import DENSE, LOOP, RETURNS, WITH, WITHOUT, Limits
from midigen_jax.music.song import Song, new_song
from midigen_jax.vocab import Scheme

LIMITS = Limits(notes=20, beats=100.0)


def song_of(bars: list[list[int]]) -> Song:
    """Of bars of pitches, one a 16th note."""
    notes = [[32 * i + 2 * j, 2, pitch, 0, 80] for i, bar in enumerate(bars) for j, pitch in enumerate(bar)]
    return new_song(Scheme())._replace(notes=np.array(notes, np.int32).reshape(-1, 5))


NEW = [[60 + i, 48 + i, 72 - i, 40 + 2 * i] for i in range(12)]  # no bar is like another
LOOPED = [[60, 64, 67, 72]] * 9 + NEW[:3]
FULL = [[48 + i for i in range(16)], *NEW[1:]]


def test_shares_are_counted_over_takes():
    full = song_of(FULL)
    more = np.concatenate([full.notes, full.notes[:5] + np.array([0, 0, 40, 0, 0], np.int32)])  # 21 in a bar
    dense = full._replace(notes=more[np.argsort(more[:, 0])])
    songs = [song_of(NEW), song_of(LOOPED), full, dense]
    found = takes.describe(songs, [None] * 4, LIMITS)
    assert found["takes"] == 4
    assert found["shares"][DENSE].value == 0.25
    assert found["shares"][LOOP].value == 0.25
    assert found["shares"][LOOP].low < 0.1  # of four takes
    assert found["shares"][LOOP].high > 0.6
    assert found["faults"]["loop"].value == 0.25
    assert found[RETURNS].value == pytest.approx((8 / 11) / 4)  # eight of the eleven bars after the first


def test_what_the_music_before_had_too_is_no_fault():
    looped = song_of(LOOPED)
    assert takes.describe([looped], [looped], LIMITS)["faults"]["loop"].value == 0
    assert takes.describe([looped], [looped], LIMITS)["shares"][LOOP].value == 1


def test_a_take_without_notes_is_silent():
    found = takes.describe([song_of([])], [None], LIMITS)
    assert found["faults"]["silence"].value == 1
    assert found["shares"][DENSE].value == 0
    assert found[RETURNS] is None


def test_only_what_ends_by_itself_before_the_limit_ends_in_time():
    found = takes.endings([40.0, 100.0, 100.5, 90.0], [True, True, True, False], LIMITS)
    assert found["ends in time"].value == 0.5
    axes = plots.endings(found, {"run": {WITHOUT: found, WITH: found}}, LIMITS.beats).axes[0]
    x, y = axes.lines[0].get_data()
    assert x.tolist() == pytest.approx([0, 40, 100, 100.5, 110])
    assert y.tolist() == [0, 0.25, 0.5, 0.75, 0.75]  # one never ended


def test_limits_are_those_of_the_songs(corpus):
    songs = corpus.songs_of("train")
    limits = takes.limits_of(corpus, songs)
    assert limits.notes == 2 * corpus.densest_bar()
    assert limits.beats == 2 * np.median(corpus.beats[songs])
    prompts = choose_prompts(corpus, songs, 3, prompt_bars=2, bars=8)
    found = takes.describe_songs(corpus, songs, prompts, limits, bars=8)
    assert (found[WITHOUT]["takes"], found[WITH]["takes"]) == (len(songs), 3)
    assert found[WITHOUT]["shares"][DENSE].value == 0
    assert found[WITHOUT]["beats"] == corpus.beats[songs].tolist()
    assert found[WITHOUT]["ends in time"].value == np.mean(corpus.beats[songs] <= limits.beats)
