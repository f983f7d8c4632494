"""Describes the songs of a corpus, or writes them back to MIDI.

    midigen decode CORPUS                    lists the songs
    midigen decode CORPUS SONG --bars 4      describes a song, bar by bar
    midigen decode CORPUS SONG --midi DIR    writes it as a MIDI file

A SONG is a name or a number from the list of songs.
"""

from pathlib import Path

from ..data.folders import check_corpus
from ..errors import InputError
from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="a corpus folder, such as RUN/corpus")
    parser.add_argument("songs", nargs="*", metavar="SONG", help="names or numbers of songs; default: list all songs")
    parser.add_argument("--bars", type=int, help="only the first bars")
    parser.add_argument("--tokens", action="store_true", help="print tokens instead of words")
    parser.add_argument("--midi", type=Path, metavar="DIR", help="write the songs as MIDI files to this folder")
    args = parser.parse_args()
    if args.bars is not None and args.bars < 1:
        raise InputError(f"--bars {args.bars}: give at least 1")
    check_corpus(args.corpus)

    # Imported here: bad arguments are reported without waiting for Numba.
    from ..data.corpus import open_corpus
    from ..data.describe import describe, find_song, midi_path, title
    from ..music.midi import write_song

    corpus = open_corpus(args.corpus)
    chosen = [find_song(corpus, song) for song in args.songs]
    if args.midi and not chosen:
        chosen = list(range(len(corpus.names)))
    if not chosen:
        print("\n".join(title(corpus, i) for i in range(len(corpus.names))))
    for i in chosen:
        if args.midi:
            path = midi_path(corpus, i, args.midi)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_song(path, corpus.song(i))
            print(path)
            continue
        print(title(corpus, i))
        if args.tokens:
            here = slice(corpus.offsets[i], corpus.offsets[i + 1])
            shown = corpus.bar[here] < (args.bars or 1 << 16)
            print(" ".join(corpus.vocabulary.names[token] for token in corpus.tokens[here][shown]))
        else:
            print("\n".join(describe(corpus.song(i), args.bars)))
