"""Sound: a MIDI file as WAV or MP3."""

import importlib.util
import io
from pathlib import Path

import midirenderer
import numpy as np
import soundfile

from ..errors import InputError
from ..files import atomic_write


def sound_font() -> Path:
    """The sound font TimGM6mb, which the package pretty_midi ships."""
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise InputError("the package pretty_midi, which contains the sound font, is missing: pip install pretty_midi")
    return Path(spec.origin).with_name("TimGM6mb.sf2")


def sound(midi_path: str | Path) -> tuple[np.ndarray, int]:
    """Synthesises a MIDI file: float32 [frames, 2] with its peak at 0.9, and frames per second.

    Raises:
        InputError: the MIDI file can't be read or has no notes.
    """
    try:
        midi = Path(midi_path).read_bytes()
        rendered = midirenderer.render_wave_from(sound_font().read_bytes(), midi)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{midi_path}: can't be read as a MIDI file ({error})") from None
    frames, rate = soundfile.read(io.BytesIO(rendered), dtype="float32", always_2d=True)
    peak = float(np.abs(frames).max(initial=0))
    if peak == 0:
        raise InputError(f"{midi_path}: has no notes to play")
    frames *= 0.9 / peak  # in place: an hour takes over a gigabyte
    return frames, rate


def wav(midi_path: str | Path, wav_path: str | Path) -> None:
    """Synthesises a MIDI file as a 16-bit stereo WAV.

    Raises:
        InputError: as `sound`.
    """
    frames, rate = sound(midi_path)
    with atomic_write(Path(wav_path)) as temporary:
        soundfile.write(temporary, frames, rate, subtype="PCM_16", format="WAV")


def mp3(midi_path: str | Path) -> bytes:
    """Synthesises a MIDI file as a mono MP3, half a megabyte per minute, for pages that embed their sound.

    Raises:
        InputError: as `sound`.
    """
    frames, rate = sound(midi_path)
    target = io.BytesIO()
    soundfile.write(target, frames.mean(1), rate, subtype="MPEG_LAYER_III", format="MP3", compression_level=0.6)
    return target.getvalue()
