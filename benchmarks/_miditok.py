"""The songs of a corpus in MidiTok's tokens, so that tokenizers compare on the same notes and the same split.

The notes are those that our tokens decode to, in the song's own meters, and the tokens those of `midigen encode
--tokenizer miditok:REMI`. MidiTok's grid is as fine as ours for durations of up to four beats, half as fine for longer
ones, and ends at twelve beats; pitch 127 is left out. Notes and beats are those that its tokens decode to.
"""

import numpy as np
from tqdm import tqdm

from midigen_jax.data.corpus import Corpus
from midigen_jax.errors import InputError
from midigen_jax.music import miditok
from midigen_jax.music.song import Song, make_song, notes_of, tokens_of
from midigen_jax.vocab import Scheme, Vocabulary


def retokenized(corpus: Corpus, tokenization: str) -> Corpus:
    """The same songs in another tokenizer's tokens, in memory.

    Raises:
        InputError: MidiTok is not installed, or the tokens are its own already.
    """
    if type(corpus.vocabulary) is not Vocabulary:
        raise InputError(f"{corpus.path}: is in MidiTok's tokens already; give a corpus of this project's")
    vocabulary = miditok.make_vocabulary(tokenization, corpus.vocabulary.scheme)
    sequences, notes, beats = [], [], []
    for i in tqdm(range(len(corpus.names)), desc=tokenization, unit="song"):
        sequences.append(tokens_of(on_grid_of(vocabulary.scheme, corpus.song(i)), vocabulary))
        found = notes_of(sequences[-1].tokens, vocabulary)
        notes.append(len(found))
        beats.append(int((found[:, 0] + found[:, 1]).max(initial=0)) / vocabulary.scheme.steps_per_beat)
    tokens, bar, position = (np.concatenate(x) for x in zip(*sequences, strict=True))
    offsets = np.cumsum([0, *(len(x.tokens) for x in sequences)], dtype=np.int64)
    return corpus._replace(
        vocabulary=vocabulary,
        tokens=tokens,
        bar=bar,
        position=position,
        offsets=offsets,
        notes=np.array(notes),
        beats=np.array(beats),
    )


def on_grid_of(scheme: Scheme, song: Song) -> Song:
    """The same song on a finer grid."""
    finer = scheme.steps_per_beat // song.scheme.steps_per_beat
    notes, meters, tempos = (x.copy() for x in (song.notes, song.meters, song.tempos))
    notes[:, :2] *= finer
    meters[:, 0] *= finer
    tempos[:, 0] *= finer
    return make_song(notes, meters, tempos, scheme)
