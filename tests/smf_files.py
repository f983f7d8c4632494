"""MIDI files byte by byte, as no library would write them."""

import os
import random
from collections.abc import Iterable
from pathlib import Path

END = b"\0\xff\x2f\0"  # of a track


def variable_length(value: int) -> bytes:
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def meta(kind: int, payload: bytes = b"") -> bytes:
    return bytes([0xFF, kind]) + variable_length(len(payload)) + payload


def exclusive(payload: bytes, status: int = 0xF0) -> bytes:
    return bytes([status]) + variable_length(len(payload)) + payload


def events(timed: Iterable[tuple[int, bytes, bool]]) -> bytes:
    """Track bytes of events: a delta time, a message, and whether running status may be used for it."""
    written, status = bytearray(), None
    for delta, message, running in timed:
        written += variable_length(delta)
        written += message[1:] if running and message[0] == status else message
        if message[0] != 0xFF:  # mido, too, keeps it after a meta event, but not after a system exclusive one
            status = message[0] if message[0] < 0xF0 else None
    return bytes(written)


def chunk(name: bytes, body: bytes, *, declared: int | None = None) -> bytes:
    return name + (len(body) if declared is None else declared).to_bytes(4, "big") + body


def header(kind: int, n_tracks: int, division: int, *, more: bytes = b"", declared: int | None = None) -> bytes:
    fields = b"".join(field.to_bytes(2, "big") for field in (kind, n_tracks, division))
    return chunk(b"MThd", fields + more, declared=declared)


def file_of(*tracks: bytes, kind: int = 1, division: int = 96) -> bytes:
    """A file of tracks, to each of which an end of track is appended."""
    return header(kind, len(tracks), division) + b"".join(chunk(b"MTrk", track + END) for track in tracks)


def random_file(dice: random.Random, n_events: int = 300) -> bytes:
    """A file with events of all kinds, mostly notes of few keys, so that they overlap."""
    tracks = []
    for _ in range(dice.randint(1, 4)):
        timed = []
        for _ in range(dice.randint(0, n_events)):
            on_channel = dice.choice((0, 1, 9))
            key, value = dice.randint(58, 70), dice.choice((0, dice.randint(1, 127)))
            message = dice.choice(
                [bytes([0x90 | on_channel, key, value])] * 8
                + [bytes([0x80 | on_channel, key, value])] * 4
                + [
                    bytes([0xC0 | on_channel, key]),
                    bytes([dice.choice((0xA0, 0xB0, 0xE0)) | on_channel, key, value]),
                    bytes([0xD0 | on_channel, value]),
                    meta(0x51, dice.randint(0, 1_000_000).to_bytes(3, "big")),
                    meta(0x58, bytes([dice.randint(0, 7), dice.randint(0, 4), 24, 8])),
                    meta(dice.randint(1, 7), dice.randbytes(dice.randint(0, 200))),
                    exclusive(dice.randbytes(dice.randint(0, 5)) + b"\xf7"),
                ]
            )
            timed.append((dice.choice((0, 1, 48, 48, 96, 100, 1000)), message, dice.random() < 0.8))
        tracks.append(events(timed))
    return file_of(*tracks, kind=dice.randint(0, 2), division=dice.choice((24, 96, 480, 0xE728)))


def real_files() -> list[Path]:
    """The MIDI files below the folder that the environment variable MIDIGEN_MIDI names, if it is set."""
    folder = os.environ.get("MIDIGEN_MIDI")
    return sorted(Path(folder).rglob("*.[mM][iI][dD]")) if folder else []
