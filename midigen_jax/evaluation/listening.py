"""The listening page: pairs of continuations, in random order and without names, to be told which is better.

Each pair is a continuation by the first run, and that of the song itself or of another run, both after the same last
bars of the prompt, of equal length and at one tempo. The page is one file: sounds are embedded, votes are kept by the
browser and can be downloaded (`votes`), and the names are shown, with the result, when all pairs have a vote.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.corpus import Corpus
from ..music.song import Song, excerpt
from .generation_metrics import Pair
from .page import PAGE, rendered
from .votes import FORMAT_VERSION
from .wilson import wilson

LEAD_BARS, BARS = 4, 16  # of the prompt, and of the continuation
ITSELF = "the song itself"


class Comparison(NamedTuple):
    """Two clips whose names the listener does not know."""

    title: str
    names: tuple[str, str]
    clips: tuple[Song, Song]


def clips(one: Song, other: Song, bar: int) -> tuple[Song, Song] | None:
    """Two continuations of a song from the same bar on, with the last bars before it; None if one adds nothing.

    Neither length nor tempo tells them apart: both end with the bar in which the shorter one's last note begins, and
    have the tempos of the first.
    """
    first = max(bar - LEAD_BARS, 0)
    end = min(song.bar_of(int(song.notes[-1, 0])) + 1 if len(song.notes) else 0 for song in (one, other))
    if end <= bar:
        return None
    bars = min(end, bar + BARS) - first
    a, b = excerpt(one, first, bars), excerpt(other, first, bars)
    return a, b._replace(tempos=a.tempos)


def comparisons(pairs: dict[str, list[Pair]], corpus: Corpus, titles: Sequence[str]) -> list[Comparison]:
    """The first run's continuations beside those of the songs themselves and of each other run.

    Args:
        pairs: for each run the same songs, continued.
        titles: of these songs.
    """
    (first, own), *others = pairs.items()
    found = []
    for i, (pair, title) in enumerate(zip(own, titles, strict=False)):
        song, bar = pair.continuation.song, pair.continuation.song.bar_of(pair.continuation.start)
        rivals = {ITSELF: corpus.song(pair.prompt.song)}
        rivals |= {name: some[i].continuation.song for name, some in others}
        for name, rival in rivals.items():
            if (both := clips(song, rival, bar)) is not None:
                found.append(Comparison(title, (first, name), both))
    return found


def page(pairs: dict[str, list[Pair]], corpus: Corpus, titles: Sequence[str], *, seed: int = 0) -> str:
    """The whole page; arguments as those of `comparisons`."""
    random = np.random.default_rng(seed)
    found = comparisons(pairs, corpus, titles)
    shown, key = [], []
    for i in random.permutation(len(found)).tolist():
        title, names, both = found[i]
        order = random.permutation(2).tolist()
        shown.append([rendered(both[j])[1] for j in order])
        key.append({"song": title, "compared": names, "names": [names[j] for j in order]})
    encoded = base64.b64encode(json.dumps(key).encode()).decode()
    data = {
        "version": FORMAT_VERSION,
        "page": hashlib.blake2b(json.dumps([shown, key]).encode(), digest_size=8).hexdigest(),
        "pairs": shown,
        "key": encoded,  # not to be read by chance
        # By number of votes and of those for the first: so that there is one formula.
        "intervals": [[wilson(k, n) for k in range(n + 1)] for n in range(len(shown) + 1)],
    }
    text = json.dumps(data).replace("<", "\\u003c")  # it can't end the script
    script = Path(__file__).with_name("listening.js").read_text(encoding="utf-8")
    body = BODY + f"<script>\nconst DATA = {text};\n{script}</script>"
    return PAGE.substitute(title="Which continuation is better?", body=body)


BODY = f"""<style>
button {{ font: inherit; padding: .45rem .9rem; margin: .2rem .3rem .2rem 0; border: 1px solid #8a94a0;
  border-radius: .4rem; background: #fff; color: inherit; cursor: pointer; }}
button[aria-pressed="true"] {{ background: #1d2530; color: #fff; }}
button:disabled {{ color: #8a94a0; cursor: default; }}
kbd {{ font: .8em ui-monospace, monospace; border: 1px solid #c9d0d9; border-radius: .2rem; padding: 0 .25rem; }}
</style>
<h1>Which continuation is better?</h1>
<p>Each pair begins with the same {LEAD_BARS} bars, or as many as there are, and goes on in two ways. Listen to both,
then choose. What is what is shown when all pairs have a vote; votes stay in this browser.</p>
<h2 id="heading" aria-live="polite"></h2>
<p>A <kbd>a</kbd></p><audio controls id="play-a" aria-label="A"></audio>
<p>B <kbd>b</kbd></p><audio controls id="play-b" aria-label="B"></audio>
<p><button id="vote-a" aria-keyshortcuts="1">A is better <kbd>1</kbd></button>
<button id="vote-none" aria-keyshortcuts="0">no preference <kbd>0</kbd></button>
<button id="vote-b" aria-keyshortcuts="2">B is better <kbd>2</kbd></button></p>
<p><button id="previous" aria-keyshortcuts="ArrowLeft">previous <kbd>←</kbd></button>
<button id="next" aria-keyshortcuts="ArrowRight">next <kbd>→</kbd></button></p>
<p id="progress" class="small" aria-live="polite"></p>
<p><button id="show">show the result</button> <button id="download">download the votes</button></p>
<ul id="result" aria-live="polite"></ul>
<noscript><p>This page needs JavaScript.</p></noscript>
"""
