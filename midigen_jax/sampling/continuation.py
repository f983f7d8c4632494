"""The result of sampling: a song with a part of its own, to be looked at, played and continued."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .. import vocab
from ..music import audio
from ..music.midi import write_song
from ..music.piano_roll import draw
from ..music.quality import Fault, find_faults
from ..music.song import Song, excerpt
from ..vocab import Vocabulary
from .session import Session


@dataclass(frozen=True, repr=False)
class Continuation:
    """One row of what was sampled."""

    song: Song  # from its beginning
    start: int  # the time at which new music begins, in grid steps
    session: Session  # continues from here
    row: int
    vocabulary: Vocabulary

    @property
    def stopped(self) -> str:
        """Why it stopped."""
        row = self.session.rows[self.row]
        if row.tokens[-1] == vocab.EOS:
            return "ended by itself"
        return "at the bar line" if row.next_time >= row.end else "cut off (too many notes, or interrupted)"

    @property
    def new_notes(self) -> int:
        return int((self.song.notes[:, 0] >= self.start).sum())

    @cached_property
    def faults(self) -> list[Fault]:
        """What is wrong with the new music at first sight, beside the music before it; nothing if it has no notes."""
        if self.new_notes == 0:
            return []
        bar = self.song.bar_of(self.start)
        new = excerpt(self.song, bar, max(self.song.bar_of(self.song.end) - bar, 0) + 1)
        return find_faults(new, excerpt(self.song, 0, bar) if bar else None)

    def summary(self) -> str:
        """Bars, notes, seconds, why it stopped, and its faults, in one line."""
        end = self.session.rows[self.row].end if self.stopped == "at the bar line" else self.song.end
        end = max(end, self.start)  # it may have ended at once
        seconds = self.song.seconds_at(end) - self.song.seconds_at(self.start)
        bars = self.song.bar_of(end - 1) + 1 - self.song.bar_of(self.start)
        notes = self.new_notes
        density = notes / max(seconds, 1e-9)
        faults = "".join(f"; {fault.text}" for fault in self.faults)
        return f"{bars} bars, {notes} notes in {seconds:.1f} s ({density:.1f} per second), {self.stopped}{faults}"

    def __repr__(self) -> str:
        return f"<Continuation: {self.summary()}>"

    def save(self, stem: Path | str, *, title: str = "") -> None:
        """Writes stem.mid, stem.png and stem.wav; a stem that ends in .mid is taken without it."""
        stem = Path(stem).with_suffix("") if Path(stem).suffix == ".mid" else Path(stem)
        write_sample(self.song, stem, prompt_end=self.start or None, title=title or stem.name)

    def save_state(self, path: Path | str) -> None:
        """Writes all that this song, or others from here, can be continued from."""
        self.session.select([self.row]).save(Path(path))

    def _repr_png_(self) -> bytes | None:
        """The piano roll, which a notebook shows."""
        if len(self.song.notes) == 0:
            return None
        picture = io.BytesIO()
        draw(picture, self.song, prompt_end=self.start or None, title=self.summary())
        return picture.getvalue()


def best_of(takes: Sequence[Continuation], num: int) -> list[Continuation]:
    """Of takes i, i + num, i + 2 num, ... the one with the fewest and smallest faults, for each i below `num`.

    One without notes is the worst.
    """
    if num == len(takes):
        return list(takes)

    def badness(take: Continuation) -> tuple[bool, float]:
        return take.new_notes == 0, sum((fault.excess for fault in take.faults), 0.0)

    return [min(takes[i::num], key=badness) for i in range(num)]


def write_sample(song: Song, stem: Path, *, prompt_end: int | None, title: str) -> None:
    """Writes stem.mid, stem.png and stem.wav. `prompt_end` is None for an invention."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    midi, picture, sound = (stem.with_name(stem.name + suffix) for suffix in (".mid", ".png", ".wav"))
    write_song(midi, song)
    draw(picture, song, prompt_end=prompt_end, title=title)
    audio.wav(midi, sound)
