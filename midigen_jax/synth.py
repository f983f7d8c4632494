"""A small player of SoundFont 2 files: notes of a MIDI file to sound, with NumPy alone.

Zones, tuning, loops, volume envelopes, attenuation and panning follow the SoundFont 2.04 specification;
filters stand still at their widest; modulators, low-frequency oscillators, pitch bends and effects are left
out. The sound font is TimGM6mb, which the package pretty_midi ships.

Not symusic's synthesizer: in symusic 0.6.0 `render` raises TypeError, since its result has no Python type.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np

_DRUMS = 9  # the channel of General MIDI's drums
_LONGEST_RELEASE = 3.0  # seconds
# Numbers of the SoundFont's generators, section 8.1.2.
_FILTER_ENVELOPE, _FILTER = 11, 8
_PAN, _DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 17, 33, 34, 35, 36, 37, 38
_INSTRUMENT, _KEYS, _VELOCITIES, _ATTENUATION, _COARSE, _FINE, _SAMPLE = 41, 43, 44, 48, 51, 52, 53
_LOOPS, _SCALE, _ROOT = 54, 56, 58
_DEFAULTS = dict.fromkeys((_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE), -12000) | {_SCALE: 100, _FILTER: 13500}
_WHOLE_RANGE = 127 << 8


class Voice(NamedTuple):
    """One sample as a preset plays it at a key; positions in samples, times in seconds."""

    start: int
    end: int
    loop: tuple[int, int] | None
    step: float  # samples of the font a second
    cutoff: float  # hertz, of a low-pass filter
    gain: float
    pan: float  # -0.5 is left, 0.5 is right
    delay: float
    attack: float
    hold: float
    decay: float
    sustain: float  # decibels below the peak
    release: float


class Note(NamedTuple):
    """Seconds, MIDI numbers; gain and pan (-0.5 to 0.5) are those of the channel."""

    start: float
    end: float
    bank: int
    program: int
    pitch: int
    velocity: int
    gain: float
    pan: float


class SoundFont:
    """A SoundFont 2 file. ValueError names a file that is none."""

    def __init__(self, path: Path):
        chunks = _chunks(path)
        name = ("name", "S20")
        self.samples = np.frombuffer(chunks["smpl"], "<i2")
        self._generators = np.frombuffer(chunks["igen"], [("operator", "<u2"), ("amount", "<i2")])
        self._preset_generators = np.frombuffer(chunks["pgen"], self._generators.dtype)
        bag = [("generator", "<u2"), ("modulator", "<u2")]
        self._bags = np.frombuffer(chunks["ibag"], bag)["generator"]
        self._preset_bags = np.frombuffer(chunks["pbag"], bag)["generator"]
        self._instruments = np.frombuffer(chunks["inst"], [name, ("bag", "<u2")])["bag"]
        numbers = [("library", "<u4"), ("genre", "<u4"), ("morphology", "<u4")]
        presets = np.frombuffer(
            chunks["phdr"], [name, ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), *numbers]
        )
        spans = zip(presets["bag"][:-1].tolist(), presets["bag"][1:].tolist(), strict=True)
        keys = zip(presets["bank"].tolist(), presets["program"].tolist(), strict=False)
        self._presets = dict(zip(keys, spans, strict=False))
        positions = [(field, "<u4") for field in ("start", "end", "loop_start", "loop_end", "rate")]
        tuning = [("pitch", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")]
        self._headers = np.frombuffer(chunks["shdr"], [name, *positions, *tuning])

    @lru_cache(maxsize=4096)  # noqa: B019 the one font lives as long as the program
    def voices(self, bank: int, program: int, pitch: int, velocity: int) -> list[Voice]:
        """The samples that sound together for a note; a missing preset is replaced by its bank's first."""
        preset = self._presets.get((bank, program)) or self._presets.get((bank, 0)) or self._presets[0, 0]
        voices = []
        for outer in _zones(self._preset_bags, self._preset_generators, preset, _INSTRUMENT, pitch, velocity):
            number = outer[_INSTRUMENT]
            span = (int(self._instruments[number]), int(self._instruments[number + 1]))
            for inner in _zones(self._bags, self._generators, span, _SAMPLE, pitch, velocity):
                voices.append(self._voice({**_DEFAULTS, **inner}, outer, pitch))
        return voices

    def _voice(self, zone: dict[int, int], outer: dict[int, int], pitch: int) -> Voice:
        """outer: the preset's zone, whose amounts are added to the instrument's."""
        header = self._headers[zone[_SAMPLE]]

        def amount(generator: int) -> int:
            return zone.get(generator, 0) + outer.get(generator, 0)

        def seconds(generator: int) -> float:
            return 2.0 ** (amount(generator) / 1200)

        def moved(field: str, fine: int, coarse: int) -> int:
            return int(header[field]) + zone.get(fine, 0) + 32768 * zone.get(coarse, 0)

        root = zone.get(_ROOT, -1)
        root = int(header["pitch"]) if root < 0 else root
        cents = (
            (pitch - root) * amount(_SCALE)
            + 100 * amount(_COARSE)
            + amount(_FINE)
            + int(header["correction"])
        )
        loop = (moved("loop_start", 2, 45), moved("loop_end", 3, 50))
        return Voice(
            start=moved("start", 0, 4),
            end=moved("end", 1, 12),
            loop=loop if zone.get(_LOOPS, 0) in (1, 3) and loop[1] > loop[0] else None,
            step=float(header["rate"]) * 2.0 ** (cents / 1200),
            cutoff=8.176 * 2.0 ** ((amount(_FILTER) + max(amount(_FILTER_ENVELOPE), 0)) / 1200),
            # Attenuation is in centibels, of which the synthesizers that fonts are made for apply 0.4.
            gain=10.0 ** (-0.4 * max(amount(_ATTENUATION), 0) / 200),
            pan=float(np.clip(amount(_PAN) / 1000, -0.5, 0.5)),
            delay=seconds(_DELAY),
            attack=seconds(_ATTACK),
            hold=seconds(_HOLD),
            decay=seconds(_DECAY),
            sustain=min(max(amount(_SUSTAIN), 0), 1000) / 10,
            release=min(seconds(_RELEASE), _LONGEST_RELEASE),
        )


def _chunks(path: Path) -> dict[str, bytes]:
    """The chunks of a RIFF file's lists, by their names."""
    data = path.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise ValueError(f"{path}: not a SoundFont 2 file")
    chunks, at = {}, 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"LIST":
            at += 12  # into the list
            continue
        chunks[name.decode("ascii", "replace")] = data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return chunks


def _zones(
    bags: np.ndarray, generators: np.ndarray, span: tuple[int, int], last: int, pitch: int, velocity: int
) -> list[dict[int, int]]:
    """Generators of the zones in `span` that this key and velocity reach, over those of the global zone."""
    zones: list[dict[int, int]] = []
    common: dict[int, int] = {}
    for index in range(*span):
        zone = dict(generators[bags[index] : bags[index + 1]].tolist())
        if last not in zone:
            common = zone if index == span[0] else common
            continue
        zone = {**common, **zone}
        keys, velocities = zone.pop(_KEYS, _WHOLE_RANGE), zone.pop(_VELOCITIES, _WHOLE_RANGE)
        if keys & 255 <= pitch <= keys >> 8 and velocities & 255 <= velocity <= velocities >> 8:
            zones.append(zone)
    return zones


@lru_cache(maxsize=1)
def sound_font() -> SoundFont:
    """The General MIDI font that pretty_midi ships, found without importing that package."""
    spec = importlib.util.find_spec("pretty_midi")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "TimGM6mb.sf2").exists():
            return SoundFont(path)
    raise FileNotFoundError(
        "TimGM6mb.sf2, part of the package pretty_midi, is missing: pip install pretty_midi"
    )


def read_notes(path: Path) -> list[Note]:
    """A MIDI file's notes, pedal included. ValueError names a file that is unreadable or has no notes."""
    notes: list[Note] = []
    controls = [{7: 100, 10: 64, 11: 127, 64: 0} for _ in range(16)]
    programs = [0] * 16
    sounding: dict[tuple[int, int], list[tuple[float, int]]] = {}
    held: list[list[Note]] = [[] for _ in range(16)]
    now = 0.0

    def stop(channel: int, pitch: int) -> None:
        if not sounding.get((channel, pitch)):
            return
        start, velocity = sounding[channel, pitch].pop(0)
        state = controls[channel]
        gain, pan = (state[7] / 127 * state[11] / 127) ** 2, (state[10] - 64) / 127
        bank = 128 if channel == _DRUMS else 0
        note = Note(start, now, bank, programs[channel], pitch, velocity, gain, pan)
        (held[channel] if state[64] >= 64 else notes).append(note)

    def lift(channel: int) -> None:
        notes.extend(note._replace(end=now) for note in held[channel])
        held[channel].clear()

    try:
        for message in mido.MidiFile(path, clip=True):
            now += message.time
            if message.type == "note_on" and message.velocity:
                sounding.setdefault((message.channel, message.note), []).append((now, message.velocity))
            elif message.type in ("note_on", "note_off"):
                stop(message.channel, message.note)
            elif message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "control_change" and message.control in controls[message.channel]:
                controls[message.channel][message.control] = message.value
                if message.control == 64 and message.value < 64:
                    lift(message.channel)
    except (OSError, EOFError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: not a readable MIDI file ({error or type(error).__name__})") from None
    for channel, pitch in [key for key, starts in sounding.items() for _ in starts]:
        stop(channel, pitch)
    for channel in range(16):
        lift(channel)
    if not notes:
        raise ValueError(f"{path}: no notes to play")
    return notes


def synthesise(path: Path, sample_rate: int) -> np.ndarray:
    """The sound of a MIDI file, float32 [samples, 2], not normalised. Errors: as `read_notes`."""
    notes, font = read_notes(path), sound_font()
    length = max(note.end for note in notes) + _LONGEST_RELEASE
    sound = np.zeros((int(length * sample_rate) + 1, 2), np.float32)
    last = 0
    for note in notes:
        first = int(note.start * sample_rate)
        for voice in font.voices(note.bank, note.program, note.pitch, note.velocity):
            one = _play(font.samples, voice, note.end - note.start, sample_rate)
            one *= voice.gain * note.gain * (note.velocity / 127) ** 2
            angle = (np.clip(voice.pan + note.pan, -0.5, 0.5) + 0.5) * np.pi / 2
            one = one[: len(sound) - first]
            sound[first : first + len(one), 0] += one * np.float32(np.cos(angle))
            sound[first : first + len(one), 1] += one * np.float32(np.sin(angle))
            last = max(last, first + len(one))
    return sound[:last]


def _play(samples: np.ndarray, voice: Voice, seconds: float, sample_rate: int) -> np.ndarray:
    """One voice held for `seconds`, then released, float32 [samples], peak about 1."""
    count = int((seconds + voice.release) * sample_rate) + 1
    if voice.loop is None:
        count = min(count, int((voice.end - voice.start - 1) * sample_rate / voice.step))
    position = voice.start + np.arange(max(count, 0)) * (voice.step / sample_rate)
    if voice.loop is not None:
        begin, end = voice.loop
        position = np.where(position < end, position, begin + (position - begin) % (end - begin))
    index = np.minimum(position.astype(np.int64), len(samples) - 2)
    here = samples[index].astype(np.float32)
    fraction = (position - index).astype(np.float32)
    wave = (here + (samples[index + 1] - here) * fraction) / np.float32(32768)
    if voice.cutoff < 12_000:
        wave = _low_pass(wave, voice.cutoff / sample_rate)
    return wave * _envelope(voice, seconds, len(wave), sample_rate)


def _low_pass(wave: np.ndarray, cutoff: float) -> np.ndarray:
    """A second-order Butterworth filter's magnitude without its phase; cutoff in cycles a sample."""
    size = -(-(len(wave) + 1024) // 4096) * 4096  # silence after the end, and a length that transforms fast
    spectrum = np.fft.rfft(wave, size)
    spectrum /= np.sqrt(1 + (np.fft.rfftfreq(size) / cutoff) ** 4)
    return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)


def _envelope(voice: Voice, seconds: float, count: int, sample_rate: int) -> np.ndarray:
    """Volume, float32 [count]: a linear attack, then lines in decibels, 100 over a whole decay or release."""
    time = np.arange(count) / sample_rate
    peak = voice.delay + voice.attack
    decay_from = peak + voice.hold
    decay_to = decay_from + voice.decay * voice.sustain / 100
    decibels = np.interp(time, [decay_from, max(decay_to, decay_from + 1e-4)], [0.0, -voice.sustain])
    off = int(seconds * sample_rate)
    if off < count:
        decibels[off:] = decibels[off] - 100 * (time[off:] - time[off]) / voice.release
    volume = 10 ** (decibels / 20)
    rising = int(peak * sample_rate) + 1
    volume[:rising] *= np.clip((time[:rising] - voice.delay) / voice.attack, 0, 1)
    return volume.astype(np.float32)
