"""Songs to the tokens of MidiTok's tokenizers, by MidiTok itself (Fradet et al. 2021, "MidiTok: A Python package for
MIDI file tokenization").

MidiTok is an optional package, which only this module imports, and only when it encodes. It gets a song as this project
has it: unless instruments are kept apart, all parts but the drums are one; else the tracks are in the order of their
programs, the drums last. Meters of a single beat say nothing of bars and are read as 4/4, unless another one follows
after few beats, as behind a pickup: then these beats are a bar.
"""

import importlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import vocab
from ..errors import InputError
from ..kernels import meter, score
from ..kernels import miditok as kernel
from ..kernels.encode import MAX_BEATS, REASONS, TOO_LONG
from ..miditok_vocab import SPECIAL, TOKENIZATIONS, MidiTokVocabulary
from ..vocab import Scheme

# Numerators by denominator. Others are read as one with bars of the same length; MidiTok would ignore them.
METERS = {2: [1, 2, 3, 4, 6], 4: [*range(1, 13)], 8: [*range(1, 17)]}
LONG, LONGEST = 4, 12  # beats: durations from LONG on have half as many steps per beat, and end at LONGEST
FINEST = max(METERS) // 4  # steps of the grid for each position in a beat of a quarter note
INSTALL = 'MidiTok is not installed; pip install -e ".[miditok]"'


def _package(name: str = "miditok") -> Any:
    """MidiTok, or symusic, which it needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name != name:
            raise InputError(f"MidiTok can't be imported ({error}); install it again") from None
        raise InputError(INSTALL) from None


def make_vocabulary(tokenization: str, scheme: Scheme) -> MidiTokVocabulary:
    """The vocabulary of a tokenizer without merges.

    Args:
        scheme: `steps_per_beat` are the positions of a beat.

    Raises:
        InputError: MidiTok is not installed.
    """
    package, steps = _package(), scheme.steps_per_beat
    config = package.TokenizerConfig(
        pitch_range=(0, 127),
        drums_pitch_range=(0, 127),
        beat_res={(0, LONG): steps, (LONG, LONGEST): steps // 2},
        num_velocities=vocab.N_VELOCITIES,
        special_tokens=[name.split("_")[0] for name in SPECIAL],
        remove_duplicated_notes=True,
        encode_ids_split="no",
        use_velocities=scheme.velocities,
        use_time_signatures=True,
        time_signature_range=METERS,
        use_programs=scheme.multi,
        program_changes=scheme.multi,
        use_pitchdrum_tokens=scheme.multi,
    )
    tokenizer = getattr(package, tokenization)(config)
    on_grid = scheme._replace(steps_per_beat=FINEST * steps, align_beats=False)
    assert tokenizer.time_division == on_grid.steps_per_beat
    graph = tuple((kind, tuple(sorted(following))) for kind, following in sorted(tokenizer.tokens_types_graph.items()))
    return MidiTokVocabulary(on_grid, (), _parameters(tokenizer), _names(tokenizer), graph)


def _parameters(tokenizer: Any) -> str:
    return json.dumps(tokenizer.to_dict(), sort_keys=True)


def _names(tokenizer: Any) -> tuple[str, ...]:
    return tuple(sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__))


@lru_cache(maxsize=4)
def tokenizer_of(vocabulary: MidiTokVocabulary) -> Any:
    """MidiTok's tokenizer, with byte-pair encoding if the vocabulary has merges.

    Raises:
        InputError: MidiTok is not installed, or its version makes other tokens of these parameters.
    """
    package = _package()
    given = json.loads(vocabulary.parameters)
    # Nothing but these: MidiTok sets whatever else it reads as attributes of the tokenizer.
    names = ("config", "tokenization", "_vocab_base", "_model", "_vocab_base_byte_to_token")
    assert vocabulary.tokenization in TOKENIZATIONS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps({name: given[name] for name in names if name in given}))
        found: Any
        try:
            tokenizer = getattr(package, vocabulary.tokenization)(params=path)
            found = _names(tokenizer), _merges(tokenizer, vocabulary)
        except Exception as error:  # MidiTok does not check them
            found = error
    if found != (vocabulary.tokens, vocabulary.merges):
        why = f" ({type(found).__name__}: {found})" if isinstance(found, Exception) else ""
        raise InputError(
            f"MidiTok {given.get('miditok_version')} made this vocabulary, and the installed version makes other "
            f"tokens of its parameters{why}; install that one"
        )
    return tokenizer


def _merges(tokenizer: Any, vocabulary: MidiTokVocabulary) -> tuple[tuple[int, ...], ...]:
    """The base tokens of each learned token, in the order of their ids. Base tokens keep theirs."""
    if not tokenizer.is_trained:
        return ()
    n_base, number = len(vocabulary.tokens), {name: i for i, name in enumerate(vocabulary.tokens)}
    sequences = [_sequence([token], encoded=True) for token in range(tokenizer.vocab_size)]
    for sequence in sequences:
        tokenizer.decode_token_ids(sequence)
    return tuple(tuple(number[name] for name in sequence.tokens) for sequence in sequences[n_base:])


def _sequence(ids: Iterable[int], *, encoded: bool = False) -> Any:
    return _package().TokSequence(ids=list(ids), are_ids_encoded=encoded)


def learn(songs: Sequence[np.ndarray], vocabulary: MidiTokVocabulary, size: int) -> MidiTokVocabulary:
    """The vocabulary of this size, with the merges that MidiTok's byte-pair encoding finds in songs.

    Args:
        songs: base tokens, uint16 [n] each, from sos to eos.
    """
    tokenizer = tokenizer_of(vocabulary)
    # As MidiTok's own iterator over files does; a song is one word.
    words = [[tokenizer._ids_to_bytes(song[1:-1].tolist(), as_one_str=True)] for song in songs]
    trained = getattr(_package(), vocabulary.tokenization)(tokenizer.config)
    trained.train(size, "BPE", iterator=words)
    return MidiTokVocabulary(
        vocabulary.scheme, _merges(trained, vocabulary), _parameters(trained), vocabulary.tokens, vocabulary.graph
    )


def merge(tokens: np.ndarray, vocabulary: MidiTokVocabulary) -> tuple[np.ndarray, np.ndarray]:
    """A song's base tokens, from sos to eos, with merges.

    Returns:
        merged: uint16 [m].
        starts: int64 [m], the index of the first base token of each.
    """
    sequence = _sequence(tokens[1:-1].tolist())
    tokenizer_of(vocabulary).encode_token_ids(sequence)
    merged = np.array([tokens[0], *sequence.ids, tokens[-1]], np.uint16)
    lengths = [len(vocabulary.base_tokens[token]) for token in merged.tolist()]
    return merged, np.cumsum([0, *lengths[:-1]], dtype=np.int64)


def expand(tokens: np.ndarray, vocabulary: MidiTokVocabulary) -> np.ndarray:
    """The base tokens, uint16, of any tokens."""
    if not vocabulary.merges:
        return tokens
    parts = [part for token in tokens.tolist() for part in vocabulary.base_tokens[token]]
    return np.array(parts, np.uint16)


def tokens_of_file(data: bytes, vocabulary: MidiTokVocabulary) -> np.ndarray:
    """The base tokens of a MIDI file, uint16 [n] from sos to eos.

    Raises:
        InputError: MidiTok is not installed.
        ValueError: it can't read the file.
    """
    tokenizer = tokenizer_of(vocabulary)
    try:
        song = _package("symusic").Score.from_midi(data)
        too_long = song.end() > MAX_BEATS * song.ticks_per_quarter  # it would write a token for every bar
        tokens = np.zeros(0, np.uint16) if too_long else _tokens_of(song, tokenizer, vocabulary.scheme)
    except Exception as error:  # whatever MidiTok makes of one file is no reason to give up the others
        text = str(error).strip().split("\n")[0]
        raise ValueError(f"MidiTok can't read it ({type(error).__name__}: {text})") from None
    if too_long:
        raise ValueError(REASONS[TOO_LONG])
    return tokens


def tokens_of_notes(notes: np.ndarray, meters: np.ndarray, vocabulary: MidiTokVocabulary) -> np.ndarray:
    """The base tokens, uint16 [n] from sos to eos.

    Args:
        notes: int32 [N, 5] as `score.quantize` gives them.
        meters: int32 [m, 3]: time, numerator, denominator.
    """
    symusic, scheme = _package("symusic"), vocabulary.scheme
    song = symusic.Score(scheme.steps_per_beat)
    for part in np.unique(notes[:, score.PART]).tolist() if scheme.multi else [0]:
        mine = notes[notes[:, score.PART] == part] if scheme.multi else notes
        drums = part == vocab.DRUMS
        track = symusic.Track(program=0 if drums else part, is_drum=drums)
        columns = (score.ONSET, score.DURATION, score.PITCH, score.VELOCITY)
        names = ("time", "duration", "pitch", "velocity")
        mine = mine[np.lexsort((mine[:, score.PITCH], mine[:, score.DURATION], mine[:, score.ONSET]))]
        kinds = (np.int32, np.int32, np.int8, np.int8)
        arrays = {x: mine[:, i].astype(kind) for x, i, kind in zip(names, columns, kinds, strict=True)}
        track.notes = symusic.Note.from_numpy(**arrays)
        song.tracks.append(track)
    for time, top, bottom in meters.tolist():
        if known := _known_meter(top, bottom):
            song.time_signatures.append(symusic.TimeSignature(time, *known))
    return _tokens_of(song, tokenizer_of(vocabulary), scheme)


def _known_meter(top: int, bottom: int) -> tuple[int, int] | None:
    """The meter, or one with bars of its length, in quarter notes if there is one."""
    same = [(x, y) for y, numerators in METERS.items() for x in numerators if x * bottom == y * top]
    if (top, bottom) in same:
        return top, bottom
    return min(same, key=lambda meter: (meter[0] == 1, abs(meter[1] - 4)), default=None)


def _bars(meters: Sequence[tuple[int, int, int]], ticks_per_beat: int) -> list[tuple[int, int, int]]:
    """Known meters, each a time, a numerator and a denominator, without those of a single beat that is not a bar."""
    kept: list[tuple[int, int, int]] = []
    for time, top, bottom in meters:
        known = _known_meter(top, bottom)
        if kept and kept[-1][0] == time:
            kept.pop()
        if known and not (kept and kept[-1][1:] == known):
            kept.append((time, *known))
    bars = []
    for i, (time, top, bottom) in enumerate(kept):
        if top == 1:
            beats = (kept[i + 1][0] - time) * bottom / (4 * ticks_per_beat) if i + 1 < len(kept) else 0
            top, bottom = (int(beats), bottom) if beats in METERS[bottom] else (4, 4)
        bars.append((time, top, bottom))
    return bars


def _tokens_of(song: Any, tokenizer: Any, scheme: Scheme) -> np.ndarray:
    sequence = tokenizer.encode(prepared(song, scheme), encode_ids=False)
    ids = (sequence if scheme.multi else sequence[0]).ids
    return np.array([vocab.SOS, *ids, vocab.EOS], np.uint16)


def prepared(song: Any, scheme: Scheme) -> Any:
    """A song as MidiTok gets it: a copy of a Score of symusic."""
    song = song.copy()
    if scheme.multi:
        song.tracks.sort(key=lambda track: (track.is_drum, track.program))
    else:
        melody = _package("symusic").Track()
        for track in song.tracks:
            if not track.is_drum:
                melody.notes.extend(track.notes)
        melody.notes.sort()
        song.tracks = [melody]
    meters = [(x.time, x.numerator, x.denominator) for x in song.time_signatures]
    bars = _bars(meters, song.ticks_per_quarter)
    song.time_signatures = [_package("symusic").TimeSignature(*meter) for meter in bars]
    return song


def read(tokens: np.ndarray, vocabulary: MidiTokVocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What base tokens say.

    Returns:
        notes: int32 [N, 5], as `score.quantize` gives and orders them.
        times: int32 [n], the time of each token, as in `Clock`.
        meters: int32 [m, 3]: time, numerator, denominator.
    """
    notes, times, changes = kernel.read_tokens(tokens, vocabulary.reading)
    part = notes[:, score.PART] if vocabulary.scheme.multi else np.zeros(len(notes), np.int32)
    order = np.lexsort((-notes[:, score.PITCH], part, notes[:, score.ONSET]))
    meters = np.array(vocabulary.meters, np.int32).reshape(-1, 2)[changes[:, 1]]
    return notes[order], times, np.column_stack((changes[:, 0], meters)).astype(np.int32)


def places_of(tokens: np.ndarray, bars: np.ndarray, vocabulary: MidiTokVocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The bar of each of a song's base tokens, and its position in the bar, both uint16 [n].

    Args:
        bars: int64 [n, 3] of `meter.meter_map`.
    """
    _, times, _ = read(tokens, vocabulary)
    bar, position = meter.bar_positions(times, bars)
    return np.minimum(bar, 0xFFFF).astype(np.uint16), position.astype(np.uint16)
