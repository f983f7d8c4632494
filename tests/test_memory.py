import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import changed

from midigen_jax.model import memory as mem
from midigen_jax.model.memory import KNNMemory, XLMemory
from midigen_jax.run.checkpoint import FORMAT_VERSION, Checkpoints

BACKENDS = ["faiss", "xla"]
RETRIEVALS = ["context", "attention"]


def push(memory, config, song, value):
    """Rolls a segment whose keys all hold `value`, in the second layer 100 more, and whose values minus that; its
    tokens belong to `song` [B, T]."""
    segment = config.data.segment
    shape = (*memory.xl.keys[0].shape[:2], segment, memory.xl.keys[0].shape[3])
    of_layers = [value, value + 100]
    window = XLMemory(
        tuple(jnp.concatenate([x, jnp.full(shape, y)], 2) for x, y in zip(memory.xl.keys, of_layers, strict=True)),
        tuple(jnp.concatenate([x, jnp.full(shape, -y)], 2) for x, y in zip(memory.xl.values, of_layers, strict=True)),
        jnp.concatenate([memory.xl.song, song], 1),
        jnp.concatenate([memory.xl.token, jnp.full(song.shape, int(value))], 1),
        None if memory.xl.context is None else jnp.concatenate([memory.xl.context, jnp.full(shape, value)], 2),
    )
    return mem.Memory(*mem.roll(window, memory.knn, segment, config.memory.knn_layer), None)


@pytest.mark.parametrize("retrieval", RETRIEVALS)
def test_the_oldest_leave_for_the_ring_in_tape_order(two_layers, retrieval):
    """XL memory of 24 slots, segments of 16, a ring of 64: the two hold the last 88 tokens, none twice."""
    config = changed(two_layers, memory__retrieval=retrieval)
    memory = mem.init_memory(config, 2)
    for step in range(9):
        memory = push(memory, config, jnp.full((2, 16), step), float(step + 1))
    xl = memory.xl.keys[0][0, 0, :, 0]
    assert xl.tolist() == [8.0] * 8 + [9.0] * 16
    assert (memory.xl.values[1][1, 1, :, 0] == -100 - xl).all()
    knn, write = memory.knn, int(memory.knn.write[0])
    tape = np.repeat([4, 5, 6, 7, 8], [8, 16, 16, 16, 8])
    assert np.roll(knn.song[0], -write).tolist() == (tape - 1).tolist()
    keys = np.roll(knn.keys[0, 0, :, 0], -write)
    if retrieval == "context":
        assert keys.tolist() == tape.tolist()
        followed = np.append(tape[1:], 8)  # beside each key is the token after it
        assert np.roll(knn.values[0], -write).tolist() == followed.tolist()
    else:  # those of the second layer
        assert keys.tolist() == (tape + 100).tolist()
        assert (np.roll(knn.values[1, 1, :, 1], -write) == -keys).all()


def test_a_song_s_slots_are_one_range_of_its_lane(two_layers):
    memory = mem.init_memory(two_layers, 2)
    assert mem.valid_slots(memory.knn, jnp.array([0, -1])).length.tolist() == [0, 0]
    lanes = jnp.array([[0] * 16, [0] * 10 + [1] * 6])
    memory = push(memory, two_layers, lanes, 1.0)
    for _ in range(3):
        memory = push(memory, two_layers, jnp.array([[0] * 16, [1] * 16]), 2.0)
    *_, start, count = mem.valid_slots(memory.knn, jnp.array([0, 1]))
    # 64 tokens went in, 24 stay in XL memory; the ring's first 24 slots are the empty XL memory of the start.
    assert count.tolist() == [40, 30]
    assert start.tolist() == [24, 34]
    assert memory.knn.write.tolist() == [0, 0]
    assert (memory.knn.song[1, 34:] == 1).all()


@pytest.mark.parametrize("retrieval", RETRIEVALS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_planted_key_is_found_at_every_age(two_layers, backend, retrieval, tmp_path):
    """Every key that went into the ring is found, where it is and as old as it is, until it is written over.

    Segments of 16 tokens go through 24 slots of XL memory into a ring of 64; all keys of the tape differ. The ring
    fills, wraps around, is saved and restored half-way, and wraps around again.
    """
    segments, segment, xl, ring = 14, 16, 24, 64
    random = np.random.default_rng(0)
    tape = random.normal(size=(1, 2, segments * segment, 16)).astype(np.float32)
    tape /= np.linalg.norm(tape, axis=-1, keepdims=True)
    config = changed(two_layers, memory__backend=backend, memory__retrieval=retrieval)
    find = jax.jit(lambda slots, queries, may_search: mem.retrieve(slots, queries, may_search, 4, backend))
    roll = jax.jit(lambda window, knn: mem.roll(window, knn, segment, 2))
    memory = mem.init_memory(config, 1)
    found_ages = set()
    for end in range(segment, segments * segment + 1, segment):
        new = jnp.asarray(tape[:, :, end - segment : end])
        layer, layer_values = (
            jnp.concatenate([x[1], y], 2) for x, y in ((memory.xl.keys, new), (memory.xl.values, -new))
        )
        keys, values = (jnp.zeros_like(layer), layer), (jnp.zeros_like(layer), layer_values)
        song = jnp.concatenate([memory.xl.song, jnp.zeros((1, segment), jnp.int32)], 1)
        token = jnp.concatenate([memory.xl.token, jnp.arange(end - segment, end)[None]], 1)
        window = XLMemory(keys, values, song, token, layer if retrieval == "context" else None)
        stay, rolled = roll(window, memory.knn)
        memory = mem.Memory(stay, rolled, None)
        if end == 7 * segment:
            checkpoints = Checkpoints(tmp_path, keep=1)
            checkpoints.save(1, {"memory": memory}, {"format_version": FORMAT_VERSION})
            checkpoints.wait()
            shapes = jax.eval_shape(lambda: mem.init_memory(config, 1))
            memory = checkpoints.read(1, lambda meta: {"memory": shapes}).items["memory"]  # noqa: B023  (called at once)
            checkpoints.close()
        in_ring = np.arange(end - xl - ring, end - xl)  # places on the tape, oldest first
        planted = in_ring >= 0
        slots = mem.valid_slots(memory.knn, jnp.zeros(1, jnp.int32))
        hits = find(slots, jnp.asarray(tape[:, :, in_ring * planted]), jnp.ones((1, ring), bool))
        best = np.asarray(hits.slots[0, :, planted, 0])
        assert (best >= 0).all()
        assert (best == (in_ring[planted] + xl)[:, None] % ring).all()  # the XL memory of the start went in first
        expected = tape[0][:, in_ring[planted]].swapaxes(0, 1)
        assert (hits.keys[0, :, planted, 0] == expected).all()
        followed = in_ring[planted, None] + 1
        assert (hits.values[0, :, planted, 0] == (followed if retrieval == "context" else -expected)).all()
        age = np.asarray(mem.ages(slots, hits.slots, xl)[0, :, planted, 0])
        assert (age == (end + np.arange(ring) - in_ring)[planted, None]).all()
        found_ages |= set((end - 1 - in_ring[planted]).tolist())
    assert found_ages == set(range(xl, xl + ring))


@pytest.mark.parametrize("backend", BACKENDS)
def test_retrieval_finds_only_the_running_song(two_layers, backend):
    random = np.random.default_rng(2)
    keys = random.normal(size=(1, 2, 64, 16)).astype(np.float32)
    song = np.repeat([3, 4], 32)[None]
    knn = KNNMemory(jnp.asarray(keys), jnp.arange(64)[None] + 100, jnp.asarray(song), jnp.zeros(1, jnp.int32))
    queries = jnp.asarray(keys[:, :, 20:40])  # keys of both songs
    running = jnp.arange(20)[None] < 15  # song 5 has begun
    hits = mem.retrieve(mem.valid_slots(knn, jnp.array([4])), queries, running, 4, backend)
    assert hits.keys.shape == (1, 2, 20, 4, 16)
    assert (hits.slots[:, :, :15] >= 32).all()
    assert (hits.slots[:, :, 12:15, 0] == np.arange(32, 35)).all()  # each finds itself
    assert (hits.slots[:, :, 15:] == -1).all()  # the next song has nothing in the ring yet
    assert (hits.keys[0, :, 12:15, 0] == keys[0, :, 32:35]).all()
    assert (hits.values[:, :, :15] == hits.slots[:, :, :15] + 100).all()


def test_ages_count_tokens_along_the_tape(two_layers):
    knn = mem.init_memory(two_layers, 1).knn
    assert isinstance(knn, KNNMemory)
    knn = knn._replace(write=jnp.array([16]))
    slots = jnp.array([[[[15, 14], [15, 16]]]])
    assert mem.ages(mem.valid_slots(knn, jnp.array([0])), slots, 24).tolist() == [[[[25, 26], [26, 89]]]]


def test_without_a_ring_there_is_no_knn_memory(two_layers):
    config = changed(two_layers, memory__knn=0)
    memory = mem.init_memory(config, 2)
    assert memory.knn is None
    assert push(memory, config, jnp.zeros((2, 16), jnp.int32), 1.0).xl.song.shape == (2, 24)
