import jax.numpy as jnp
import numpy as np
import pytest
from test_arms import copier_config, copier_params

from midigen_jax import arms, probe
from midigen_jax.cli import InputError
from midigen_jax.probe import OTHER_THEME, RANDOM, UNSEEN
from midigen_jax.sampler import Sampler
from midigen_jax.song import new_song
from midigen_jax.vocab import DRUMS, Scheme, Vocabulary


def random_song(seed, bars, scheme=Scheme()):  # noqa: B008  (it is frozen)
    """Chords of two notes on every other step of a quarter of the bar's length, all bars different."""
    random = np.random.default_rng(seed)
    notes = [
        (32 * bar + 4 * i, 4, int(pitch), 0, 80)
        for bar in range(bars)
        for i in range(8)
        for pitch in np.sort(random.choice(np.arange(40, 88), 2, replace=False))[::-1]
    ]
    return new_song(scheme)._replace(notes=np.array(notes, np.int32))


def test_bars_and_themes():
    song = random_song(0, 6)
    bars = probe.bars_of(song, 32)
    assert [len(notes) for notes in bars] == [16] * 6
    theme = probe.find_theme([bars[0], bars[0], bars[1], bars[0], *bars[2:]])
    assert theme is not None
    for got, expected in zip(theme, [bars[1], bars[0], bars[2], bars[3]], strict=True):
        assert (got == expected).all()
    assert probe.find_theme([bars[0], bars[1]] * 4) is None
    assert probe.find_theme([notes[:3] for notes in bars]) is None
    assert (probe.joined(bars, 32, Scheme()).notes == song.notes).all()
    assert probe.bars_of(song, 24) == []


def test_random_pitches_keep_rhythm_range_and_drums():
    scheme = Scheme(8, multi=True)
    theme = probe.bars_of(random_song(1, 4), 32)
    for notes in theme:
        notes[::4, 3] = DRUMS
    drawn = probe.randomised(theme, np.random.default_rng(0), scheme)
    for before, after in zip(theme, drawn, strict=True):
        drums = before[:, 3] == DRUMS
        assert (before[:, [0, 1, 3, 4]] == after[:, [0, 1, 3, 4]]).all()
        assert (before[drums] == after[drums]).all()
        assert (before[~drums, 2] != after[~drums, 2]).mean() > 0.5
        assert len({tuple(note) for note in after[~drums][:, [0, 2]].tolist()}) == (~drums).sum()
        assert after[~drums, 2].min() >= 40
        assert after[~drums, 2].max() < 88


def test_a_memory_that_copies_recalls_at_every_distance_and_another_song_does_not_help():
    """The model expects what followed when it heard the same before, and nothing in particular else."""
    params = copier_params()
    sampler = Sampler(copier_config(), params, Vocabulary())
    songs = [random_song(seed, 12) for seed in range(5)]
    found = probe.probe(sampler, probe.find_themes(songs, 3), furthest=8)
    assert found["distances"] == [0.5, 1, 2, 4, 8]
    assert found["themes"] == 3
    for kind in (UNSEEN, RANDOM):
        nats, f1 = found[kind]["nats"], found[kind]["F1"]
        for own, alone, control in zip(*(nats[arm][1:] for arm in (arms.KNN, arms.XL, OTHER_THEME)), strict=True):
            # From another theme it still learns that durations follow notes, which these weights don't know.
            assert own.value < control.value / 2 < alone.value / 2
        assert min(cell.value for cell in f1[arms.KNN][1:]) > 0.8
        assert max(cell.value for arm in (arms.XL, OTHER_THEME) for cell in f1[arm]) < 0.3
        less = nats[arms.less(arms.KNN, arms.XL)]
        assert all(cell.high < 0 for cell in less[1:])


def test_a_theme_needs_four_different_bars():
    with pytest.raises(InputError, match="needs two songs"):
        probe.find_themes([random_song(0, 12), random_song(1, 3)], 4)


def test_the_filler_is_as_long_as_asked():
    songs = [random_song(seed, 12) for seed in range(3)]
    source = probe.find_themes(songs, 3)
    sampler = Sampler(copier_config(), copier_params(), Vocabulary())
    fillers = probe._enough(source.themes[0], source.filler[0], [100, 1000], source.length, sampler)
    a_bar = 16 * 2 + 8 * 2  # notes with their durations, rests with theirs
    assert [len(filler) for filler in fillers] == [-(-100 // a_bar), -(-1000 // a_bar)]
    (again,) = probe._enough(source.themes[0], source.filler[0], [100], source.length, sampler)
    assert all((one == other).all() for one, other in zip(again, fillers[0], strict=True))  # each run hears the same
    own = {notes.tobytes() for notes in probe.bars_of(songs[0], 32)}
    assert not any(notes.tobytes() in own for filler in fillers for notes in filler)


def test_no_parameter_but_the_gate_is_closed():
    params = copier_params()
    closed = arms.without_knn(params)
    assert (closed["blocks"][0]["attention"]["gate"] < -1e8).all()
    assert closed["output"] is params["output"] or jnp.array_equal(closed["output"], params["output"])
