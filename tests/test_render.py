import wave
from concurrent.futures import ThreadPoolExecutor

import mido
import numpy as np
import pytest

from midigen_jax.music.audio import wav
from midigen_jax.music.piano_roll import piano_roll
from midigen_jax.music.pitches import pitch_name


def pixels(path):
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(int)


def count(image, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(-1) < 12).sum())


def write_midi(path, *, notes, tempo=500_000, program=0, channel=0):
    """notes: (start, end, pitch) in quarters."""
    song = mido.MidiFile(ticks_per_beat=480)
    events = [(start, 1, pitch) for start, end, pitch in notes] + [(end, 0, pitch) for _, end, pitch in notes]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)])
    track.append(mido.Message("program_change", program=program, channel=channel))
    now = 0
    for at, on, pitch in sorted(events):
        track.append(
            mido.Message("note_on", note=pitch, velocity=80 * on, channel=channel, time=round(480 * (at - now)))
        )
        now = at
    song.tracks.append(track)
    song.save(path)


def read_wav(path):
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return samples / 32768, file.getframerate()


@pytest.mark.parametrize(("pitch", "name"), [(60, "C4"), (69, "A4"), (48, "C3"), (61, "C♯4"), (0, "C-1"), (127, "G9")])
def test_pitch_name(pitch, name):
    assert pitch_name(pitch) == name


def test_piano_roll_distinguishes_prompt_and_continuation(tmp_path):
    onset = np.arange(0, 24 * 32, 8)
    columns = (onset, np.full_like(onset, 8), 60 + onset // 8 % 12)
    piano_roll(tmp_path / "a.png", *columns, bar_lines=np.arange(24) * 32, prompt_end=8 * 32)
    piano_roll(tmp_path / "b.png", *columns, bar_lines=np.arange(24) * 32)
    both, plain = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    blue, orange = count(both, "#3f6fb0"), count(both, "#e8622a")
    assert 1.7 < orange / blue < 2.3  # 16 bars of continuation, 8 of prompt
    assert count(plain, "#e8622a") == 0
    assert count(plain, "#3f6fb0") > 2.5 * blue
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("bars", [1, 24, 200])
def test_piano_roll_keeps_a_sane_size(tmp_path, bars):
    random = np.random.default_rng(0)
    count_of_notes = 10 * bars
    onset = random.integers(0, 32 * bars, count_of_notes)
    piano_roll(
        tmp_path / "a.png",
        onset,
        random.integers(1, 33, count_of_notes),
        random.integers(0, 128, count_of_notes),
        bar_lines=np.arange(bars) * 32,
        title="long",
    )
    height, width, _ = pixels(tmp_path / "a.png").shape
    assert 900 < width < 2500
    assert 250 < height < 10_000


def test_piano_roll_with_an_upbeat_and_a_prompt_without_end(tmp_path):
    bar_lines = np.array([0, 8, 40, 72])
    for prompt_end in (0, 8, 1000):
        piano_roll(
            tmp_path / "a.png",
            [0, 8, 70],
            [8, 32, 90],
            [60, 64, 67],
            bar_lines=bar_lines,
            prompt_end=prompt_end,
        )
        image = pixels(tmp_path / "a.png")
        legend = 1000  # more pixels of a colour than the legend alone has
        assert (count(image, "#3f6fb0") > legend) == (prompt_end > 0)
        assert (count(image, "#e8622a") > legend) == (prompt_end < 70)


def test_piano_rolls_in_threads_are_equal(tmp_path):
    onset = np.arange(64) * 4

    def draw(number):
        path = tmp_path / f"{number}.png"
        piano_roll(path, onset, np.full(64, 4), 48 + onset // 4 % 24, bar_lines=np.arange(8) * 32, prompt_end=64)
        return path.read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(draw, range(4)))) == 1


def test_piano_roll_without_notes(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: no notes to draw"):
        piano_roll(tmp_path / "a.png", [], [], [], bar_lines=[0])
    assert not list(tmp_path.iterdir())


def test_wav_sounds_as_long_and_as_high_as_its_notes(tmp_path):
    write_midi(tmp_path / "a.mid", notes=[(0, 2, 69), (4, 6, 81)])
    wav(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate = read_wav(tmp_path / "a.wav")
    assert 2.99 < len(sound) / rate < 3.0 + 3.1
    assert np.abs(sound).max() == pytest.approx(0.9, abs=0.01)
    assert sound.std() > 0.02
    for second, pitch in ((0.1, 440), (2.1, 880)):
        part = sound[int(second * rate) : int((second + 0.8) * rate)].mean(1)
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
        assert np.fft.rfftfreq(1 << 17, 1 / rate)[spectrum.argmax()] == pytest.approx(pitch, rel=0.01)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mid", "a.wav"]


def test_wav_follows_the_tempo_and_plays_drums(tmp_path):
    write_midi(tmp_path / "a.mid", notes=[(0, 1, 38), (7, 8, 38)], tempo=1_000_000, channel=9)
    wav(tmp_path / "a.mid", tmp_path / "a.wav")
    sound, rate = read_wav(tmp_path / "a.wav")
    assert sound[: rate // 4].std() > 0.01
    assert sound[5 * rate : 7 * rate - 100].std() < 1e-3
    assert sound[7 * rate : 7 * rate + rate // 4].std() > 0.01


@pytest.mark.parametrize("content", [None, b"", b"MThd", b"not a MIDI file at all"])
def test_wav_of_an_unreadable_file(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.mid").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.mid: can't be read as a MIDI file") as caught:
        wav(tmp_path / "bad.mid", tmp_path / "a.wav")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.wav").exists()


def test_wav_of_a_file_without_notes(tmp_path):
    write_midi(tmp_path / "empty.mid", notes=[])
    with pytest.raises(ValueError, match=r"empty\.mid: has no notes"):
        wav(tmp_path / "empty.mid", tmp_path / "a.wav")
