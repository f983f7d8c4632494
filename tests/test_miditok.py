"""MidiTok's tokens: equal to MidiTok's, through the corpus, the memories and the sampler."""

import json
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_notes, slow, write_midi
from small_models import BOTH, changed

from midigen_jax import vocab
from midigen_jax.cli.encode import main as encode_command
from midigen_jax.data.corpus import open_corpus, training_notes
from midigen_jax.data.encode import encode_folder
from midigen_jax.data.loader import Lanes
from midigen_jax.errors import InputError
from midigen_jax.evaluation.copying import intervals
from midigen_jax.evaluation.evaluate import DURATION, OTHER, PITCH, REST, token_types
from midigen_jax.kernels import score
from midigen_jax.miditok_vocab import MidiTokVocabulary, vocabulary_from_json
from midigen_jax.model import places
from midigen_jax.model.alignment import init_alignment, read_tokens
from midigen_jax.model.decoder import init_params
from midigen_jax.music import miditok
from midigen_jax.music.midi import read_with
from midigen_jax.music.song import Prompt, cut, make_song, new_song, notes_of, tokens_of, transpose
from midigen_jax.run.trained import TrainedModel
from midigen_jax.sampling.sampler import Sampler
from midigen_jax.sampling.settings import GenerationSettings, Length
from midigen_jax.training.sharding import make_mesh, make_put
from midigen_jax.vocab import Kind, Scheme

TokSequence = pytest.importorskip("miditok", reason='not installed; pip install -e ".[miditok]"').TokSequence
symusic = pytest.importorskip("symusic")

BAND = Scheme(multi=True, velocities=True)
MERGES = 150
# The meters of songs: the beat at which each begins, numerator and denominator.
MIXED: dict[str, list[tuple[float, int, int]]] = {
    "pickup": [(0, 1, 8), (0.5, 6, 8), (12.5, 3, 4)],
    "beats": [(0, 1, 4)],
    "unknown": [(0, 5, 16), (5, 1, 1), (9, 1, 4), (10, 1, 4), (11, 4, 16), (12, 5, 16), (12, 3, 8), (13.5, 1, 2)],
    "half": [(0, 2, 2), (16, 12, 8)],
}
KINDS = [("REMI", Scheme()), ("REMI", BAND), ("TSD", Scheme()), ("TSD", BAND)]


@cache
def plain(tokenization, scheme=Scheme()):  # noqa: B008  (a tuple)
    return miditok.make_vocabulary(tokenization, scheme)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, midi_folder, band_folder):
    """Songs of many meters and parts: pickups, a change of meter, drums, unisons, velocities, triplets."""
    folder, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(1)
    for path in [*sorted(midi_folder.iterdir())[:6], *sorted(band_folder.iterdir())]:
        (folder / path.name).symlink_to(path)
    for name, meters in MIXED.items():
        song = symusic.Score(480)
        for time, top, bottom in meters:
            song.time_signatures.append(symusic.TimeSignature(int(480 * time), top, bottom))
        for program in (0, 40):
            track = symusic.Track(program=program, is_drum=name == "half" and program == 40)
            for onset in np.sort(random.uniform(0, 30, 60)).tolist():
                length, pitch, loud = (
                    random.choice([40, 160, 480, 9000]),
                    random.integers(30, 90),
                    random.integers(1, 128),
                )
                track.notes.append(symusic.Note(int(480 * onset), int(length), int(pitch), int(loud)))
            track.notes.sort()
            song.tracks.append(track)
        song.dump_midi(folder / f"{name}.mid")
    return folder


def encoded(folder, path, tokenization, scheme, merges=0, **options):
    vocabulary = plain(tokenization, scheme)
    size = vocabulary.size + merges if merges else 0
    encode_folder(folder, path, scheme=scheme, tokenization=tokenization, vocabulary=size, workers=1, **options)
    return open_corpus(path)


@pytest.fixture(scope="module")
def corpora(folder, tmp_path_factory):
    """A corpus of each kind, with merges or without."""
    path = tmp_path_factory.mktemp("corpora")

    @cache
    def corpus(kind, merges=0):
        tokenization, scheme = KINDS[kind]
        return encoded(folder, path / f"{kind}-{merges}", tokenization, scheme, merges, fractions=(1, 0, 0))

    return corpus


def miditoks_notes(song, scheme):
    """The notes of a decoded Score, in the order of ours."""
    notes = [
        (note.time, note.duration, note.pitch, vocab.DRUMS if track.is_drum else track.program, note.velocity)
        for track in song.tracks
        for note in track.notes
    ]
    return sorted((*note[:3], note[3] if scheme.multi else 0, note[4]) for note in notes)


@pytest.mark.parametrize("merges", [0, MERGES])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_encoding_and_decoding_agree_with_miditok(folder, corpora, kind, merges):
    corpus = corpora(kind, merges)
    vocabulary, tokenizer = corpus.vocabulary, miditok.tokenizer_of(corpus.vocabulary)
    assert len(corpus.names) == 13
    assert vocabulary.size == plain(*KINDS[kind]).size + merges
    for i, name in enumerate(corpus.names):
        prepared = miditok.prepared(symusic.Score(folder / name), vocabulary.scheme)
        sequence = tokenizer(prepared)
        if not vocabulary.scheme.multi:
            (sequence,) = sequence
        tokens = corpus.tokens_of(i)
        assert tokens.tolist() == [vocab.SOS, *sequence.ids, vocab.EOS]
        decoded, song = tokenizer.decode([sequence] if not vocabulary.scheme.multi else sequence), corpus.song(i)
        assert decoded.ticks_per_quarter == vocabulary.scheme.steps_per_beat
        assert sorted(map(tuple, song.notes.tolist())) == miditoks_notes(decoded, vocabulary.scheme)
        assert len(song.notes) == corpus.notes[i]
        assert song.end / vocabulary.scheme.steps_per_beat == corpus.beats[i]
        if vocabulary.tokenization == "REMI":
            meters = [(x.time, x.numerator, x.denominator) for x in decoded.time_signatures]
            assert song.meters.tolist() == list(map(list, meters))
        assert tokens_of(song, vocabulary).tokens.tolist() == tokens.tolist()


def test_songs_are_prepared(folder):
    """Parts become one without drums, or stay in the order of their programs; single beats are no bars."""
    song = symusic.Score(folder / "half.mid")
    assert [track.is_drum for track in miditok.prepared(song, BAND).tracks] == [False, True]
    (melody,) = miditok.prepared(song, Scheme()).tracks
    assert len(melody.notes) == 60
    expected = {
        "beats": [(4, 4)],
        "pickup": [(1, 8), (6, 8), (3, 4)],
        "unknown": [(4, 4), (2, 4), (2, 8), (3, 8), (4, 4)],
    }
    for name, meters in expected.items():
        prepared = miditok.prepared(symusic.Score(folder / f"{name}.mid"), Scheme())
        assert [(x.numerator, x.denominator) for x in prepared.time_signatures] == meters
    song = read_with(folder / "pickup.mid", plain("REMI"))
    assert [song.bar_start(bar) for bar in range(4)] == [0, 8, 56, 104]


@pytest.mark.parametrize("merges", [0, MERGES])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_time_follows_from_the_tables(corpora, kind, merges):
    """Each token's time, by `Clock` alone: as read, as walked, and as the memory by alignment follows it."""
    corpus = corpora(kind, merges)
    vocabulary = corpus.vocabulary
    follow = jax.jit(partial(places.follow, vocabulary=vocabulary))
    for i in range(len(corpus.names)):
        sequence, song = corpus.sequence_of(i), corpus.song(i)
        base = miditok.expand(sequence.tokens, vocabulary)
        lengths = [len(vocabulary.base_tokens[token]) for token in sequence.tokens.tolist()]
        times = miditok.read(base, vocabulary)[1][np.cumsum([0, *lengths[:-1]])]
        padded = np.pad(sequence.tokens.astype(np.int32), (0, -len(times) % 1024))[None]
        begins, reads = np.arange(padded.shape[1]) == 0, np.arange(padded.shape[1]) < len(times)
        _, found = follow(places.init_place(1), padded, begins[None], reads[None])
        np.testing.assert_array_equal(found.time[0, : len(times)], times)
        order = np.stack([found.time[0], found.rank[0]], 1)[: len(times)].tolist()
        assert order == sorted(order)
        for n in (2, 30, len(times) // 2, len(times)):
            _, time, next_time = vocabulary.walk(sequence.tokens[:n])
            assert (time, next_time) == (times[n - 1], found.after.time[0, n - 1])
        starts = [song.bar_start(int(bar)) for bar in sequence.bar]
        np.testing.assert_array_equal(starts + sequence.position, times)


@pytest.mark.parametrize("merges", [0, MERGES])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_grammar_accepts_songs_and_is_stricter_than_miditoks(corpora, kind, merges):
    corpus = corpora(kind, merges)
    vocabulary = corpus.vocabulary
    next_state, _ = vocabulary.grammar
    accepted = 0
    for i in range(len(corpus.names)):
        tokens = corpus.tokens_of(i).tolist()
        if len(corpus.song(i).meters) > 1 or (corpus.song(i).meters[0, 1:] != [4, 4]).any():
            continue  # a state knows its meter, which no token changes
        state = vocabulary.walk(corpus.tokens_of(i)[:1])[0]
        for token in tokens[1:]:
            state = int(next_state[state, token])
            assert state != vocab.FORBIDDEN
        accepted += 1
    assert accepted >= 6
    graph = miditok.tokenizer_of(vocabulary).tokens_types_graph
    order = vocabulary._types_in_order
    assert all(
        y in graph[x]
        for x, row in zip(order, vocabulary._may_follow, strict=True)
        for y, may in zip(order, row, strict=True)
        if may
    )


def model_of(config, vocabulary, seed=0):
    return TrainedModel(config, init_params(config, vocabulary, seed=seed)[1], vocabulary)


@pytest.mark.parametrize(
    ("kind", "merges"),
    [(0, MERGES), (1, 0), (2, MERGES), slow(0, 0), slow(1, MERGES), slow(2, 0), slow(3, 0), slow(3, MERGES)],
)
def test_whatever_is_sampled_is_valid(small, folder, corpora, kind, merges):
    """By MidiTok's own check, of a model that knows nothing: prompts of several meters, and inventions."""
    vocabulary = corpora(kind, merges).vocabulary
    tokenizer, scheme = miditok.tokenizer_of(vocabulary), vocabulary.scheme
    sampler = Sampler(model_of(small, vocabulary))
    settings = GenerationSettings(temperature=1.5, top_p=1.0, max_density=4.0)
    prompts = [Prompt(new_song(scheme), 0)]
    prompts += [cut(read_with(folder / f"{name}.mid", vocabulary), 3) for name in ("pickup", "half", "song03")]
    session = sampler.prefill(prompts)
    ends = [prompt.song.bar_start(prompt.song.bar_of(prompt.end) + 6) for prompt in prompts]
    generation = sampler.sample(session, ends, settings=settings, seed=3)
    new_notes = 0
    for prompt, take in zip(prompts, generation.finish(), strict=True):
        row = generation.rows[take.row]
        base = miditok.expand(row.tokens, vocabulary)
        assert tokenizer.tokens_errors(TokSequence(ids=base[1:].tolist())) == 0
        notes, times, meters = miditok.read(base, vocabulary)
        kinds = vocabulary.kinds[base]
        assert np.isin(kinds, vocab.SOUNDS).sum() - len(notes) in (0, 1)  # the last note may be cut off
        assert len(np.unique(notes[:, [score.ONSET, score.PITCH, score.PART]], axis=0)) == len(notes)
        new_notes += take.new_notes
        assert take.song.notes[len(prompt.song.notes) :, 0].min(initial=prompt.end) >= prompt.end
        np.testing.assert_array_equal(notes[: len(prompt.song.notes)], prompt.song.notes)
        assert row.next_time >= row.end
        np.testing.assert_array_equal(meters, prompt.song.meters)
        assert vocabulary.walk(row.tokens)[2] == row.next_time
        bar, position = miditok.places_of(base, take.song.bars, vocabulary)
        assert (np.diff(times) >= 0).all()
        if vocabulary.tokenization == "REMI":
            begins = kinds == Kind.BAR
            assert (position[begins] == 0).all()
            assert (bar[begins] == np.arange(begins.sum())).all()
    assert new_notes > 12


@pytest.mark.parametrize("kind", [0, slow(3)])
def test_a_song_goes_on_as_if_it_had_been_read(two_layers, corpora, kind):
    """What the sampler's memories hold of the tokens that it drew is what reading the song gives."""
    config = changed(two_layers, **BOTH)
    vocabulary = corpora(kind).vocabulary
    sampler = Sampler(model_of(config, vocabulary))
    (take,) = sampler.continue_(bars=4, num=1, seed=1)
    row = take.session.rows[0]
    song = take.song._replace(notes=notes_of(row.tokens, vocabulary))
    bar, position = miditok.places_of(row.tokens, song.bars, vocabulary)
    read = sampler.read([type(tokens_of(song, vocabulary))(row.tokens, bar, position)])
    drawn = sampler._programs.align(take.session.state.cache)
    names = ("token_class", "pitch", "bar", "position", "time", "rank")
    n = len(row.tokens) - 1
    for name in names:
        one, other = (np.asarray(getattr(x.alignment.past, name)) for x in (read, drawn))
        np.testing.assert_array_equal(one[0][:n], other[0][:n], err_msg=name)


@pytest.mark.parametrize("tokenization", ["REMI", "TSD"])
def test_a_phrase_that_returns_is_offered(tokenization):
    """Eight bars, and again: the place tells what comes first; in another key the intervals do."""
    vocabulary = plain(tokenization, BAND)
    bar_steps, random = 4 * vocabulary.scheme.steps_per_beat, np.random.default_rng(0)
    onsets = np.sort(random.choice(np.arange(0, 8 * bar_steps, 8), 60, replace=False))
    notes = np.stack([onsets, onsets * 0 + 8, random.integers(50, 80, 60), 0 * onsets, 0 * onsets + 79], 1)
    meters, tempos = np.array([[0, 4, 4]], np.int32), np.array([[0, 500_000]], np.int32)
    for shift in (0, 5):
        both = np.concatenate([notes, notes + np.array([8 * bar_steps, 0, shift, 0, 0])]).astype(np.int32)
        song = tokens_of(make_song(both, meters, tempos, vocabulary.scheme), vocabulary)
        arrays = [jnp.asarray(x, jnp.int32)[None] for x in (*song, np.zeros(len(song.tokens)))]
        _, found = jax.jit(partial(read_tokens, vocabulary=vocabulary, k=4))(init_alignment(1, 2048), *arrays)
        following = np.append(song.tokens[1:], 0)[:, None]
        right = np.asarray(found.token[0]) == following
        at = np.flatnonzero((song.bar >= 8) & (np.arange(len(song.tokens)) < len(song.tokens) - 2))
        if shift == 0:
            assert right[at, 4 + places.DISTANCES.index(8)].mean() > 0.95
        else:
            assert right[at[40:]].any(1).mean() > 0.95


def test_a_vocabulary_is_json_and_damage_is_noticed(corpora):
    vocabulary = corpora(1, MERGES).vocabulary
    values = json.loads(json.dumps(vocabulary.to_json()))
    for keys_in_order in (False, True):
        again = vocabulary_from_json(json.loads(json.dumps(values, sort_keys=keys_in_order)))
        assert (again, hash(again)) == (vocabulary, hash(vocabulary))
    assert miditok.tokenizer_of(again).is_trained
    for change in (
        {"tokens": values["tokens"][1:]},
        {"tokens": [*values["tokens"][:-1], "Nonsense_1"]},
        {"tokens": [*values["tokens"][:3], *values["tokens"][4:]]},
        {"merges": [[10_000]]},
        {"merges": [[]]},
        {"miditok": {"tokenization": "CPWord"}},
        {"scheme": values["scheme"] | {"steps_per_beat": 7}},
        {"scheme": values["scheme"] | {"multi": 1}},
        {"graph": []},
        {"tokens": [token.replace("TimeSig_4/4", "TimeSig_4/0") for token in values["tokens"]]},
        {"tokens": [token.replace("TimeSig_4/4", "TimeSig_4/3") for token in values["tokens"]]},
        {"tokens": [token.replace("Duration_0.1.8", "Duration_0.1.0") for token in values["tokens"]]},
        {"tokens": [token.replace("PitchDrum_127", "PitchDrum_9999999999") for token in values["tokens"]]},
        {"tokens": [token.replace("PitchDrum_127", "PitchDrum_200") for token in values["tokens"]]},
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            vocabulary_from_json(values | change)
    for change in (
        {"merges": values["merges"][:-1]},
        {"miditok": values["miditok"] | {"_model": "nonsense"}},
        {"miditok": {"tokenization": "REMI"}},
    ):
        with pytest.raises(InputError, match=r"makes other tokens [^\n]*$"):
            miditok.tokenizer_of(MidiTokVocabulary.from_json(values | change))


def test_tokens_are_transposed_and_typed(corpora):
    vocabulary = plain("REMI", BAND)
    names = "BOS Bar TimeSig_4/4 Position_0 Program_5 Pitch_60 Velocity_79 Duration_1.0.8 Program_-1 PitchDrum_36 "
    names += "Velocity_79 Duration_0.1.8 EOS"
    full = {"BOS": "BOS_None", "Bar": "Bar_None", "EOS": "EOS_None"}
    tokens = np.array([vocabulary.tokens.index(full.get(name, name)) for name in names.split()], np.uint16)
    assert [vocabulary.names[token] for token in transpose(tokens, 7, vocabulary)[[5, 9]]] == [
        "Pitch_67",
        "PitchDrum_36",
    ]
    assert len(transpose(tokens, 70, vocabulary)) == 0
    assert token_types(tokens, vocabulary).tolist() == [
        *(REST, OTHER, REST, OTHER, PITCH, OTHER, DURATION),
        *(OTHER, PITCH, OTHER, DURATION, OTHER),
    ]
    assert intervals(tokens, vocabulary).min() == intervals(tokens, vocabulary)[5]
    assert {vocabulary.names[i] for i in vocabulary.velocity_tokens} == {f"Velocity_{v}" for v in _velocities()}


def _velocities():
    return np.linspace(0, 127, 33, dtype=int)[1:].tolist()


def test_songs_are_read_in_other_keys_and_louder(small, corpora):
    """By the loader, and by what looks them up in device memory; drums stay."""
    corpus, n = corpora(1), 3 * 2048
    songs, vocabulary = np.arange(len(corpus.names)), corpus.vocabulary
    lanes = Lanes(corpus, songs, 1, seed=0, transpose=5, velocity_offset=3)
    shifted, plain = lanes.read(0, n)["tokens"][0], Lanes(corpus, songs, 1, seed=0).read(0, n)["tokens"][0]
    kinds, moved = vocabulary.kinds[plain], shifted - plain
    assert set(moved[kinds == Kind.NOTE].tolist()) > {-1, 1}
    assert abs(moved[kinds == Kind.NOTE]).max() <= 5
    assert abs(moved[kinds == Kind.VELOCITY]).max() == 3
    assert not moved[~np.isin(kinds, (Kind.NOTE, Kind.VELOCITY))].any()
    assert (vocabulary.kinds[shifted] == kinds).all()
    config = changed(small, data__location="device", data__transpose=5, data__velocity_offset=3, data__lanes=1)
    put = make_put(config, corpus, make_mesh(config))
    np.testing.assert_array_equal(put(lanes.lookup(0, n))["tokens"][0], shifted)


def test_transposed_copies_processes_and_another_folder(folder, tmp_path):
    """Encoded by two processes as by one; a run's vocabulary encodes other music."""
    one = encoded(folder, tmp_path / "one", "TSD", Scheme(), 60, transpose=1, fractions=(0.6, 0.2, 0.2))
    two = tmp_path / "two"
    size = one.vocabulary.size
    encode_folder(folder, two, tokenization="TSD", vocabulary=size, transpose=1, workers=2, fractions=(0.6, 0.2, 0.2))
    assert open_corpus(two).fingerprint == one.fingerprint
    copies = np.flatnonzero(one.semitones == 1)
    assert len(copies) > 3
    for copy in copies.tolist():
        original = [i for i, name in enumerate(one.names) if name == one.names[copy] and one.semitones[i] == 0]
        np.testing.assert_array_equal(one.song(copy).notes, one.song(original[0]).notes + np.array([0, 0, 1, 0, 0]))
    assert len(list(training_notes(one)[1])) > 0
    encode_folder(folder, tmp_path / "again", vocabulary=one.vocabulary, workers=1)
    assert open_corpus(tmp_path / "again").vocabulary == one.vocabulary


def test_the_command_refuses_what_it_can_not_do(folder, tmp_path, monkeypatch):
    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["midigen encode", str(folder), "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(InputError) as error:
            encode_command()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "miditok:REMI or miditok:TSD" in said("--tokenizer", "miditok:CPWord")
    assert "leave out --tokenizer" in said("--tokenizer", "miditok:TSD", "--faithful")
    assert "base tokens" in said("--tokenizer", "miditok:TSD", "--vocabulary", "100")
    monkeypatch.setitem(sys.modules, "miditok", None)
    miditok.tokenizer_of.cache_clear()
    assert 'pip install -e ".[miditok]"' in said("--tokenizer", "miditok:REMI")
    assert not (tmp_path / "out").exists()


def test_files_that_miditok_can_not_read_are_skipped(folder, tmp_path):
    midi = tmp_path / "midi"
    midi.mkdir()
    good = write_midi(midi / "good.mid", [random_notes(np.random.default_rng(0), 40)])
    (midi / "late.mid").write_bytes(_with_late_meter(good.read_bytes()))
    corpus = encoded(midi, tmp_path / "out", "REMI", Scheme(), fractions=(1, 0, 0))
    assert corpus.names == ["good.mid"]
    assert "late.mid" in (tmp_path / "out" / "skipped.csv").read_text()
    with pytest.raises(InputError, match=r"late.mid: .*; give another MIDI file"):
        read_with(midi / "late.mid", corpus.vocabulary)


def _with_late_meter(data):
    """The file with another meter after some million bars."""
    track = (
        b"\x00\xff\x58\x04\x04\x02\x18\x08" + b"\xff\xff\xff\x7f\xff\x58\x04\x03\x02\x18\x08" * 8 + b"\x00\xff\x2f\x00"
    )
    n_tracks = int.from_bytes(data[10:12], "big") + 1
    return data[:10] + n_tracks.to_bytes(2, "big") + data[12:] + b"MTrk" + len(track).to_bytes(4, "big") + track


def test_length_in_bars(small, folder):
    """A song in 6/8 goes on in bars of its own length."""
    sampler = Sampler(model_of(small, plain("REMI")))
    (take,) = sampler.generate(folder / "pickup.mid", prompt_bars=2, length=Length(3)).finish()
    assert take.start == 56
    assert take.session.rows[0].end == 56 + 3 * 48
    assert (np.diff(take.song.bars[:, 0]) > 0).all()
