"""A classifier of real and written music, on music that is alike and on music that is not."""

import numpy as np
import pytest

from midigen_jax.evaluation import discriminator
from midigen_jax.music.song import Song, new_song
from midigen_jax.vocab import Scheme

BARS = 16


def song_of(random: np.random.Generator, leap: int = 2) -> Song:
    """A random walk in eighths over held fifths; its steps are at most `leap` semitones."""
    tune = 66 + np.cumsum(random.integers(-leap, leap + 1, 8 * BARS)) % 20
    notes = [[4 * i, 4, pitch, 0, 80] for i, pitch in enumerate(tune.tolist())]
    notes += [[32 * bar, 32, pitch, 0, 80] for bar in range(BARS) for pitch in (40, 47)]
    return new_song(Scheme())._replace(notes=np.array(sorted(notes), np.int32))


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(discriminator, "TREES", 30)


def test_music_of_one_kind_cannot_be_told_apart():
    random = np.random.default_rng(0)
    one, other = ([song_of(random) for _ in range(32)] for _ in range(2))
    found = discriminator.discriminate(one, other, BARS)
    assert found["area"].low < 0.5 < found["area"].high
    assert found["windows"] == 2 * 2 * 32


def test_leaps_are_noticed_and_named():
    random = np.random.default_rng(0)
    real, written = [song_of(random) for _ in range(24)], [song_of(random, leap=9) for _ in range(24)]
    found = discriminator.discriminate(real, written, BARS)
    assert found["area"].value > 0.95
    assert any("top line" in name or "pitch" in name for name in found["looks at"])


def test_songs_without_notes_are_left_out_and_few_songs_say_nothing():
    random = np.random.default_rng(0)
    songs = [song_of(random) for _ in range(discriminator.FOLDS)]
    silent = songs[0]._replace(notes=songs[0].notes[:0])
    assert discriminator.discriminate([*songs, silent], [*songs, songs[0]], BARS)["windows"] == 4 * len(songs)
    assert discriminator.discriminate(songs[1:], songs[1:], BARS) is None


def test_shuffled_bars_are_the_same_bars():
    song = song_of(np.random.default_rng(0))
    shuffled = discriminator.shuffled_bars(song, BARS, np.random.default_rng(1))

    def bars(song: Song) -> list:
        return [
            sorted((song.notes[song.notes[:, 0] // 32 == bar] % [32, 999, 999, 1, 999]).tolist()) for bar in range(BARS)
        ]

    assert bars(shuffled) != bars(song)
    assert sorted(bars(shuffled)) == sorted(bars(song))
    assert (np.diff(shuffled.notes[:, 0]) >= 0).all()
