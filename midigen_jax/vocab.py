"""The base vocabulary of MIDIGen: 389 tokens.

A song is `sos`, then events of two tokens each, then `eos`. An event is a note and its duration or a rest (`sep`) and
its duration; the notes between two rests begin together. Durations count steps of the grid.
"""

import numpy as np

SOS, EOS, PAD, SEP = range(4)
NOTE_0 = 4
DURATION_0 = NOTE_0 + 128
MAX_DURATION = 256  # steps
SIZE = DURATION_0 + MAX_DURATION + 1

NAMES = (
    "sos",
    "eos",
    "pad",
    "sep",
    *(f"n{pitch}" for pitch in range(128)),
    *(f"d{steps}" for steps in range(MAX_DURATION + 1)),
)

_ids = np.arange(SIZE)
IS_NOTE = (_ids >= NOTE_0) & (_ids < DURATION_0)
IS_EVENT_HEAD = (_ids == SEP) | IS_NOTE
IS_DURATION = _ids > DURATION_0  # an event lasts at least one step, so d0 never occurs
