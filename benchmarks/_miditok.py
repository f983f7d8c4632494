"""The songs of a corpus in MidiTok's tokens, so that tokenisers compare on the same notes and the same split.

The notes are those that our tokens decode to, at their places on the grid, in the song's own meters; each song has a
token at its beginning and one at its end, as ours. MidiTok's settings are its defaults, except that its tokens say what
ours say: the grid and the longest duration are ours, all pitches below 127 are kept (more it does not allow), and
velocities and instruments where our tokens keep them.
"""

import sys
from typing import Any

import numpy as np
from _shared import need
from tqdm import tqdm

from midigen_jax import vocab
from midigen_jax.data.corpus import Corpus
from midigen_jax.music.song import Song
from midigen_jax.vocab import MAX_DURATION, Scheme

TOKENIZERS = ("REMI", "TSD")
INSTALL = "pip install miditok symusic"


def make_tokenizer(name: str, scheme: Scheme) -> Any:
    library = need("miditok", INSTALL)
    config = library.TokenizerConfig(
        pitch_range=(0, 127),
        beat_res={(0, MAX_DURATION // scheme.steps_per_beat): scheme.steps_per_beat},
        special_tokens=["BOS", "EOS", "PAD"],  # the ids of our sos, eos and pad
        use_velocities=scheme.velocities,
        use_programs=scheme.multi,
    )
    return getattr(library, name)(config)


def score_of(song: Song) -> Any:
    """A song as symusic has it, in one track for each instrument, or in a single one."""
    library = need("symusic", INSTALL)
    score = library.Score(song.scheme.steps_per_beat)
    score.time_signatures.extend(library.TimeSignature(*meter) for meter in song.meters.tolist())
    parts = song.notes[:, 3] if song.scheme.multi else np.zeros(len(song.notes), int)
    for part in np.unique(parts).tolist():
        drums = song.scheme.multi and part == vocab.DRUMS
        track = library.Track(program=0 if drums else part, is_drum=drums)
        for onset, duration, pitch, _, velocity in song.notes[parts == part].tolist():
            track.notes.append(library.Note(onset, duration, pitch, velocity))
        score.tracks.append(track)
    return score


def retokenized(corpus: Corpus, name: str) -> tuple[Corpus, int]:
    """The same songs in another tokeniser's tokens, in memory, and the size of its vocabulary.

    Notes and beats are those that its tokens decode to. Bars and positions are 0; the vocabulary is still ours.
    """
    tokenizer = make_tokenizer(name, corpus.vocabulary.scheme)
    songs, notes, beats = [], [], []
    for i in tqdm(range(len(corpus.names)), desc=name, unit="song", file=sys.stderr):
        sequence = tokenizer(score_of(corpus.song(i)))
        ids = sequence.ids if hasattr(sequence, "ids") else [x for part in sequence for x in part.ids]
        songs.append(np.array([vocab.SOS, *ids, vocab.EOS], np.uint16))
        decoded = tokenizer.decode(sequence)
        notes.append(decoded.note_num())
        ends = [note.end for track in decoded.tracks for note in track.notes]
        beats.append(max(ends, default=0) / decoded.ticks_per_quarter)
    tokens = np.concatenate(songs)
    offsets = np.cumsum([0, *map(len, songs)], dtype=np.int64)
    nothing = np.zeros(len(tokens), np.uint16)
    return corpus._replace(
        tokens=tokens, bar=nothing, position=nothing, offsets=offsets, notes=np.array(notes), beats=np.array(beats)
    ), len(tokenizer)
