"""The PyTorch baseline: it is what benchmarks/_midigen.py says it is, and our decoder can compute the same."""

import dataclasses
import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from midigen_jax import config as cfg
from midigen_jax import vocab
from midigen_jax.errors import InputError
from midigen_jax.model.decoder import abstract_decoder, init_params
from midigen_jax.model.memory import Memory, XLMemory
from midigen_jax.training import losses
from midigen_jax.vocab import NO_SONG, Vocabulary

torch = pytest.importorskip("torch", reason="the baseline needs PyTorch: pip install torch")
pytest.importorskip("faiss", reason="the baseline's kNN memory needs Faiss: pip install faiss-cpu")

import _midigen as midigen  # noqa: E402  (it imports torch)
import _midigen_training as training  # noqa: E402
import _peers as peers  # noqa: E402

SMALL = midigen.Sizes(vocabulary=389, layers=4, width=32, heads=2, ff_width=64, block=17, lanes=3, top_k=4)


def batches_of(sizes, songs, *, seed=0):
    """Random batches; `songs` has a song id per lane for each of them."""
    random = np.random.default_rng(seed)
    shape = (sizes.lanes, sizes.segment)
    for song in songs:
        arrays = {
            "tokens": random.integers(0, sizes.vocabulary, shape),
            "targets": random.integers(0, sizes.vocabulary, shape),
            "bar": random.integers(0, 2000, shape),
            "position": random.integers(0, 96, shape),
            "song": np.repeat(np.array(song)[:, None], sizes.segment, 1),
        }
        yield {name: x.astype(np.int32) for name, x in arrays.items()}


def as_ours(xl, song):
    """The baseline's XL memory as ours, all of it of one song."""

    def split(x, heads=4):
        return jnp.asarray(x.unflatten(-1, (heads, -1)).transpose(1, 2).numpy())

    keys, values = (tuple(split(pair[i]) for pair in xl) for i in (0, 1))
    slots = xl[0][0].shape[:2]
    return XLMemory(keys, values, jnp.full(slots, song, jnp.int32), jnp.zeros(slots, jnp.int32), None)


def test_our_decoder_computes_the_same_with_the_baselines_weights():
    """From a song's second segment on; in the first the baseline attends to the zeros of empty memory, and we don't."""
    torch.manual_seed(0)
    sizes = midigen.Sizes(
        vocabulary=389, layers=3, width=64, heads=4, ff_width=256, block=33, lanes=2, knn=False, dropout=0.0
    )
    theirs = midigen.MIDIGen(sizes)
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms as well
            parameter += 0.1 * torch.randn_like(parameter)
    config = cfg.Config(
        model=cfg.Model(
            layers=3,
            width=64,
            heads=4,
            ff_width=256,
            activation="gelu",
            positions="t5",
            qk_norm=False,
            previous_tokens=0,
        ),
        memory=cfg.Memory(xl=32, knn=0, knn_layer=1),
        data=cfg.Data(lanes=2, segment=32),
    )
    graphdef, params = abstract_decoder(config, Vocabulary()), midigen.as_our_params(theirs)
    ours = jax.eval_shape(lambda: init_params(config, Vocabulary(), seed=0)[1])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, ours)

    @jax.jit
    def read(params, batch, xl):
        decoder = nnx.merge(graphdef, params)
        inputs = (batch[name] for name in ("tokens", "bar", "position", "song"))
        return decoder(*inputs, Memory(xl, None, None)).logits

    memory = midigen.Memory(sizes)
    differences = []
    for segment, batch in enumerate(batches_of(sizes, [[7, 7]] * 4)):
        xl = as_ours(memory.xl, song=7 if segment else NO_SONG)
        with torch.no_grad():
            expected = theirs(batch, memory).numpy()
        differences.append(np.abs(read(params, batch, xl) - expected).max())
    assert max(differences[1:]) < 1e-4
    assert differences[0] > 0.1
    assert expected.std() > 0.5


def test_a_search_finds_what_was_planted():
    random = np.random.default_rng(0)
    lane = midigen.LaneMemory(SMALL, torch.device("cpu"))
    keys, values = random.normal(size=(2, 40, SMALL.width)).astype(np.float32)
    lane.add(keys[:3], values[:3])
    assert lane.search(keys[:1]) is None  # fewer than the four to find
    for part in (slice(3, 25), slice(25, 40)):
        lane.add(keys[part], values[part])
    found = lane.search(keys[[5, 30]] + 0.01)
    assert found is not None
    assert found.shape == (2, 4, 2, SMALL.width)
    assert (found[:, 0] == np.stack([keys[[5, 30]], values[[5, 30]]], 1)).all()


def test_a_lane_memory_grows_for_songs_longer_than_those_of_training():
    lane = midigen.LaneMemory(dataclasses.replace(SMALL, block=1), torch.device("cpu"))
    keys = np.eye(SMALL.width, dtype=np.float32)
    for i in range(3):
        lane.add(keys + 2 * i, keys + i)
    found = lane.search(keys + 4)
    assert found is not None
    assert (found[:, 0, 1] == keys + 2).all()


def test_the_knn_layer_returns_what_was_planted():
    """With a gate of 1 its output is the memory's alone: the value that the nearest entries share."""
    torch.manual_seed(0)
    attention = midigen.Attention(dataclasses.replace(SMALL, dropout=0.0, lanes=1), knn=True)
    attention.out = torch.nn.Identity()
    torch.nn.init.ones_(attention.gate)
    x = torch.randn(1, 1, SMALL.width)
    query = torch.nn.functional.normalize(attention.q(x), dim=-1)[0].detach().numpy()
    value = np.random.default_rng(0).normal(size=SMALL.width).astype(np.float32)
    lane = midigen.LaneMemory(SMALL, torch.device("cpu"))
    lane.add(np.repeat(-query, 50, 0), np.zeros((50, SMALL.width), np.float32))
    lane.add(np.repeat(query, 4, 0), np.repeat(value[None], 4, 0))
    zeros = torch.zeros(1, 1, SMALL.width)
    y, (keys, _) = attention(x, torch.zeros(2, 1, 2), (zeros, zeros), [lane])
    np.testing.assert_allclose(y[0, 0].detach(), value, atol=1e-6)
    assert len(lane) == 55  # the token is added after the search
    np.testing.assert_allclose(keys.norm(), 1, atol=1e-6)


def test_a_new_song_begins_with_empty_memories():
    torch.manual_seed(0)
    theirs = midigen.MIDIGen(SMALL).eval()
    memory = midigen.Memory(SMALL)
    batches = list(batches_of(SMALL, [[0, 1, 2], [0, 1, 2], [0, 3, 2]]))
    for batch in batches:
        logits = theirs(batch, memory)
    assert [len(lane) for lane in memory.knn] == [48, 16, 48]
    alone = theirs(batches[-1], midigen.Memory(SMALL))
    same = (logits - alone).abs().amax((1, 2)) < 1e-5
    assert same.tolist() == [False, True, False]


def test_no_logit_depends_on_a_later_token():
    theirs = midigen.MIDIGen(SMALL).eval()
    one, other = batches_of(SMALL, [[0, 1, 2]] * 2)
    other["tokens"][:, :9] = one["tokens"][:, :9]
    other |= {name: one[name] for name in ("bar", "position")}
    first, second = (theirs(batch, midigen.Memory(SMALL)).detach().numpy() for batch in (one, other))
    np.testing.assert_allclose(first[:, :9], second[:, :9], atol=1e-5)
    assert not np.allclose(first[:, 9:], second[:, 9:], atol=1e-2)


def test_the_knn_layer_is_the_fourth_from_the_end():
    theirs = midigen.MIDIGen(dataclasses.replace(SMALL, layers=6))
    assert [block.attention.gate is not None for block in theirs.blocks] == [False, False, True, False, False, False]
    with pytest.raises(ValueError, match="layers=3"):
        midigen.MIDIGen(dataclasses.replace(SMALL, layers=3))


def test_the_baseline_learns():
    baseline = training.Baseline(SMALL)
    (batch,) = batches_of(SMALL, [[0, 0, 0]])
    losses = [baseline.step(batch) for _ in range(80)]
    assert losses[-1] < 0.8 * losses[0]


def test_blocks_are_cut_as_in_midigen(corpus):
    """From a block of T tokens T - 1 inputs and T - 1 targets, the last one padded, the next one right after it."""
    song = int(corpus.songs_of("train")[0])
    here = slice(*corpus.offsets[song : song + 2])
    blocks = list(training.song_blocks(corpus, song, 17, 17))

    def cut(x, padding):
        return np.append(x[here].astype(int), [padding] * (-len(x[here]) % 17)).reshape(-1, 17)

    expected = {name: cut(getattr(corpus, name), 0)[:, :-1] for name in ("bar", "position")}
    expected["tokens"] = cut(corpus.tokens, vocab.PAD)[:, :-1]
    expected["targets"] = cut(corpus.tokens, vocab.PAD)[:, 1:]
    assert (expected["tokens"][-1] == vocab.PAD).any()
    for name, x in expected.items():
        assert (np.stack([block[name] for block in blocks]) == x).all()


def test_lanes_stream_short_songs_block_by_block(corpus):
    songs = corpus.songs_of("train")
    lengths = np.diff(corpus.offsets)[songs]
    block = int(np.median(lengths)) // midigen.MAX_BLOCKS
    sizes = dataclasses.replace(SMALL, block=block)
    n_blocks = {int(song): -(-int(n) // block) for song, n in zip(songs, lengths, strict=True)}
    short = {song for song, n in n_blocks.items() if n <= midigen.MAX_BLOCKS}
    assert 0 < len(short) < len(songs)
    first_blocks = {corpus.tokens_of(song)[: block - 1].astype(int).tobytes(): song for song in short}
    seen, blocks_left, ids = [], [0] * sizes.lanes, [-1] * sizes.lanes
    for batch in itertools.islice(training.training_batches(corpus, songs, sizes), 60):
        assert (batch["song"] == batch["song"][:, :1]).all()
        for lane in range(sizes.lanes):
            begins = batch["song"][lane, 0] != ids[lane]
            assert begins == (blocks_left[lane] == 0) == (batch["tokens"][lane, 0] == vocab.SOS)
            if begins:
                seen.append(first_blocks[batch["tokens"][lane].astype(int).tobytes()])
                blocks_left[lane], ids[lane] = n_blocks[seen[-1]], batch["song"][lane, 0]
            blocks_left[lane] -= 1
            real = (batch["targets"][lane] != vocab.PAD).sum()
            assert blocks_left[lane] == 0 or real == sizes.segment
    assert set(seen[: len(short)]) == short  # an epoch, then the next


def test_evaluation_counts_every_token_but_sos_once(corpus):
    songs = corpus.songs_of("train")[:5]
    theirs = midigen.MIDIGen(SMALL)
    for parameter in theirs.logits.parameters():
        torch.nn.init.zeros_(parameter)
    nats = training.evaluate(theirs, corpus, songs)
    tokens = losses.figures(nats, corpus, songs).tokens
    assert nats == pytest.approx(tokens * math.log(SMALL.vocabulary), rel=1e-5)
    assert theirs.training


def test_evaluation_does_not_depend_on_the_lanes(corpus):
    """Each song begins with memories of its own."""
    songs = corpus.songs_of("train")[:4]
    theirs = midigen.MIDIGen(SMALL)
    together = training.evaluate(theirs, corpus, songs)
    theirs.sizes = dataclasses.replace(SMALL, lanes=1)
    alone = sum(training.evaluate(theirs, corpus, songs[i : i + 1]) for i in range(4))
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    ("peer", "module"),
    [("XTransformers", "x_transformers"), ("MemorizingTransformers", "memorizing_transformers_pytorch")],
)
def test_a_peer_learns_and_takes_songs_that_meet_within_a_segment(peer, module):
    pytest.importorskip(module, reason=f"{module} is not installed, or a part that it needs", exc_type=ImportError)
    contestant = getattr(peers, peer)(SMALL)
    (batch,) = batches_of(dataclasses.replace(SMALL, block=18), [[0, 0, 0]])
    losses = []
    for i in range(60):
        song = batch["song"].copy()
        song[0] += i // 4
        song[0, 9:] += i % 4 == 3
        losses.append(contestant.step(batch | {"song": song}))
    assert losses[-1] < 0.8 * losses[0]


def test_the_error_of_a_missing_peer_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    with pytest.raises(InputError, match="pip install x-transformers"):
        peers.XTransformers(SMALL)
