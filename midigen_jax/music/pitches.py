"""Names of pitches, keys and instruments. Imports no Numba, so that commands can check their arguments quickly."""

import re

from .. import vocab
from ..errors import InputError

_PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 8, 9, 10, 11),
}


def _pitch_class(name: str) -> int | None:
    """0 for C; None if it is not the name of a pitch class."""
    letter, accidentals = name[:1].upper(), name[1:].replace("♯", "#").replace("♭", "b")
    if letter not in _PITCH_CLASSES or accidentals.strip("#b"):
        return None
    return (_PITCH_CLASSES[letter] + accidentals.count("#") - accidentals.count("b")) % 12


def parse_pitch(text: str) -> int:
    """A MIDI number, or a name such as C4 (60), F#3 or Bb-1.

    Raises:
        InputError: it is neither.
    """
    number = int(text) if text.isdecimal() else -1
    if found := re.fullmatch(r"([A-Ga-g][#b♯♭]*)(-?\d)", text):
        pitch_class = _pitch_class(found[1])
        assert pitch_class is not None
        number = 12 * (int(found[2]) + 1) + pitch_class
    if not 0 <= number <= 127:
        raise InputError(f"{text}: no pitch; give a MIDI number from 0 to 127, or a name such as C4 or F#3")
    return number


def parse_key(text: str) -> tuple[int, ...]:
    """The pitch classes of a key such as "C major", "F# minor" (natural), "F# harmonic minor" or "F# melodic minor".

    Raises:
        InputError: it is not a key.
    """
    tonic, _, mode = text.strip().partition(" ")
    pitch_class, intervals = _pitch_class(tonic), _MODES.get(mode.strip().lower() or "major")
    if pitch_class is None or intervals is None:
        raise InputError(f'{text}: no key; give one such as "C major" or "F# minor"')
    return tuple(sorted((pitch_class + interval) % 12 for interval in intervals))


def parse_instruments(text: str) -> tuple[int, ...]:
    """Programs such as "0,32,drums".

    Raises:
        InputError: they are not programs.
    """
    programs = []
    for word in text.split(","):
        word = word.strip()
        if word != "drums" and not (word.isdecimal() and int(word) < vocab.DRUMS):
            raise InputError(f"{text}: give programs from 0 to 127, and drums, such as 0,32,drums")
        programs.append(vocab.DRUMS if word == "drums" else int(word))
    return tuple(programs)


def fitting_shift(lowest: int, highest: int, semitones: int) -> int:
    """The semitones upwards or, where these pitches would be too high, downwards; 0 if they fit neither way."""
    if highest + semitones <= 127:
        return semitones
    return -semitones if lowest >= semitones else 0


def pitch_name(pitch: int) -> str:
    """A MIDI pitch's name: 60 is C4, 61 is C♯4."""
    octave, pitch_class = divmod(int(pitch), 12)
    return f"{_NAMES[pitch_class]}{octave - 1}"
