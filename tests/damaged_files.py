"""MIDI files damaged at random, and malicious ones: for the tests and for benchmarks/damaged.py."""

import random

from smf_files import END, chunk, file_of, header, meta, variable_length


def damage(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """One to four kinds of damage, each at a random offset."""
    broken = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        n = len(broken)
        at, size = dice.randrange(n + 1), dice.choice((1, 1, 2, 4, 16, 64))
        match dice.randrange(8):
            case 0:
                for where in dice.choices(range(n), k=size) if n else ():
                    broken[where] ^= 1 << dice.randrange(8)
            case 1:
                broken[at : at + size] = dice.randbytes(size)
            case 2:
                del broken[at:]
            case 3:
                del broken[at : at + size]
            case 4:
                broken[at:at] = dice.choice((dice.randbytes(size), broken[at - size : at], bytes(size)))
            case 5:
                other = dice.choice(others)
                broken[at:] = other[dice.randrange(len(other)) :]
            case 6:  # the length in a chunk's header
                names = [i for name in (b"MThd", b"MTrk", b"RIFF") if (i := broken.find(name, at)) >= 0]
                if names and (name := dice.choice(names)) + 8 <= n:
                    true = int.from_bytes(broken[name + 4 : name + 8], "big")
                    wrong = dice.choice(
                        (0, 1, 3, 0xFFFFFFFF, 1 << 31, n, true + dice.randint(-9, 9), dice.getrandbits(32))
                    )
                    broken[name + 4 : name + 8] = (wrong & 0xFFFFFFFF).to_bytes(4, "big")
            case 7:  # a variable length, that of a meta event where one follows
                event = broken.find(0xFF, at)
                at = event + 2 if event >= 0 and dice.random() < 0.5 else at
                length = variable_length(dice.getrandbits(dice.choice((7, 14, 28, 35))))
                broken[at : at + dice.choice((1, len(length)))] = length
    return bytes(broken)


# Files of four megabytes, twice the size limit of the encoder, made to take much time or memory.
MEGABYTES = 4 << 20


def fill(unit: bytes) -> bytes:
    return unit * (MEGABYTES // len(unit))


def note_ons(keys: list[int], delta: int = 0) -> bytes:
    return b"\0\x90\0\0" + fill(b"".join(bytes([delta, key, 1 + key % 127]) for key in keys))


def changes(kind: int, payloads: list[bytes], delta: int = 1) -> bytes:
    return fill(b"".join(bytes([delta]) + meta(kind, payload) for payload in payloads))


def tracks(*bodies: bytes, division: int = 96) -> bytes:
    return header(1, 1, division) + b"".join(chunk(b"MTrk", body) for body in bodies)


def shuffled_keys() -> list[int]:
    return random.Random(0).choices(range(128), k=1 << 16)


METERS = [bytes([2 + n % 11, n % 8, 24, 8]) for n in range(60)]
TEMPOS = [bytes([1 + n, 2, 3]) for n in range(60)]
TUNE = b"".join(bytes([96, 0x90, key, 64, 96, key, 0]) for key in (60, 62, 64, 65))
MALICIOUS = {
    "notes of one key that never end": lambda: file_of(note_ons([60], 1)),
    "notes of one key that never end, all at once": lambda: file_of(note_ons([60])),
    "notes of one key that end last of all": lambda: file_of(
        b"\0\x90\0\0" + b"\0\x3c\1" * (MEGABYTES // 6) + b"\1\x3c\0" * (MEGABYTES // 6)
    ),
    "ascending notes all at once": lambda: file_of(note_ons(list(range(128)))),
    "descending notes all at once": lambda: file_of(note_ons(list(range(127, -1, -1)))),
    "organ pipes all at once": lambda: file_of(note_ons([*range(0, 128, 2), *range(127, 0, -2)])),
    "shuffled notes all at once": lambda: file_of(note_ons(shuffled_keys())),
    "ascending notes, a few thousand at a time": lambda: file_of(
        b"\0\x90\0\0" + fill(b"".join(bytes([12 if i == 0 else 0, i % 128, 99]) for i in range(4000)))
    ),
    "notes at the last tick": lambda: file_of((b"\xff\xff\xff\x7f\xff\1\0") * 5 + note_ons([60, 61]), division=1),
    "one note at the last tick": lambda: file_of(
        (b"\xff\xff\xff\x7f\xff\1\0") * 5 + b"\0\x90\x3c\x40\1\x3c\0", division=1
    ),
    "tracks of one note each": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40" + END)),
    "tracks declared to be empty": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40", declared=0)),
    "tracks declared to be endless": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"", declared=0xFFFFFFFF)),
    "broken tracks declared to be endless": lambda: (
        header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\x90\x3c\x40\0\xf8", declared=0xFFFFFFFF))
    ),
    "tracks that each reach to the last": lambda: (
        header(1, 1, 96)
        + b"".join(chunk(b"MTrk", b"\xf8", declared=max(9 * i - 8, 1)) for i in reversed(range(MEGABYTES // 9)))
    ),
    "events of a length beyond the file": lambda: header(1, 1, 96) + fill(chunk(b"MTrk", b"\0\xff\1\xff\xff\xff\x7f")),
    "no track at all": lambda: header(1, 1, 96) + fill(b"MTr"),
    "chunks of RIFF without data": lambda: b"RIFF\0\0\0\0RMID" + fill(b"LIST\0\0\0\0"),
    "tempos": lambda: tracks(changes(0x51, TEMPOS), TUNE),
    "tempos in descending order, track by track": lambda: tracks(
        *(variable_length(500_000 - i) + meta(0x51, TEMPOS[i % 60]) for i in range(MEGABYTES // 18)), TUNE
    ),
    "tempos all at once": lambda: tracks(changes(0x51, TEMPOS, 0), TUNE),
    "meters": lambda: tracks(changes(0x58, METERS), TUNE),
    "the shortest meters, between notes": lambda: file_of(fill(b"\x60\xff\x58\2\2\2\0\x90\x3c\x40\1\x3e\x40")),
    "notes that end at once": lambda: file_of(b"\0\x90\0\0" + fill(b"\0\x3c\1\0\x3c\0")),
}
