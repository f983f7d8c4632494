"""What sampling gives: a song with a part of its own, to be looked at, played and gone on from."""

import io
from dataclasses import dataclass
from pathlib import Path

from . import held as holding
from . import render, vocab
from .cli import InputError
from .cursor import NEVER
from .held import Held
from .kernels import meter
from .midi import write_song
from .song import Song
from .vocab import Vocabulary

DEFAULT_BARS = 16


@dataclass(frozen=True)
class Length:
    """How much to add, in bars or in seconds up to the next bar line, and from where on the song may end by itself."""

    bars: int | None = None
    seconds: float | None = None
    min_bars: int | None = None
    min_seconds: float | None = None
    eos: bool = False

    def __post_init__(self) -> None:
        for name in ("bars", "seconds"):
            value, least = getattr(self, name), getattr(self, f"min_{name}")
            if value is not None and not value > 0:
                raise InputError(f"{name} {value}: give a number above 0")
            if least is not None and not least >= 0:
                raise InputError(f"min-{name} {least}: give at least 0")
            if least is not None and not self.eos:
                raise InputError(f"min-{name} {least}: goes with eos, which lets a song end by itself")
        if self.bars is not None and self.seconds is not None:
            raise InputError("give bars or seconds, not both")

    def span(self, song: Song, begins: int) -> tuple[int, int]:
        """The steps from which on the song may end, and at which it stops, if what is new begins at a step.

        Raises:
            InputError: there is no such time.
        """
        bar, time, longest = song.bar_of(begins), song.seconds_at(begins), song.seconds_at(meter.MAX_STEP)

        def bars_on(bars: int) -> int:
            return song.bar_start(bar + min(bars, meter.MAX_STEP))  # a bar has at least one step

        def seconds_on(seconds: float) -> int:
            return song.step_at(min(time + seconds, longest))

        if self.seconds is None:
            end = bars_on(self.bars or DEFAULT_BARS)
        else:
            end = song.bar_start(song.bar_of(seconds_on(self.seconds) - 1) + 1)
        least = max(bars_on(self.min_bars or 0), seconds_on(self.min_seconds or 0.0))
        if end >= meter.MAX_STEP:
            raise InputError(f"the song would be longer than {meter.MAX_STEP:,} steps; give fewer bars or seconds")
        if self.eos and least >= end:
            raise InputError("min-bars or min-seconds: the song stops before; give less, or leave out eos")
        return (least if self.eos else NEVER), end


@dataclass(frozen=True, repr=False)
class Continuation:
    """One row of what was sampled."""

    song: Song  # from its beginning on
    begins: int  # the step at which what is new begins
    held: Held  # goes on from here
    row: int
    vocabulary: Vocabulary

    @property
    def stopped(self) -> str:
        """Why it stopped."""
        row = self.held.rows[self.row]
        if row.tokens[-1] == vocab.EOS:
            return "ended by itself"
        return "at the bar line" if row.now >= row.end else "cut off (too many notes, or interrupted)"

    @property
    def new_notes(self) -> int:
        return int((self.song.notes[:, 0] >= self.begins).sum())

    def summary(self) -> str:
        """Bars, notes, seconds, and why it stopped, in a line."""
        end = self.held.rows[self.row].end if self.stopped == "at the bar line" else self.song.n_steps
        end = max(end, self.begins)  # it may have ended at once
        seconds = self.song.seconds_at(end) - self.song.seconds_at(self.begins)
        bars = self.song.bar_of(end - 1) + 1 - self.song.bar_of(self.begins)
        notes = self.new_notes
        return (
            f"{bars} bars, {notes} notes in {seconds:.1f} s ({notes / max(seconds, 1e-9):.1f} a second), {self.stopped}"
        )

    def __repr__(self) -> str:
        return f"<Continuation: {self.summary()}>"

    def save(self, stem: Path | str, *, title: str = "") -> None:
        """Writes stem.mid, stem.png and stem.wav."""
        write_sample(self.song, Path(stem), prompt_end=self.begins or None, title=title or Path(stem).name)

    def save_state(self, path: Path | str) -> None:
        """Writes all that this song, or others from here, can go on from."""
        holding.save(Path(path), self.held.take([self.row]))

    def _repr_png_(self) -> bytes | None:
        """The piano roll, which a notebook shows."""
        if len(self.song.notes) == 0:
            return None
        picture = io.BytesIO()
        draw(picture, self.song, prompt_end=self.begins or None, title=self.summary())
        return picture.getvalue()


def draw(target: Path | io.BytesIO, song: Song, *, prompt_end: int | None, title: str) -> None:
    onset, duration, pitch, *_ = song.notes.T
    render.piano_roll(
        target,
        onset,
        duration,
        pitch,
        bar_lines=song.bar_lines(song.n_steps),
        prompt_end=prompt_end,
        steps_per_beat=song.scheme.steps_per_beat,
        title=title,
    )


def write_sample(song: Song, stem: Path, *, prompt_end: int | None, title: str) -> None:
    """Writes stem.mid, stem.png and stem.wav. `prompt_end` is None for an invention."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    midi, picture, sound = (stem.with_name(stem.name + suffix) for suffix in (".mid", ".png", ".wav"))
    write_song(midi, song)
    draw(picture, song, prompt_end=prompt_end, title=title)
    render.wav(midi, sound)
