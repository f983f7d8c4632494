"""Prompts and continuations of the MIREX 2025 task Symbolic Music Generation, as its JSON files.

The task (https://www.music-ir.org/mirex/wiki/2025:Symbolic_Music_Generation): four bars of piano music in 4/4 and a
pickup before them, which may be empty, are continued by twelve bars. Times and durations are whole sixteenth notes,
counted from the beginning of the pickup's bar. A prompt holds notes that begin at 0 to 79 under the key "prompt", a
continuation those at 80 to 271 under the key "generation":

    {"prompt": [{"start": 16, "pitch": 72, "duration": 6}, …]}
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import write_text
from ..kernels import score, smf
from ..vocab import Scheme
from .harmony import pitched
from .song import Prompt, Song, new_song

SIXTEENTHS = 16  # in a bar
PROMPT_END, END = 5 * SIXTEENTHS, 17 * SIXTEENTHS
NEW_BARS = 12
PIANO = 0  # the program
_DIVISION = 4  # sixteenths to a quarter note
_RANGES = {"start": range(PROMPT_END), "pitch": range(128), "duration": range(1, END + 1)}


def read_prompt(path: Path, scheme: Scheme) -> Prompt:
    """Reads a prompt of the task; the bar of a pickup that is empty is left out.

    Raises:
        InputError: it can't be read, or is no such prompt.
    """
    fix = 'give a prompt of the MIREX task: {"prompt": [{"start": 16, "pitch": 72, "duration": 6}, ...]}'
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {fix}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON file ({error}); {fix}") from None
    notes = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(notes, list) or not notes:
        raise InputError(f"{path}: has no notes under the key prompt; {fix}")
    rows = np.zeros((len(notes), 7), np.int32)  # as of `read_smf`
    for i, note in enumerate(notes):
        start, pitch, duration = _checked(note, i, path)
        rows[i, [smf.ONSET, smf.PITCH, smf.DURATION]] = start, pitch, duration
    rows[:, smf.PROGRAM], rows[:, smf.VELOCITY] = PIANO, score.DEFAULT_VELOCITY
    empty = 0 if (rows[:, smf.ONSET] < SIXTEENTHS).any() else SIXTEENTHS
    rows[:, smf.ONSET] -= empty
    grid = score.quantize(rows, _DIVISION, scheme)
    if len(grid) == 0:
        raise InputError(f"{path}: the model's vocabulary has none of its pitches; give another prompt")
    return Prompt(new_song(scheme)._replace(notes=grid), (PROMPT_END - empty) * scheme.steps_per_beat // _DIVISION)


def _checked(note: Any, number: int, path: Path) -> list[int]:
    """The start, pitch and duration of a note."""
    for name, allowed in _RANGES.items():
        value = note.get(name) if isinstance(note, dict) else None
        if type(value) is not int or value not in allowed:
            raise InputError(
                f"{path}: note {number + 1} has the {name} {value!r}; give a whole number from {allowed[0]} to "
                f"{allowed[-1]}, in sixteenths or as a MIDI number"
            )
    return [note[name] for name in _RANGES]


def generation(song: Song, start: int) -> dict[str, list[dict[str, int]]]:
    """The notes from a time on, at which the continuation begins, as the task's JSON.

    Each is moved to the nearest sixteenth; of several of one pitch there the longest is kept.

    Args:
        start: in grid steps.
    """
    notes = pitched(song)
    notes = notes[notes[:, 0] >= start].astype(np.int64)
    per_sixteenth = song.scheme.steps_per_beat / _DIVISION
    onsets = PROMPT_END + np.rint((notes[:, 0] - start) / per_sixteenth).astype(np.int64)
    durations = np.maximum(np.rint(notes[:, 1] / per_sixteenth).astype(np.int64), 1)
    longest: dict[tuple[int, int], int] = {}
    for onset, pitch, duration in zip(onsets.tolist(), notes[:, 2].tolist(), durations.tolist(), strict=True):
        if onset < END:
            longest[onset, pitch] = max(longest.get((onset, pitch), 0), min(duration, END - onset))
    return {
        "generation": [
            {"start": onset, "pitch": pitch, "duration": duration}
            for (onset, pitch), duration in sorted(longest.items(), key=lambda item: (item[0][0], -item[0][1]))
        ]
    }


def write_generation(path: Path, song: Song, start: int) -> None:
    """Writes `generation` to a file."""
    write_text(path, json.dumps(generation(song, start), indent=1) + "\n")
