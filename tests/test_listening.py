"""The listening page: what a pair holds, that nothing tells who wrote what, and what its script does with votes."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from midigen_jax.evaluation import listening
from midigen_jax.evaluation.generation_metrics import Pair, choose_prompts
from midigen_jax.evaluation.listening import ITSELF, clips
from midigen_jax.evaluation.votes import preferences, read_votes
from midigen_jax.music.song import Song, new_song
from midigen_jax.vocab import Scheme

SCRIPT = Path(listening.__file__).with_name("listening.js")


def song_of(bars: int, *, pitch: int = 60, tempo: int = 500_000) -> Song:
    """A note a bar."""
    notes = np.array([[32 * bar, 32, pitch, 0, 80] for bar in range(bars)], np.int32).reshape(-1, 5)
    return new_song(Scheme())._replace(notes=notes, tempos=np.array([[0, tempo]], np.int32))


def test_clips_are_equally_long_and_fast():
    one, other = clips(song_of(20), song_of(40, pitch=50, tempo=400_000), 8)
    assert (len(one.notes), len(other.notes)) == (16, 16)  # four bars before, up to the last of the shorter
    assert one.end == other.end
    assert other.tempos.tolist() == one.tempos.tolist() == [[0, 500_000]]
    one, _ = clips(song_of(99), song_of(99), 8)
    assert len(one.notes) == 4 + 16
    one, _ = clips(song_of(99), song_of(99), 2)
    assert len(one.notes) == 2 + 16
    assert clips(song_of(8), song_of(99), 8) is None
    assert clips(song_of(0), song_of(99), 0) is None


@pytest.fixture(scope="module")
def page(corpus):
    """Two runs that continued two songs."""
    prompts = choose_prompts(corpus, corpus.songs_of("train"), 2, prompt_bars=2, bars=8)

    def written(pitch):
        pairs = []
        for prompt in prompts:
            notes = [[prompt.prompt.end + 32 * i, 32, pitch, 0, 80] for i in range(4)]
            song = prompt.prompt.song
            song = song._replace(notes=np.concatenate([song.notes, np.array(notes, np.int32)]))
            continuation: Any = SimpleNamespace(song=song, start=prompt.prompt.end)
            pairs.append(Pair(prompt, continuation, song))
        return pairs

    return listening.page({"mine": written(60), "run <2>": written(70)}, corpus, ["a.mid", "b\udcff.mid"], seed=3)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r"const DATA = (.*);\n", page)
    assert found
    return json.loads(found[1])


def test_the_page_is_self_contained_and_names_nobody(page):
    data = data_of(page)
    key = json.loads(base64.b64decode(data["key"]))
    assert len(data["pairs"]) == 4
    assert sorted(tuple(pair["compared"]) for pair in key) == [("mine", "run <2>")] * 2 + [("mine", ITSELF)] * 2
    for pair, sounds in zip(key, data["pairs"], strict=True):
        assert sorted(pair["names"]) == sorted(pair["compared"])
        assert all(clip.startswith("data:audio/mpeg;base64,") for clip in sounds)
        assert sounds[0] != sounds[1]
    for name in ("mine", "run <2>", "a.mid", "http"):
        assert name not in re.sub(r"base64,[\w+/=]*", "", page).replace(data["key"], "")
    assert not re.search(r"(?:src|href)=", re.sub(r'href="data:,"', "", page))
    assert page.count("<script>") == page.count("</script>") == 1
    assert data["intervals"][4][1][0] == 0.25


def test_the_order_is_drawn(page):
    names = [pair["names"] for pair in json.loads(base64.b64decode(data_of(page)["key"]))]
    assert {pair.index("mine") for pair in names} == {0, 1}


# As much of a browser as the script uses.
BROWSER = """
const fs = require("fs");
const elements = {};
class Element {
  constructor() { this.listeners = {}; this.paused = true; this.tagName = "P"; this.disabled = false; }
  addEventListener(name, f) { this.listeners[name] = f; }
  setAttribute(name, value) { this[name] = value; }
  replaceChildren(...lines) { this.lines = lines.map((x) => x.textContent); }
  pause() { this.paused = true; }
  play() { this.paused = false; this.listeners.play(); }
  click() { if (this.listeners.click) this.listeners.click(); }
}
const document = {
  getElementById: (id) => (elements[id] ||= new Element()),
  createElement: () => new Element(),
  addEventListener: (name, f) => { document.press = (key) => f({ key, target: new Element(), preventDefault() {} }); },
};
const store = {};
const localStorage = { getItem: (name) => store[name] ?? null, setItem: (name, x) => { store[name] = x; } };
class Blob { constructor(parts) { this.text = parts.join(""); } }
let saved = null;
URL.createObjectURL = (blob) => { saved = blob.text; return "blob:"; };
"""

STORY = """
const log = [];
const look = () => log.push([elements.heading.textContent, elements.show.disabled, elements.progress.textContent]);
look();
document.press("a"); log.push([players.a.paused, players.b.paused]);
document.press("b"); log.push([players.a.paused, players.b.paused]);
document.press("1"); document.press("ArrowRight"); document.press("2"); document.press("ArrowRight");
document.press("0"); look();
document.press("ArrowRight"); document.press("ArrowRight"); elements["vote-a"].click(); look();
elements.show.click(); look();
document.press("2");  // too late
elements.download.click();
log.push(elements.result.lines, JSON.parse(Object.values(store)[0]));
fs.writeFileSync(process.argv[2], saved);
console.log(JSON.stringify(log));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_votes_are_kept_counted_and_downloaded(page, tmp_path):
    data = page[page.index("const DATA") : page.index('"use strict"')]
    (tmp_path / "story.js").write_text(BROWSER + data + SCRIPT.read_text().partition("\n")[2] + STORY)
    command = ["node", str(tmp_path / "story.js"), str(tmp_path / "votes.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    first, playing_a, playing_b, third, last, shown, lines, kept = json.loads(done.stdout)
    assert first == ["Pair 1 of 4", True, "0 of 4 pairs have a vote"]
    assert (playing_a, playing_b) == ([False, True], [True, False])
    assert third == ["Pair 3 of 4", True, "3 of 4 pairs have a vote"]
    assert last == ["Pair 4 of 4", False, "4 of 4 pairs have a vote"]
    key = json.loads(base64.b64decode(data_of(page)["key"]))
    assert shown[0] == "Pair 4 of 4: A is {}, B is {}".format(*key[3]["names"])
    assert kept == {"votes": {"0": "a", "1": "b", "2": "none", "3": "a"}, "shown": True}
    votes = read_votes(tmp_path / "votes.json")
    assert [vote.preferred for vote in votes] == [key[0]["names"][0], key[1]["names"][1], None, key[3]["names"][0]]
    # The page counts as `midigen votes` does.
    found = preferences(votes)
    assert len(lines) == len(found)
    for line, x in zip(lines, found, strict=True):
        assert line.startswith(f"{x.one} preferred to {x.other}: {x.preferred} of {x.votes} votes")
        if x.share:
            low, high = (round(100 * value) for value in x.share[1:])
            assert f"95 % interval {low} % to {high} %" in line
