"""Generated music compared with real music."""

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from midigen_jax.errors import InputError
from midigen_jax.evaluation import generation_metrics
from midigen_jax.evaluation.generation_metrics import Pair
from midigen_jax.music.song import excerpt, new_song
from midigen_jax.vocab import Scheme


@pytest.fixture(scope="module")
def prompts(corpus):
    return generation_metrics.choose_prompts(corpus, corpus.songs_of("train"), 4, prompt_bars=2, bars=8)


def test_prompts_are_of_songs_that_continue(corpus, prompts):
    for prompt in prompts:
        song = corpus.song(prompt.song)
        assert len(prompt.prompt.song.notes) > 0
        assert (prompt.real.notes == excerpt(song, song.bar_of(prompt.prompt.end), 8).notes).all()
        assert prompt.ends == (song.end <= prompt.prompt.end + 8 * 32)
    with pytest.raises(InputError, match="no song continues after its first 1000 bars"):
        generation_metrics.choose_prompts(corpus, corpus.songs_of("train"), 4, prompt_bars=1000, bars=8)


def test_real_continuations_are_like_themselves(corpus, prompts):
    ends = {True: "ended by itself", False: "at the bar line"}
    continuations: list[Any] = [SimpleNamespace(stopped=ends[prompt.ends]) for prompt in prompts]
    same = [Pair(prompt, x, prompt.real) for prompt, x in zip(prompts, continuations, strict=True)]
    repeated = prompts[0].real._replace(notes=np.array([[32 * i, 8, 60, 0, 80] for i in range(8)], np.int32))
    others = [Pair(prompt, continuations[0], repeated) for prompt in prompts]
    found = generation_metrics.compare_with_real(prompts, {"same": same, "others": others}, corpus)
    real, written = found["real"], found["written"]
    assert written["same"] == real | {
        "self-similarity error": 0,
        "distances": dict.fromkeys(generation_metrics.DISTRIBUTIONS, 0),
    }
    assert real["longest training excerpts"] == [len(prompt.real.notes) for prompt in prompts]  # training songs
    assert real["metrics"]["share that ends"].value == np.mean([prompt.ends for prompt in prompts])
    assert written["others"]["self-similarity error"] > 0.9
    assert max(written["others"]["longest training excerpts"]) < 8
    assert written["others"]["metrics"]["groove similarity"].value == 1


def test_drift_shows_in_the_first_and_the_last_bars(corpus):
    """A chord a bar over a moving bass, which freezes after eight bars."""
    chords = (((48, 60, 64, 67), (55, 59, 62, 67)) * 4) + ((48, 60, 64, 67),) * 16
    notes = [[32 * bar, 32, pitch, 0, 80] for bar, chord in enumerate(chords) for pitch in chord]
    song = new_song(Scheme())._replace(notes=np.array(notes, np.int32))
    found = generation_metrics.describe([song], [False], bars=24)
    first, last = (found["parts"][f"{which} 8 bars"] for which in ("first", "last"))
    assert first["bars that keep the chord before"].value == 0
    assert last["bars that keep the chord before"].value == 1
    assert first["bass movement"].value == pytest.approx(7 / 31)
    assert last["bass movement"].value == 0
    assert found["metrics"]["share with a chord for over 8 bars"].value == 1
    assert found["metrics"]["share with a loop of bars that are nearly alike"].value == 1
    assert generation_metrics.describe([song], [False])["parts"] == {}


def test_silence_counts_only_for_the_shares(prompts):
    real = prompts[0].real
    silent = real._replace(notes=real.notes[:0])
    found = generation_metrics.describe([silent, real], [True, False], [0, 7])
    assert found["excerpts with notes"] == 1
    assert found["metrics"]["share that ends"].value == 0.5
    assert found["metrics"]["polyphony"].value == generation_metrics.METRICS["polyphony"](real)
    assert found["longest training excerpts"] == [7]
    assert generation_metrics.describe([silent], [True], [0])["self-similarity"] == []


def test_the_training_songs_are_read_once_and_not_kept(corpus, prompts, monkeypatch):
    """However many excerpts are compared with them."""
    songs, training = generation_metrics.training_notes(corpus)
    read, kept = [], []

    def stream(_):
        def notes():
            for i, x in enumerate(training):
                x = x.view(type("Notes", (np.ndarray,), {}))
                kept.append(weakref.ref(x))
                read.append(i)
                assert sum(ref() is not None for ref in kept) <= 2
                yield x

        return songs, notes()

    monkeypatch.setattr(generation_metrics, "training_notes", stream)
    continuation: Any = SimpleNamespace(stopped="at the bar line")
    pairs = [Pair(prompt, continuation, prompt.real) for prompt in prompts]
    generation_metrics.compare_with_real(prompts, {"one": pairs, "two": pairs}, corpus)
    assert read == list(range(len(songs)))
