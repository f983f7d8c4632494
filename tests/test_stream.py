"""Music that can be played while it is sampled."""

import threading

import mido
import numpy as np
import pytest
from conftest import random_notes, write_midi
from mido.ports import BaseOutput
from small_models import build
from test_sample import rich  # noqa: F401  (a fixture)

from midigen_jax import vocab
from midigen_jax.errors import InputError
from midigen_jax.music import midi
from midigen_jax.music.song import new_song
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling import stream
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import Length
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
def generation(small, tmp_path):
    """At 6,000 beats a minute, so that it plays in a second."""
    file = write_midi(tmp_path / "prompt.mid", [random_notes(np.random.default_rng(3), 60, beats=30)], tempo=10_000)
    sampler = Sampler(TrainedModel(small, build(small)[1], Vocabulary()))
    return sampler.generate(file, prompt_bars=2, length=Length(30), num=2)


def test_a_file_can_be_read_at_any_moment(generation, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "REWRITE_SECONDS", 0.0)
    versions, write = [], stream.write_song

    def spy(path, song):
        write(path, song)
        versions.append((path.name, len(midi.read_song(path, Scheme()).notes)))

    monkeypatch.setattr(stream, "write_song", spy)
    takes = stream.stream(generation, [tmp_path / "out" / "a-1", tmp_path / "out" / "a-2"])
    growing = [notes for name, notes in versions if name == "a-1.mid"]
    assert growing == sorted(growing)
    assert len(set(growing)) > 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-1.mid", "a-2.mid"]
    assert len(takes) == 2


def test_a_port_plays_the_new_notes(generation):
    port = Port()
    take, _ = stream.stream(generation, [], port)
    new = take.song.notes[take.song.notes[:, 0] >= take.start]
    on = [message for message in port.sent if message.type == "note_on"]
    assert sorted(message.note for message in on) == sorted(new[:, 2].tolist())
    assert sum(message.type == "note_off" for message in port.sent) == len(new)
    assert port.silenced()


def played(song, start, monkeypatch):
    """The port after a song, and when it was sent what, by a clock that moves only while the player waits."""
    clock = [100.0]
    port = Port()
    player = stream.Player(port, start)

    def wait(seconds=None):
        assert seconds is not None, "waits without end"
        clock[0] += seconds

    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    player.add(song, 999_999)
    monkeypatch.setattr(player._changed, "wait", wait)
    monkeypatch.setattr(port, "send", sent := Sent(port, player))
    player._play()
    return sent.messages, port.times


class Sent:
    """Passes messages on, and closes the player after the last one."""

    def __init__(self, port, player):
        self.port, self.player, self.messages, self.send = port, player, [], port.send

    def __call__(self, message):
        self.messages.append(message)
        self.send(message)
        self.player._closed = not self.player._due


def test_every_message_is_sent_when_it_is_due(monkeypatch):
    notes = np.array([[16, 8, 60, 0, 80], [20, 2, 64, 0, 80], [31, 8, 67, 0, 80]])
    song = new_song(Scheme())._replace(notes=notes)  # 16 grid steps are a second
    messages, times = played(song, 16, monkeypatch)
    assert [(m.type, m.note) for m in messages] == [
        ("note_on", 60), ("note_on", 64), ("note_off", 64), ("note_off", 60), ("note_on", 67), ("note_off", 67)
    ]  # fmt: skip
    due = 100 + stream.HEAD_START + (np.array([16, 20, 22, 24, 31, 39]) - 16) / 16
    np.testing.assert_allclose(times, due, atol=1e-6)


def test_a_player_waits_for_no_sampler():
    """It sends on a thread of its own while the caller does something else."""
    port, done = Port(), threading.Event()
    port._send = lambda message: done.set() if message.type == "note_off" else None
    with stream.Player(port, 0) as player:
        player.add(new_song(Scheme())._replace(notes=np.array([[0, 1, 60, 0, 80]])), 9)
        assert done.wait(10)
        assert not player.playing


@pytest.mark.parametrize("where", ["sampling", "waiting"])
def test_no_note_hangs_when_playing_is_interrupted(generation, monkeypatch, where):
    def interrupt(*_):
        raise KeyboardInterrupt

    if where == "sampling":
        monkeypatch.setattr(stream.Player, "add", interrupt)
    else:
        monkeypatch.setattr(stream.time, "sleep", interrupt)
    port = Port()
    with pytest.raises(KeyboardInterrupt):
        stream.stream(generation, [], port)
    assert port.silenced()


def test_every_program_has_a_channel_of_its_own(rich, monkeypatch):  # noqa: F811
    """Of twenty programs at most fifteen at a time, and the drums theirs; a note sounds with its own program."""
    programs = [*range(20), vocab.DRUMS, 3, 0]
    onsets = [0] * 16 + [8 * i for i in range(1, len(programs) - 15)]  # sixteen at once
    notes = np.array([[onset, 4, 60 + i, x, 80] for i, (onset, x) in enumerate(zip(onsets, programs, strict=True))])
    messages, _ = played(new_song(rich.scheme)._replace(notes=notes), 0, monkeypatch)
    now, sounded = {}, []
    for message in messages:
        if message.type == "program_change":
            now[message.channel] = message.program
        elif message.type == "note_on":
            sounded.append(vocab.DRUMS if message.channel == 9 else now[message.channel])
    assert sounded == programs
    assert 9 not in now
    assert sum(message.type == "note_off" for message in messages) == len(programs)


def test_a_port_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(mido, "get_output_names", lambda: ["Synth A", "Synth B"])
    with pytest.raises(InputError, match="--port C: no such MIDI port; available: Synth A, Synth B"):
        stream.open_port("C")

    def no_backend():
        raise ModuleNotFoundError("No module named 'rtmidi'")

    monkeypatch.setattr(mido, "get_output_names", no_backend)
    with pytest.raises(InputError, match=r"no MIDI ports can be reached .*pip install python-rtmidi"):
        stream.open_port("C")
