"""The rivals of the benchmarks: what they learn, how they read songs, and their tokens."""

import _miditok
import _ngrams
import numpy as np
import pytest
from _rivals import RIVALS, training_batches
from toy_sizes import CONFIG, TOY, needs_x_transformers

from midigen_jax import config as cfg
from midigen_jax.errors import InputError
from midigen_jax.kernels.meter import bar_positions
from midigen_jax.music.song import TokenSequence, notes_of
from midigen_jax.vocab import NO_TARGET, Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by x-transformers


def test_ngrams_count_training_songs_and_the_song_so_far(corpus):
    training, songs = corpus.songs_of("train"), corpus.songs_of("test")
    counts = _ngrams.Counts(corpus, training)
    sequence = corpus.tokens_of(int(songs[0])).astype(np.int64)[:60]
    others = [corpus.tokens_of(song).tolist() for song in training.tolist()]
    levels, n = counts.levels(sequence), len(_ngrams.LENGTHS)
    assert len(levels) == 2 * n
    for level, length in enumerate(_ngrams.LENGTHS.tolist()[:4]):
        for i in range(1, len(sequence)):
            context = sequence[i - length : i].tolist() if i >= length else None
            for which, (found_in, end) in enumerate(((others, None), ([sequence.tolist()], i))):
                after = [
                    x[j]
                    for x in found_in
                    for j in range(length, len(x) if end is None else end)
                    if x[j - length : j] == context
                ]
                predicted = levels[level + n * which]
                assert (predicted.bucket[i - 1] >= 0) == (len(after) > 0)
                if after:
                    expected = np.mean([x == sequence[i] for x in after])
                    assert predicted.probability[i - 1] == pytest.approx(expected)
    nats = _ngrams.nats(corpus, corpus.songs_of("validation"), songs)
    assert [len(x) + 1 for x in nats] == np.diff(corpus.offsets)[songs].tolist()
    assert all(np.isfinite(x).all() and (x > 0).all() for x in nats)


@pytest.mark.parametrize("window", [7, 64, 4096])
def test_rivals_learn_every_token_once_an_epoch(corpus, window):
    config = cfg.override(cfg.load(CONFIG), [*TOY, "data.transpose=0", "data.modulate=0"])
    songs = corpus.songs_of("train")
    expected = np.concatenate([corpus.tokens_of(song)[1:] for song in songs.tolist()])
    taught: list[np.ndarray] = []
    for batch in training_batches(corpus, config, window):
        counted = batch["targets"] != NO_TARGET
        taught += [row[which] for row, which in zip(batch["targets"], counted, strict=True)]
        assert batch["tokens"].shape[1] <= window
        inside = counted[:, :-1]
        np.testing.assert_array_equal(batch["targets"][:, :-1][inside], batch["tokens"][:, 1:][inside])
        if sum(map(len, taught)) >= len(expected):
            break
    epoch = np.concatenate(taught)[: len(expected)]
    np.testing.assert_array_equal(np.sort(epoch), np.sort(expected))


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if not rival.tokenizer])
@pytest.mark.usefixtures("short_windows")
def test_a_rival_learns_and_reads_a_song_window_by_window(corpus, tmp_path, name):
    for module in ("torch", *RIVALS[name].needs):
        pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    windowed = pytest.importorskip("_windowed")
    config = cfg.override(cfg.load(CONFIG), [*TOY, "train.steps=10"])
    side = windowed.Learner(name, config, corpus.vocabulary)
    batch = next(training_batches(corpus, config, 64))
    losses = [side.step(batch, 0.5) for _ in range(40)]
    assert losses[-1] < 0.95 * losses[0]
    sequence = corpus.sequence_of(0)
    n = len(sequence.tokens)
    assert n > 120
    (nats,) = side.nats([sequence])
    (start,) = side.nats([TokenSequence(*(x[:65] for x in sequence))])
    (other_end,) = side.nats([sequence._replace(tokens=np.where(np.arange(n) < 110, sequence.tokens, 0))])
    assert nats.shape == (n - 1,)
    np.testing.assert_allclose(nats[:64], start, rtol=1e-4)
    np.testing.assert_allclose(nats[:109], other_end[:109], rtol=1e-4)  # no token sees a later one
    side.save(tmp_path / "rival.safetensors", corpus)
    loaded = windowed.Learner.load(tmp_path / "rival.safetensors")
    assert loaded.corpus == corpus.fingerprint
    np.testing.assert_allclose(loaded.nats([sequence])[0], nats, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["XTransformers", "GPT2", "MusicTransformer"])
def test_a_cache_gives_the_logits_of_the_whole_window(decoder):
    (needs,) = {rival.needs[:1] for rival in RIVALS.values() if rival.decoder == decoder}
    for module in ("torch", *needs):
        pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    import torch

    windowed = pytest.importorskip("_windowed")
    model = cfg.Model(layers=2, width=64, heads=2, ff_width=64)
    side = windowed.DECODERS[decoder](model, Vocabulary(), 16, musical=True).eval()
    random = torch.Generator().manual_seed(0)
    batch = {name: torch.randint(0, 40, (2, 12), generator=random) for name in ("tokens", "bar", "position")}
    with torch.inference_mode():
        whole, _ = side(batch)
        part, cache = side({name: x[:, :5] for name, x in batch.items()})
        torch.testing.assert_close(part, whole[:, :5], rtol=0, atol=1e-5)
        for i in range(5, 12):
            logits, cache = side({name: x[:, i : i + 1] for name, x in batch.items()}, cache)
            torch.testing.assert_close(logits[:, 0], whole[:, i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["REMI", "TSD"])
def test_miditok_says_the_same_notes(corpus, name):
    pytest.importorskip("miditok", reason="MidiTok is not installed", exc_type=ImportError)
    found = _miditok.retokenized(corpus, name)
    np.testing.assert_array_equal(found.notes, corpus.notes)
    np.testing.assert_allclose(found.beats, corpus.beats)
    assert len(found.offsets) == len(corpus.offsets)
    assert found.offsets[-1] == len(found.tokens) == len(found.bar) == len(found.position)
    finer = found.vocabulary.scheme.steps_per_beat // corpus.vocabulary.scheme.steps_per_beat
    assert finer == 2
    for song in range(3):
        notes = notes_of(found.tokens_of(song), found.vocabulary)
        expected = corpus.song(song).notes
        assert sorted(map(tuple, notes[:, :3])) == sorted((finer * a, finer * b, c) for a, b, c, *_ in expected)
    with pytest.raises(InputError, match="already"):
        _miditok.retokenized(found, name)


@needs_x_transformers
def test_time_moves_on_as_tokens_are_sampled(corpus):
    continuing = pytest.importorskip("_continuing")
    sequence, song = corpus.sequence_of(0), corpus.song(0)
    timeline = continuing.Timeline(corpus.vocabulary)
    times = np.array([timeline.advance(token) for token in sequence.tokens[:-1].tolist()])
    bar, position = bar_positions(times, song.bars)
    np.testing.assert_array_equal(bar[1:], sequence.bar[1:-1])
    np.testing.assert_array_equal(position[1:], sequence.position[1:-1])
