"""The recall probe: its themes and fillers, and a model whose recall is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import changed
from test_ablations import copier_config, copier_model, copier_params

from midigen_jax.errors import InputError
from midigen_jax.evaluation import ablations, recall_probe
from midigen_jax.evaluation.recall_probe import OTHER_THEME, RANDOM, TRANSPOSED, UNSEEN, VARIED
from midigen_jax.model import decoder, pointer
from midigen_jax.music.song import new_song
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.vocab import DRUMS, Scheme, Vocabulary


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """These models are run for longer than it takes to compile them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def random_song(seed, bars, scheme=Scheme()):  # noqa: B008  (it is frozen)
    """Chords of two notes on every eighth note, all bars different."""
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
    bars = recall_probe.bars_of(song, 32)
    assert [len(notes) for notes in bars] == [16] * 6
    theme = recall_probe.find_theme([bars[0], bars[0], bars[1], bars[0], *bars[2:]])
    assert theme is not None
    for got, expected in zip(theme, [bars[1], bars[0], bars[2], bars[3]], strict=True):
        assert (got == expected).all()
    assert recall_probe.find_theme([bars[0], bars[1]] * 4) is None
    assert recall_probe.find_theme([notes[:3] for notes in bars]) is None
    assert (recall_probe.join_bars(bars, 32, Scheme()).notes == song.notes).all()
    assert recall_probe.bars_of(song, 24) == []


def test_random_pitches_keep_rhythm_range_and_drums():
    scheme = Scheme(8, multi=True)
    theme = recall_probe.bars_of(random_song(1, 4), 32)
    for notes in theme:
        notes[::4, 3] = DRUMS
    drawn = recall_probe.randomise_pitches(theme, np.random.default_rng(0), scheme)
    for before, after in zip(theme, drawn, strict=True):
        drums = before[:, 3] == DRUMS
        assert (before[:, [0, 1, 3, 4]] == after[:, [0, 1, 3, 4]]).all()
        assert (before[drums] == after[drums]).all()
        assert (before[~drums, 2] != after[~drums, 2]).mean() > 0.5
        assert len({tuple(note) for note in after[~drums][:, [0, 2]].tolist()}) == (~drums).sum()
        assert after[~drums, 2].min() >= 40
        assert after[~drums, 2].max() < 88


def test_returns_in_another_key_and_varied():
    scheme = Scheme(8, multi=True)
    theme = recall_probe.bars_of(random_song(1, 4), 32)
    for notes in theme:
        notes[::4, 3] = DRUMS
    shifts, shares = set(), []
    for seed in range(40):
        random = np.random.default_rng(seed)
        moved, varied = (change(theme, random, scheme) for change in (recall_probe.transpose, recall_probe.vary))
        for before, *others in zip(theme, moved, varied, strict=True):
            drums = before[:, 3] == DRUMS
            for after in others:
                assert (before[:, [0, 1, 3, 4]] == after[:, [0, 1, 3, 4]]).all()
                assert (before[drums] == after[drums]).all()
            shifts |= set((others[0] - before)[~drums, 2].tolist())
        shares.append(np.mean(np.concatenate([(a != b)[:, 2] for a, b in zip(theme, varied, strict=True)])))
    assert shifts == set(range(1, 12))
    assert 0.1 < np.mean(shares) < 0.2  # of all notes, drums among them
    high = [notes.copy() for notes in theme]
    for notes in high:
        notes[:, 2] += 127 - notes[:, 2].max()
    assert min(notes[:, 2].min() for notes in recall_probe.transpose(high, np.random.default_rng(0), Scheme())) >= 0


def aligned_model():
    """One that trusts what agrees at any lag, whatever else it holds likely."""
    config = changed(copier_config(), memory__retrieval="alignment", memory__top_k=16)
    params = decoder.init_params(config, Vocabulary(), seed=0)[1]
    params["pointer"]["slope"] = params["pointer"]["slope"].at[: pointer.N_DISTANCES].set(4.0)
    return TrainedModel(config, params, Vocabulary())


def test_alignment_recalls_what_returns_transposed_or_varied():
    found = recall_probe.probe(
        Sampler(aligned_model()),
        recall_probe.find_themes([random_song(seed, 12) for seed in range(5)], 3),
        kinds=(RANDOM, TRANSPOSED, VARIED),
        furthest=2,
    )
    assert found["distances"] == [0.5, 1, 2]
    for kind, least in ((RANDOM, 0.9), (TRANSPOSED, 0.8), (VARIED, 0.5)):
        f1 = found[kind]["F1"]
        assert min(value.value for value in f1[ablations.KNN]) > least
        assert max(value.value for case in (ablations.XL, OTHER_THEME) for value in f1[case]) < 0.1


def test_a_model_that_copies_recalls_at_every_distance_and_another_theme_does_not_help():
    sampler = Sampler(copier_model())
    songs = [random_song(seed, 12) for seed in range(5)]
    found = recall_probe.probe(sampler, recall_probe.find_themes(songs, 3), kinds=(UNSEEN, RANDOM), furthest=2)
    assert found["distances"] == [0.5, 1, 2]
    assert found["themes"] == 3
    for kind in (UNSEEN, RANDOM):
        nats, f1 = found[kind]["nats"], found[kind]["F1"]
        cases = (ablations.KNN, ablations.XL, OTHER_THEME)
        for own, alone, control in zip(*(nats[case][1:] for case in cases), strict=True):
            # From another theme it still learns that durations follow notes, which these parameters don't know.
            assert own.value < control.value / 2 < alone.value / 2
        assert min(value.value for value in f1[ablations.KNN][1:]) > 0.8
        assert max(value.value for case in (ablations.XL, OTHER_THEME) for value in f1[case]) < 0.3
        difference = nats[ablations.difference_name(ablations.KNN, ablations.XL)]
        assert all(value.high < 0 for value in difference[1:])


def test_a_theme_needs_four_different_bars():
    with pytest.raises(InputError, match="needs two songs"):
        recall_probe.find_themes([random_song(0, 12), random_song(1, 3)], 4)


def test_fillers_have_the_requested_lengths():
    songs = [random_song(seed, 12) for seed in range(3)]
    source = recall_probe.find_themes(songs, 3)
    fillers = recall_probe.cut_fillers(source.themes[0], source.filler[0], [100, 1000], source.length, Vocabulary())
    a_bar = 16 * 2 + 8 * 2  # notes with their durations, rests with theirs
    assert [len(filler) for filler in fillers] == [-(-100 // a_bar), -(-1000 // a_bar)]
    (again,) = recall_probe.cut_fillers(source.themes[0], source.filler[0], [100], source.length, Vocabulary())
    assert all((one == other).all() for one, other in zip(again, fillers[0], strict=True))  # the same for every run
    own = {notes.tobytes() for notes in recall_probe.bars_of(songs[0], 32)}
    assert not any(notes.tobytes() in own for filler in fillers for notes in filler)


def test_only_the_kNN_bias_changes_to_hide_the_kNN_memory():
    params = copier_params()
    hidden = ablations.without_knn(params)
    assert (hidden["blocks"][0]["attention"]["knn"]["bias"] < -1e8).all()
    assert jnp.array_equal(hidden["output"], params["output"])
