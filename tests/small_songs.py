"""Songs that several tests share."""

import numpy as np

from midigen_jax import vocab
from midigen_jax.music.song import make_song, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary

RICH = Scheme(multi=True, velocities=True)
BAR = 32  # grid steps of 4/4


def random_notes(bars, scheme, seed=0):
    """Chords on a coarse grid, of few pitches, so that many places and notes come again; some beats are left out."""
    rng = np.random.default_rng(seed)
    time = np.repeat(np.arange(0, bars * BAR, 4), 3)
    keep = (rng.random(len(time)) < 0.5) & np.repeat(rng.random(len(time) // 3) < 0.7, 3)
    time = time[keep]
    pitch = 60 + rng.choice([0, 2, 4, 7], len(time))
    instrument = rng.choice([0, 33, vocab.DRUMS], len(time)) if scheme.multi else np.zeros(len(time), int)
    velocity = rng.choice([40, 80], len(time))
    notes = np.stack([time, rng.choice([2, 4], len(time)), pitch, instrument, velocity], 1)
    return in_order(notes)


def in_order(notes):
    """As songs are encoded, each note once: by time and instrument, and the highest first."""
    order = notes[:, [0, 3, 2]] * [1, 1, -1]
    return notes[np.unique(order, axis=0, return_index=True)[1]].astype(np.int32)


def song_of(notes, vocabulary=Vocabulary(), meters=((0, 4, 4),)):  # noqa: B008  (it is frozen)
    """Its tokens, and the bar and position of each."""
    song = make_song(notes, np.array(meters, np.int32), np.array([[0, 500_000]], np.int32), vocabulary.scheme)
    return [np.asarray(x).astype(int) for x in tokens_of(song, vocabulary)]
