"""Music that can be played while it is sampled."""

import mido
import numpy as np
import pytest
from conftest import random_notes, write_midi
from mido.ports import BaseOutput
from test_model import build
from test_sample import rich  # noqa: F401  (a fixture)

from midigen_jax import midi, stream, vocab
from midigen_jax.cli import InputError
from midigen_jax.continuation import Length
from midigen_jax.sampler import Sampler
from midigen_jax.song import new_song
from midigen_jax.vocab import Scheme, Vocabulary


class Port(BaseOutput):
    """Remembers what it was sent."""

    def __init__(self):
        self.sent, self.times = [], []
        super().__init__("port", autoreset=True)

    def _send(self, message):
        self.sent.append(message)
        self.times.append(stream.time.monotonic())

    def silenced(self):
        """Whether the last it was told is that nothing sounds, on every channel."""
        last = self.sent[-32:]
        return self.closed and {m.channel for m in last if m.type == "control_change" and m.control == 123} == set(
            range(16)
        )


@pytest.fixture
def playing(small, tmp_path):
    file = write_midi(tmp_path / "prompt.mid", [random_notes(np.random.default_rng(3), 60, beats=30)], tempo=10_000)
    sampler = Sampler(small, build(small)[1], Vocabulary())
    return sampler.extend(file, prompt_bars=2, length=Length(90), num=2)


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
    port = Port()
    take, _ = stream.play(playing, [], port)
    song = take.song
    new = song.notes[song.notes[:, 0] >= take.begins]
    on = [message for message in port.sent if message.type == "note_on"]
    assert sorted(message.note for message in on) == sorted(new[:, 2].tolist())
    assert sum(message.type == "note_off" for message in port.sent) == len(new)
    assert port.times == sorted(port.times)
    length = song.seconds_at(song.n_steps) - song.seconds_at(take.begins)
    assert port.times[-1] - 100 == pytest.approx(length + stream.HEAD_START, abs=1e-3)
    assert port.silenced()


@pytest.mark.parametrize("where", ["sampling", "waiting"])
def test_no_note_hangs_when_playing_is_interrupted(playing, monkeypatch, where):
    def interrupt(*_):
        raise KeyboardInterrupt

    if where == "sampling":
        monkeypatch.setattr(stream.Performer, "catch_up", interrupt)
    else:
        monkeypatch.setattr(stream.time, "sleep", interrupt)
    port = Port()
    with pytest.raises(KeyboardInterrupt):
        stream.play(playing, [], port)
    assert port.silenced()


def test_every_program_has_a_channel_of_its_own(rich, monkeypatch):  # noqa: F811
    """Of twenty programs at most fifteen at a time, and the drums theirs; a note sounds with its own program."""
    clock = [100.0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds + 1e-6))
    programs = [*range(20), vocab.DRUMS, 3, 0]
    onsets = [0] * 16 + [8 * i for i in range(1, len(programs) - 15)]  # sixteen at once
    notes = np.array([[onset, 4, 60 + i, x, 80] for i, (onset, x) in enumerate(zip(onsets, programs, strict=True))])
    port = Port()
    performer = stream.Performer(port, 0)
    performer.hear(new_song(rich.scheme)._replace(notes=notes), 999)
    performer.finish()
    now, heard = {}, []
    for message in port.sent:
        if message.type == "program_change":
            now[message.channel] = message.program
        elif message.type == "note_on":
            heard.append(vocab.DRUMS if message.channel == 9 else now[message.channel])
    assert heard == programs
    assert 9 not in now
    assert sum(message.type == "note_off" for message in port.sent) == len(programs)


def test_a_port_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(mido, "get_output_names", lambda: ["Synth A", "Synth B"])
    with pytest.raises(InputError, match="--port C: no such MIDI port; there are: Synth A, Synth B"):
        stream.open_port("C")

    def no_backend():
        raise ModuleNotFoundError("No module named 'rtmidi'")

    monkeypatch.setattr(mido, "get_output_names", no_backend)
    with pytest.raises(InputError, match=r"no MIDI ports can be reached .*pip install python-rtmidi"):
        stream.open_port("C")
