import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import (
    ATTENTION,
    BACKENDS,
    BOTH,
    KINDS,
    KINDS_AND_BOTH,
    MEMORIES,
    OPTIONS,
    SOME_MEMORIES,
    batch_of,
    build,
    changed,
    logits_in_segments,
    prediction,
    read_tape,
    some,
)

from midigen_jax import vocab
from midigen_jax.model import memory as mem
from midigen_jax.model.decoder import Decoder, abstract_decoder
from midigen_jax.model.layers import dropout, pitch_features
from midigen_jax.model.memory import NO_SONG
from midigen_jax.model.reader import read_segment, read_segments
from midigen_jax.vocab import Vocabulary

DECODERS = {name: {f"model__{key}": x for key, x in options.items()} for name, options in OPTIONS.items()}


@pytest.mark.parametrize(
    "changes",
    some(
        DECODERS | {"context+alignment": BOTH, "attention": ATTENTION}, "all options", "context+alignment", "attention"
    ),
)
def test_no_logit_depends_on_a_later_token(two_layers, changes):
    """Each depends on all tokens of the segment up to its own and on none after it, with both memories filled.

    By the gradient, and, since a search has none, to the bit when later tokens change.
    """
    config = changed(two_layers, **changes)
    graphdef, params = build(config)
    batch = batch_of(config, 5, [[80]])
    if config.memory.aligns:  # tokens must repeat, or nothing agrees
        batch |= {"tokens": batch["tokens"] % 5}
    earlier, last = ({name: x[:, part] for name, x in batch.items()} for part in (np.s_[:64], np.s_[64:]))
    memory = logits_in_segments(graphdef, params, config, earlier)[1]
    bars = jnp.arange(50, 66)[None]  # all different: a row of the bars' table is a place

    @jax.jit
    def logits_of(bar_table, tokens):
        output = read_segment(
            nnx.merge(graphdef, params | {"bar": bar_table}), memory, last | {"tokens": tokens, "bar": bars}
        )
        return prediction(output)[0], output.retrieval.statistics.hit_rate

    logits, hit_rate = logits_of(params["bar"], last["tokens"])
    assert (hit_rate == 1).all()
    weights = jnp.cos(jnp.arange(logits.shape[1]))  # LayerNorm makes the plain sum of a tied output's logits constant
    gradients = jax.jit(jax.jacrev(lambda table: logits_of(table, last["tokens"])[0] @ weights))(params["bar"])
    depends = (gradients[:, 50:66] != 0).any(-1)
    assert (depends == np.tri(16, dtype=bool)).all()
    for place in (1, 9, 15):
        other = logits_of(params["bar"], last["tokens"].at[:, place:].add(7) % 389)[0]
        assert (other[:place] == logits[:place]).all()
        assert (other[place:] != logits[place:]).any(-1).all()


@pytest.mark.parametrize("positions", ["t5", "musical", "rotary"])
def test_segments_with_xl_memory_equal_one_long_pass(small, positions):
    """With XL memory as long as the tape, in any number of layers, and with songs that meet inside a segment."""
    config = changed(
        small,
        model__layers=3,
        model__positions=positions,
        memory__knn=0,
        memory__xl=192,
        data__segment=64,
    )
    graphdef, params = build(config)
    batch = batch_of(config, 3, [[192], [20, 172], [7, 90, 95]])
    in_segments, _ = logits_in_segments(graphdef, params, config, batch)
    at_once, _ = logits_in_segments(graphdef, params, changed(config, memory__xl=0), batch, segment=192)
    np.testing.assert_allclose(in_segments, at_once, atol=1e-4)
    # Without memory it is another function.
    no_memory, _ = logits_in_segments(graphdef, params, changed(config, memory__xl=0), batch)
    assert (jnp.abs(no_memory - at_once)[0, 64:].max(-1) > 1e-2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_attention_memory_of_everything_equals_one_long_pass(small, backend):
    """In one layer without position bias, with all neighbours found, one softmax over both is attention to all."""
    config = changed(
        small,
        **ATTENTION,
        model__layers=1,
        memory__knn_layer=1,
        memory__knn=192,
        memory__top_k=192,
        memory__backend=backend,
    )
    graphdef, params = build(config)
    params["bias"] = jnp.zeros_like(params["bias"])
    params["blocks"][0]["attention"]["knn"]["bias"] = jnp.zeros(2)
    batch = batch_of(config, 12, [[192], [20, 172], [7, 90, 95]])
    in_segments, _ = logits_in_segments(graphdef, params, config, batch)
    at_once, _ = logits_in_segments(graphdef, params, config, batch, segment=192)
    np.testing.assert_allclose(in_segments, at_once, atol=1e-4)


def test_knn_memory_of_everything_tells_what_followed_each_context(small):
    """With all neighbours found and their scores raised far above the window's, all attention goes to the ring."""
    config = changed(
        small,
        model__layers=1,
        memory__knn_layer=1,
        memory__xl=16,
        memory__knn=64,
        memory__top_k=64,
        model__dropout=0.0,
    )
    graphdef, params = build(config)
    attention = params["blocks"][0]["attention"]
    attention["knn"]["bias"] = jnp.full_like(attention["knn"]["bias"], 100.0)
    batch = batch_of(config, 4, [[64]])
    logits, _ = logits_in_segments(graphdef, params, config, batch)
    decoder = nnx.merge(graphdef, params)
    tables = (("token", batch["tokens"]), ("bar", batch["bar"] % 1024), ("position", batch["position"] % 96))
    embedded = sum(params[name][ids] for name, ids in tables)
    for distance in (1, 2):
        before = params["previous"][distance - 1][jnp.roll(batch["tokens"], distance, 1)]
        embedded += jnp.where(jnp.arange(64)[:, None] >= distance, before, 0)
    padded = {name: jnp.pad(x, ((0, 0), (15, 0)), constant_values=-1) for name, x in batch.items()}
    context = jnp.swapaxes(decoder.context_keys(padded["tokens"], padded["song"], batch["position"]), 1, 2)
    for segment in (2, 3):
        begin, n = segment * 16, (segment - 1) * 16  # the segment before is in the XL memory
        scores = jnp.einsum("bhtk,bhwk->bhtw", context[:, :, begin : begin + 16], context[:, :, :n])
        weights = jax.nn.softmax(scores * attention["knn"]["scale"][:, None, None])
        said = params["output"][batch["tokens"][:, 1 : n + 1]]
        y = jnp.einsum("h,bhtw,bwd->btd", attention["knn"]["logit_scale"], weights, said)
        h = embedded[:, begin : begin + 16] + attention["out_bias"] + y
        block = decoder.blocks[0]
        h = h + block.ff(block.norm2(h), None)
        expected = decoder.norm(h) @ params["output"].T + params["output_bias"]
        np.testing.assert_allclose(logits[:, begin : begin + 16], expected, atol=2e-4)


@pytest.mark.parametrize("changes", some(MEMORIES, *SOME_MEMORIES))
def test_a_lane_never_hears_another_song(two_layers, changes):
    """Changing song A leaves all logits of the songs before and after it, and of other lanes, as they are, to the bit.

    Every song is long enough to reach the ring, which holds two songs of a lane at once.
    """
    config = changed(two_layers, **changes)
    graphdef, params = build(config)
    batch = batch_of(config, 13, [[70, 66, 72], [20, 188]])
    song_a = np.s_[0, 70:136]
    other = batch | {"tokens": (batch["tokens"].at[song_a].add(7)) % 389, "bar": batch["bar"].at[song_a].add(1)}
    (one, memory, in_ring), (two, other_memory, _) = (read_tape(graphdef, params, config, x) for x in (batch, other))
    if config.memory.has_keys:
        assert set(np.unique(memory.knn.song[0])) == {1, 2}
        for song in (0, 1, 2):
            starts = np.asarray(batch["song"][0, ::16]) == song
            assert in_ring[0, starts].max() > config.memory.top_k, "searches of this song hit"
        assert (memory.knn.keys[0] != other_memory.knn.keys[0]).any()  # song A is still in the ring
    elsewhere = np.ones(one.shape[:2], bool)
    elsewhere[song_a] = False
    assert (one[elsewhere] == two[elsewhere]).all()
    assert (one[song_a] != two[song_a]).any(-1).all()


@pytest.mark.parametrize("retrieval", ["context", "alignment", "attention", "context+alignment"])
def test_the_knn_memory_changes_what_comes_after_it(small, retrieval):
    """What has left the XL window still matters, through the kNN memory alone."""
    config = changed(small, model__layers=1, memory__knn_layer=1, memory__xl=16, memory__retrieval=retrieval)
    graphdef, params = build(config)
    batch = batch_of(config, 4, [[64]])
    other = batch | {"tokens": batch["tokens"].at[0, :16].add(7) % 389}
    one, _ = logits_in_segments(graphdef, params, config, batch)
    two, _ = logits_in_segments(graphdef, params, config, other)
    assert (one[0, 48:] != two[0, 48:]).any()
    without = changed(config, memory__knn=0)
    graphdef, params = build(without)
    one, _ = logits_in_segments(graphdef, params, without, batch)
    two, _ = logits_in_segments(graphdef, params, without, other)
    assert (one[0, 48:] == two[0, 48:]).all()


@pytest.mark.parametrize("changes", some(KINDS, "context"))
def test_backends_give_the_same_loss_and_gradients(small, changes):
    small = changed(small, **changes)
    _, params = build(small)
    batch = batch_of(small, 6, [[96], [30, 66], [96]])

    def loss(params, backend):
        graphdef = abstract_decoder(changed(small, memory__backend=backend), Vocabulary())
        losses, _ = read_segments(nnx.merge(graphdef, params), mem.init_memory(small, 3), batch)
        return losses.nats

    (one, gradient_one), (two, gradient_two) = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, backend) for backend in ("faiss", "xla")
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), gradient_one, gradient_two)
    attention = gradient_one["blocks"][0]["attention"]
    assert (attention["knn"]["bias"] != 0).all()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient_one))


@pytest.mark.slow
def test_a_memory_by_alignment_with_jit_equals_eager(small):
    config = changed(small, **BOTH)
    graphdef, params = build(config)
    batch = batch_of(config, 2, [[32], [20, 12], [32]])

    def read(params):
        return read_segments(nnx.merge(graphdef, params), mem.init_memory(config, 3), batch)

    jitted = jax.jit(read)(params)
    with jax.disable_jit():
        eager = read(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), eager, jitted)


@pytest.mark.parametrize("changes", some(KINDS, "context"))
def test_jit_equals_eager_and_statistics_count_hits(small, changes):
    small = changed(small, **changes)
    graphdef, params = build(small)
    batch = batch_of(small, 4, [[64], [50, 14], [64]])

    def read(params):
        memory = mem.init_memory(small, 3)
        return read_segments(nnx.merge(graphdef, params), memory, batch)

    jitted = jax.jit(read)(params)
    with jax.disable_jit():
        eager = read(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), eager, jitted)
    statistics = jitted[0].statistics
    # XL memory holds 24 tokens: lanes' songs are in the ring from the third segment (slots 32 on) on, all queries hit,
    # but for the 14 of the song that begins in lane 1.
    assert statistics.hit_rate == pytest.approx((2 * 3 * 16 - 14) / (4 * 3 * 16), abs=1e-6)
    assert 24 < statistics.ages / statistics.hits < 64
    assert ((statistics.attention_share > 0) & (statistics.attention_share < statistics.hit_rate)).all()


def test_dropout_keeps_the_mean():
    x = jnp.ones((4, 100, 100))
    y = dropout(x, 0.25, jax.random.split(jax.random.key(0), 4))
    assert np.unique(y).tolist() == pytest.approx([0, 256 / 192])
    assert float(y.mean()) == pytest.approx(1, abs=0.02)
    assert dropout(x, 0.25, None) is x


@pytest.mark.parametrize("changes", some(KINDS_AND_BOTH, "context+alignment"))
def test_padding_and_bfloat16_give_finite_gradients(small, changes):
    config = changed(small, model__dtype="bfloat16", **changes)
    graphdef, params = build(config)
    batch = batch_of(config, 4, [[64], [64], [64]])
    batch["song"] = batch["song"].at[1, 20:].set(NO_SONG)
    batch["targets"] = batch["targets"].at[1, 19:].set(-1)

    def loss(params):
        memory = mem.init_memory(config, 3)
        return read_segments(nnx.merge(graphdef, params), memory, batch, jax.random.split(jax.random.key(0), 3))[0].nats

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(x.dtype == jnp.float32 and jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
    full = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32", dropout=0.0))
    graphdef = abstract_decoder(full, Vocabulary())
    losses, _ = read_segments(nnx.merge(graphdef, params), mem.init_memory(full, 3), batch)
    assert float(value) == pytest.approx(float(losses.nats), rel=0.1)
    assert int(losses.targets) == (batch["targets"] >= 0).sum()


def test_a_token_s_pitch_is_part_of_its_embedding(small):
    """Octaves share their pitch class, an octave's notes the octave; a merged token has the sum of what it spells."""
    c, e = vocab.NOTE_0 + 36, vocab.NOTE_0 + 40
    duration = vocab.DURATION_0 + 2
    merges = ((c, duration), (vocab.SEP, duration), (c, duration, vocab.SEP, duration, e, duration, c + 12, duration))
    words = Vocabulary(merges=merges)
    note, rest, chord = range(389, 392)
    features = np.asarray(pitch_features(words))
    classes, octaves = features[:, :12], features[:, 12:]
    assert classes[[c, c + 12, c + 60], 0].tolist() == [1, 1, 1]
    assert [octaves[x].argmax() for x in (c, e, c + 11, c + 12, c + 60)] == [3, 3, 3, 4, 8]
    pitched = features[vocab.NOTE_0 : vocab.DURATION_0]
    assert (pitched.sum(1) == 2).all()
    assert not features[[*range(vocab.NOTE_0), *range(vocab.DURATION_0, 389), rest]].any()
    assert (features[note] == features[c]).all()
    assert (features[chord] == features[c] + features[e] + features[c + 12]).all()

    config = changed(small, model__pitches=True, model__tied=True, model__layers=1, memory__knn_layer=1)
    decoder = Decoder(config, words, rngs=nnx.Rngs(0))
    table = decoder.embeddings() - decoder.token[...]
    pitch = decoder.pitch[...]
    np.testing.assert_allclose(table[c + 12] - table[c], pitch[12 + 4] - pitch[12 + 3], atol=1e-6)
    np.testing.assert_allclose(table[chord], 2 * pitch[0] + pitch[4] + 2 * pitch[12 + 3] + pitch[12 + 4], atol=1e-6)


def test_a_tied_output_layer_is_the_embeddings(small):
    """Pitches included: the same logits as of an output layer with these weights."""
    tied = changed(small, model__pitches=True, model__tied=True, model__layers=1, memory__knn_layer=1)
    graphdef, params = build(tied)
    assert "output" not in params
    batch = batch_of(tied, 1, [[16]])
    one, _ = logits_in_segments(graphdef, params, tied, batch)
    untied = changed(tied, model__tied=False)
    table = nnx.merge(graphdef, params).embeddings()
    two, _ = logits_in_segments(abstract_decoder(untied, Vocabulary()), params | {"output": table}, untied, batch)
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
