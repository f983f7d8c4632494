import numpy as np

from midigen_jax.music.loops import Loop, find_loops
from midigen_jax.music.song import new_song
from midigen_jax.vocab import Scheme


def song_of(bars, length=32):
    """Two notes a bar, named by a number."""
    notes = [(length * i + x, 4, 40 + bar % 50 + x, 0, 80) for i, bar in enumerate(bars) for x in (0, 8) if bar >= 0]
    return new_song(Scheme())._replace(notes=np.array(notes, np.int32).reshape(-1, 5))


def test_eight_equal_bars_are_no_loop():
    assert find_loops(song_of([1, 2, *[3] * 8, 4, 5])) == []
    assert find_loops(song_of([1, 2, *[3] * 9, 4, 5])) == [Loop(2, 9, 1)]
    assert find_loops(song_of([3] * 9)) == [Loop(0, 9, 1)]


def test_periods_up_to_four_bars():
    for period in (2, 3, 4):
        loop = list(range(period)) * 9
        assert find_loops(song_of([9, *loop[:8], 10, 11])) == []
        assert find_loops(song_of([9, *loop[:9], 10, 11])) == [Loop(1, 9, period)]
    assert find_loops(song_of([0, 1, 2, 3, 4] * 6)) == []


def test_silence_is_a_loop_unless_it_follows_the_last_note():
    assert find_loops(song_of([1, *[-1] * 9, 2])) == [Loop(1, 9, 1)]
    assert find_loops(song_of([1, *[-1] * 8, 2])) == []
    assert find_loops(song_of([1, *[-1] * 9])) == []
    assert find_loops(song_of([])) == []


def test_the_shortest_period_counts_and_two_loops_are_two():
    assert find_loops(song_of([*[1] * 12, 7, *[2, 3] * 6])) == [Loop(0, 12, 1), Loop(13, 12, 2)]


def test_a_loop_that_changes_into_another_is_one_of_two():
    assert find_loops(song_of([*[1, 2] * 6, *[1] * 9])) == [Loop(0, 13, 2), Loop(12, 9, 1)]
    assert find_loops(song_of([*[1] * 11, *[2, 3, 1] * 4])) == [Loop(0, 11, 1), Loop(10, 13, 3)]


def test_bars_differ_by_length_and_by_onsets():
    song = song_of([1] * 9)
    changed = song._replace(bars=np.array([[0, 32, 0], [6 * 32, 16, 6]]))
    assert find_loops(changed) == []
    after = song._replace(bars=np.array([[0, 32, 0], [9 * 32, 24, 9]]))  # after the last note
    assert find_loops(after) == [Loop(0, 9, 1)]
    cut_short = song._replace(bars=np.array([[0, 32, 0], [9 * 32 - 8, 32, 9]]))
    assert find_loops(cut_short) == []
    moved = song.notes.copy()
    moved[12, 0] += 1
    assert find_loops(song._replace(notes=moved)) == []
    longer = song.notes.copy()
    longer[12, 1] += 1  # only held longer
    assert find_loops(song._replace(notes=longer)) == [Loop(0, 9, 1)]


def test_bars_before_the_start_are_ignored():
    assert find_loops(song_of([1] * 12), start=3 * 32) == [Loop(3, 9, 1)]
    assert find_loops(song_of([1] * 12), start=3 * 32 + 1) == []


def test_varied_loops_change_a_note_or_so_from_bar_to_bar():
    """Four notes a bar, of which one is another each time: of five that either of two bars has, three are in both."""
    notes = [(32 * bar + 8 * i, 4, 60 + (bar if i == 0 else 2 * i), 0, 80) for bar in range(12) for i in range(4)]
    song = new_song(Scheme())._replace(notes=np.array(notes, np.int32))
    assert find_loops(song) == find_loops(song, similarity=0.61) == []
    assert find_loops(song, similarity=0.6) == [Loop(0, 12, 1)]
    meters = song._replace(bars=np.array([[0, 32, 0], [6 * 32, 24, 6]]))
    assert find_loops(meters, similarity=0.1) == []
