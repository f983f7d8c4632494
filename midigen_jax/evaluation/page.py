"""The parts of a page: tables, plots, piano rolls and players, all embedded in it."""

import base64
import io
import tempfile
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from ..music import audio
from ..music.midi import write_song
from ..music.piano_roll import draw
from ..music.song import Song
from .bootstrap import Interval

NOTHING = "-"  # in a table

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2530; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .4rem; border-top: 1px solid #e3e7ec; padding-top: 1.4rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p, li { max-width: 46rem; }
ul { padding-left: 1.1rem; }
.small, figcaption, small { color: #5b6572; font-size: .86rem; }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; display: block; }
audio { width: 100%; max-width: 30rem; height: 2.2rem; display: block; margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.4rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid #e9edf1; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
th { font-weight: 600; font-size: .86rem; color: #5b6572; }
td small { display: block; line-height: 1.1; white-space: nowrap; }
code { font: .88em ui-monospace, monospace; background: #f3f5f8; padding: .1em .3em; overflow-wrap: anywhere; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def cell(interval: Interval | None, digits: int = 3) -> str:
    """The value, and its interval below."""
    if interval is None:
        return NOTHING
    x, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{x}<small>{low} to {high}</small>" if interval.low < interval.high else x  # a single song has none


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{x}</th>" for x in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def plot(figure: Figure, caption: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    uri = data_uri("image/svg+xml", target.getvalue())
    return f'<figure><img src="{uri}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def piano_roll(song: Song, prompt_end: int, title: str) -> str:
    target = io.BytesIO()
    draw(target, song, prompt_end=prompt_end, title=title)
    return f'<figure><img src="{data_uri("image/png", target.getvalue())}" alt="Piano roll: {escape(title)}"></figure>'


def rendered(song: Song) -> tuple[str, str]:
    """A song as a MIDI file and as sound, both as data URIs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.mid"
        write_song(path, song)
        return data_uri("audio/midi", path.read_bytes()), data_uri("audio/mpeg", audio.mp3(path))


def player(song: Song) -> str:
    """A player, and the MIDI file to download."""
    midi, sound = rendered(song)
    return f'<audio controls src="{sound}"></audio><a class="small" download="song.mid" href="{midi}">MIDI file</a>'
