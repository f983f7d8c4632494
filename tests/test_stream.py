"""Music that can be played while it is sampled."""

import mido
import numpy as np
import pytest
from conftest import random_notes, write_midi
from test_model import build

from midigen_jax import midi, stream
from midigen_jax.cli import InputError
from midigen_jax.continuation import Length
from midigen_jax.sampler import Sampler
from midigen_jax.vocab import Scheme, Vocabulary


class Port:
    """Remembers what it was sent, and that it was closed."""

    def __init__(self):
        self.sent, self.silenced, self.closed = [], False, False

    def send(self, message):
        self.sent.append(message)

    def reset(self):
        self.silenced = True

    def close(self):
        self.closed = True


@pytest.fixture
def playing(small, tmp_path):
    file = write_midi(tmp_path / "prompt.mid", [random_notes(np.random.default_rng(3), 60, beats=30)], tempo=10_000)
    sampler = Sampler(small, build(small)[1], Vocabulary())
    return sampler.extend(file, prompt_bars=2, length=Length(9), num=2)


def test_a_file_can_be_read_at_any_moment(playing, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SECONDS", 0.0)
    versions, write = [], stream.write_song

    def spy(path, song):
        write(path, song)
        versions.append((path.name, len(midi.read_song(path, Scheme()).notes)))

    monkeypatch.setattr(stream, "write_song", spy)
    takes = stream.play(playing, [tmp_path / "out" / "a-1", tmp_path / "out" / "a-2"])
    grown = [notes for name, notes in versions if name == "a-1.mid"]
    assert len(grown) > 3
    assert grown == sorted(grown)
    assert len(set(grown)) > 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-1.mid", "a-2.mid"]
    assert len(takes) == 2


def test_a_port_plays_the_new_notes_in_time(playing, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds + 1e-6))
    port, times = Port(), []
    monkeypatch.setattr(port, "send", lambda message: (port.sent.append(message), times.append(clock[0])))
    take, _ = stream.play(playing, [], port)
    song = take.song
    new = song.notes[song.notes[:, 0] >= take.begins]
    on = [message for message in port.sent if message.type == "note_on"]
    assert sorted(message.note for message in on) == sorted(new[:, 2].tolist())
    assert sum(message.type == "note_off" for message in port.sent) == len(new)
    assert times == sorted(times)
    length = song.seconds_at(song.n_steps) - song.seconds_at(take.begins)
    assert times[-1] - 100 == pytest.approx(length + stream.HEAD_START, abs=1e-3)
    assert port.silenced
    assert port.closed


def test_a_port_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(mido, "get_output_names", lambda: ["Synth A", "Synth B"])
    with pytest.raises(InputError, match="--port C: no such MIDI port; there are: Synth A, Synth B"):
        stream.open_port("C")

    def no_backend():
        raise ModuleNotFoundError("No module named 'rtmidi'")

    monkeypatch.setattr(mido, "get_output_names", no_backend)
    with pytest.raises(InputError, match=r"no MIDI ports can be reached .*pip install python-rtmidi"):
        stream.open_port("C")
