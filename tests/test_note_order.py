"""The order of notes that begin together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sample import CHANGEABLE, drawn, rich  # noqa: F401  (a fixture)

from midigen_jax import vocab
from midigen_jax.data.corpus import open_corpus
from midigen_jax.data.encode import encode_folder
from midigen_jax.kernels import score
from midigen_jax.model.decoder import init_params
from midigen_jax.music.song import Prompt, new_song, notes_of
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import logits_processors, note_order
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.vocab import FAITHFUL, Scheme, Vocabulary


def forbidden(tokens, vocabulary):
    """The places in a song where its next token breaks the order."""
    next_state, steps = map(jnp.asarray, vocabulary.grammar)

    def one(carry, token):
        chord, state, instrument = carry
        fits = note_order.note_order_mask(chord, instrument, vocabulary)[0, token]
        instrument = logits_processors.instrument_after(instrument, token[None], vocabulary)
        chord = note_order.update(chord, token[None], steps[state, token] > 0, instrument, vocabulary)
        return (chord, next_state[state, token].astype(int), instrument), fits

    begin = (
        note_order.init_note_order(jnp.zeros(1, int)),
        jnp.array([vocab.START]),
        jnp.array([vocab.NO_INSTRUMENT]),
    )
    _, fits = jax.lax.scan(one, begin, jnp.asarray(tokens[1:], int))
    return (1 + np.flatnonzero(~np.asarray(fits))).tolist()


@pytest.mark.parametrize(
    ("scheme", "merges"), [(Scheme(), 0), (FAITHFUL, 500), (Scheme(multi=True, velocities=True), 700)]
)
def test_songs_as_they_are_encoded_keep_to_it(midi_folder, band_folder, tmp_path, scheme, merges):
    # The band has twenty unisons on a step where its instruments are not kept apart.
    for i, folder in enumerate([midi_folder, *[band_folder] * scheme.multi]):
        encode_folder(folder, tmp_path / str(i), scheme=scheme, vocabulary=merges, fractions=(1, 0, 0))
        corpus = open_corpus(tmp_path / str(i))
        assert not merges or corpus.vocabulary.merges
        for song in range(len(corpus.names)):
            assert forbidden(corpus.sequence_of(song).tokens, corpus.vocabulary) == []


def test_an_order_that_no_song_has_is_noticed():
    plain, multi = Vocabulary(), Vocabulary(Scheme(multi=True))
    note, d, i = vocab.NOTE_0 + 60, vocab.DURATION_0 + 4, vocab.INSTRUMENT_0
    several = ((note, d, i + 5, note, d), (vocab.SEP, d, note, d, i + 5, note, d), (i + 2, note, d, i + 4, note, d))
    band = Vocabulary(Scheme(multi=True), several)
    one, after_rest, begun = range(band.scheme.size, band.size)
    merged = Vocabulary(Scheme(), ((note, d, note, d), (note, d, vocab.SEP, d, note + 7, d)))
    cases = [
        (plain, [note, d, note - 1, d, note - 1, d], []),
        (plain, [note, d, note + 1, d], [3]),
        (plain, [note, d, vocab.SEP, d, note + 1, d], []),
        (plain, [note, d] * 5, [9]),  # a unison too many
        (plain, [note + 1, d] + [note, d] * 4, []),
        (merged, [389, 389, 389], [3]),
        (merged, [note, d, 389, note, d], []),
        (merged, [note, d, note, d, note, d, 389], [7]),  # two unisons, of which one is too many
        (merged, [389, 390, note + 7, d, note + 8, d], [5]),
        (multi, [i + 3, note, d, note - 1, d, i + 5, note + 9, d], []),
        (multi, [i + 3, note, d, note, d], [4]),
        (multi, [i + 3, note, d, i + 2, note, d], [4, 5]),
        (multi, [i + 3, note, d, i + 3, note - 1, d], [4]),
        (multi, [i + 3, note, d, vocab.SEP, d, i + 2, note, d], []),
        (multi, [i + 3, note, d, vocab.SEP, d, i + 3, note, d], [6]),
        (band, [i + 3, note + 1, d, one], []),
        (band, [i + 7, note + 1, d, one], [4]),
        (band, [i + 3, note + 1, d, after_rest], []),
        (band, [i + 7, note + 1, d, after_rest], [4]),
        (band, [i + 1, note, d, begun, i + 5, note, d], []),
        (band, [i + 1, note, d, begun, i + 3, note, d], [5, 6]),
    ]
    for vocabulary, tokens, wrong in cases:
        assert forbidden(np.array([vocab.SOS, *tokens]), vocabulary) == wrong, tokens


def test_what_is_sampled_keeps_to_it(small, rich):  # noqa: F811
    for vocabulary in (Vocabulary(), rich):
        sampler = Sampler(TrainedModel(small, init_params(small, vocabulary, seed=0)[1], vocabulary))
        tokens, _ = drawn(sampler, Prompt(new_song(vocabulary.scheme), 0), 20, 200, CHANGEABLE)
        together = 0
        for row in tokens:
            base_tokens = np.array([part for token in row.tolist() for part in vocabulary.base_tokens[token]])
            notes = score.notes_from_tokens(base_tokens.astype(np.uint16), vocabulary.scheme)
            part = notes[:, score.PART] if vocabulary.scheme.multi else 0
            same_step = np.diff(notes[:, score.ONSET]) == 0
            rises = np.diff(128 * part + 127 - notes[:, score.PITCH])[same_step]
            assert (rises > 0).all() if vocabulary.scheme.multi else (rises >= 0).all()
            together += len(rises)
            _, counts = np.unique(notes[:, [score.ONSET, score.PITCH, score.PART]], axis=0, return_counts=True)
            assert counts.max() <= (1 if vocabulary.scheme.multi else note_order.MAX_UNISONS)
            assert len(notes_of(row.astype(np.uint16), vocabulary)) == len(notes)
        assert together > 100
