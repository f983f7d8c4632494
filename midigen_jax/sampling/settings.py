"""What a user sets for a generation. Light: imports no JAX, so that commands can check arguments first."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .. import vocab
from ..errors import InputError
from ..music.pitches import parse_instruments, parse_key, parse_pitch

MAX_PHRASE_BARS = 128
MAX_DENSITY = 1000
MAX_LOOP_BARS = 10_000  # fewer than 2^31 grid steps
DEFAULT_BARS = 16
MAX_ROWS = 4096  # continuations at once


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are drawn; the defaults are those of `sample.py`."""

    # With a memory by alignment, temperature and top-p are of what the song's past does not suggest; else of all. With
    # one of keys alone, which is confident already, music runs into loops below 1.
    temperature: float = 1.0
    copy: float = 0.5  # how readily the song's past is taken up: 0 not at all, 1 as much as fits, 0.5 about as learned
    top_k: int = 0  # draw from this many most likely tokens; 0: all; 1: greedy, at any temperature
    top_p: float = 0.97  # from the most likely that together have this probability (Holtzman et al. 2020); 1: all
    min_p: float = 0.0  # from those at least this share as likely as the most likely (Nguyen et al. 2024)
    phrase_bars: int = 4  # the past of so many bars ago, or a multiple, is taken up more readily; 0: as learned
    # Maximum bars of silence, and of a loop with a period of up to four bars, also if it varies by a note or so; 0: no
    # limit.
    loop_bars: int = 8
    # Notes in a bar: at most so many times those of the prompt's fullest bar, or of the fullest bars of the training
    # songs if these have more; 0: no limit.
    max_density: float = 1.5
    lowest: int = 0  # pitches; drums are exempt
    highest: int = 127
    key: tuple[int, ...] = tuple(range(12))  # pitch classes, 0 for C; drums are exempt
    instruments: tuple[int, ...] = ()  # programs from 0, vocab.DRUMS for the drums; empty: all

    def __post_init__(self) -> None:
        for names, kinds, what in (
            (("temperature", "copy", "top_p", "min_p", "max_density"), int | float, "a number"),
            (("top_k", "phrase_bars", "loop_bars"), int, "a whole number"),
        ):
            for name in names:
                if not isinstance(value := getattr(self, name), kinds):
                    raise InputError(f"{name.replace('_', '-')} {value!r}: give {what}")
        if not 1e-3 <= self.temperature <= 1e3:  # beyond, logits overflow
            raise InputError(f"temperature {self.temperature}: give a number above 0, from 0.001 to 1000")
        if not 0 <= self.copy <= 1:
            raise InputError(f"copy {self.copy}: give a number from 0 (nothing of its past) to 1 (as much as fits)")
        if self.top_k < 0:
            raise InputError(f"top-k {self.top_k}: give how many tokens to draw from, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p {self.top_p}: give a number above 0, up to 1 for all tokens")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min-p {self.min_p}: give a number from 0 to 1")
        if not 0 <= self.phrase_bars <= MAX_PHRASE_BARS:
            raise InputError(f"phrase-bars {self.phrase_bars}: give up to {MAX_PHRASE_BARS} bars, or 0 for none")
        if self.loop_bars != 0 and not 2 <= self.loop_bars <= MAX_LOOP_BARS:
            raise InputError(f"loop-bars {self.loop_bars}: give 2 to {MAX_LOOP_BARS} bars, or 0 to allow any loop")
        if not 0 <= self.max_density <= MAX_DENSITY:
            raise InputError(f"max-density {self.max_density}: give a number from 0, no limit, to {MAX_DENSITY}")
        if not set(self.key) <= set(range(12)):
            raise InputError(f"key {self.key}: give pitch classes from 0 to 11")
        if not set(self.instruments) <= set(range(vocab.N_INSTRUMENTS)):
            raise InputError(f"instruments {self.instruments}: give programs from 0 to 127, or {vocab.DRUMS} for drums")
        if self.lowest > self.highest:
            raise InputError(f"lowest {self.lowest} is above highest {self.highest}; swap them")
        pitches = [p for p in range(max(self.lowest, 0), min(self.highest, 127) + 1) if p % 12 in self.key]
        if not pitches:
            raise InputError(f"no pitch from {self.lowest} to {self.highest} is in the key; give a wider range")

    @classmethod
    def parse(cls, **settings: Any) -> "GenerationSettings":
        """Settings whose pitches, key and instruments may be text, such as C4, "D minor" and "0,32,drums".

        Raises:
            InputError: they can't be used.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise InputError(f"{name}: no such setting; there are {', '.join(known)}")
        parsers = {"lowest": parse_pitch, "highest": parse_pitch, "key": parse_key, "instruments": parse_instruments}
        for name, parse in parsers.items():
            if isinstance(settings.get(name), str):
                try:
                    settings[name] = parse(settings[name])
                except InputError as error:
                    raise InputError(f"{name} {error}") from None
        return cls(**settings)


DEFAULTS = GenerationSettings()


def check_rows(num: int | None) -> None:
    """Raises InputError if this many continuations can't be sampled at once."""
    if num is not None and not 1 <= num <= MAX_ROWS:
        raise InputError(f"num {num}: give a number from 1 to {MAX_ROWS}")


def check_best_of(best_of: int) -> None:
    """Raises InputError if this is no number of takes to choose from."""
    if best_of < 1:
        raise InputError(f"best-of {best_of}: give how many to choose from, 1 or more")


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that JAX or NumPy would not take."""
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed {seed}: give a whole number from 0 to {(1 << 32) - 1}")


@dataclass(frozen=True)
class Length:
    """How much to add, in bars or in seconds up to the next bar line, and from where on the song may end early."""

    bars: int | None = None
    seconds: float | None = None
    min_bars: int | None = None
    min_seconds: float | None = None
    eos: bool = False

    def __post_init__(self) -> None:
        for name in ("bars", "seconds"):
            value, least = getattr(self, name), getattr(self, f"min_{name}")
            for given, number in ((name, value), (f"min-{name}", least)):
                if number is not None and not isinstance(number, int if name == "bars" else int | float):
                    kind = "a whole number" if name == "bars" else "a number"
                    raise InputError(f"{given} {number!r}: give {kind}")
            if value is not None and not value > 0:
                raise InputError(f"{name} {value}: give a number above 0")
            if least is not None and not least >= 0:
                raise InputError(f"min-{name} {least}: give at least 0")
            if least is not None and not self.eos:
                raise InputError(f"min-{name} {least}: only with eos, which lets a song end early")
        if self.bars is not None and self.seconds is not None:
            raise InputError("give bars or seconds, not both")
