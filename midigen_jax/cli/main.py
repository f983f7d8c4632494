"""The console command: `midigen SUBCOMMAND ...`, the same as `python -m midigen_jax SUBCOMMAND ...`."""

import importlib
import sys

from ..errors import InputError
from .command import run

SUBCOMMANDS = {
    "encode": "encode a folder of MIDI files as a corpus",
    "decode": "describe the songs of a corpus, or write them back to MIDI",
    "train": "train a model, or resume",
    "sample": "continue a MIDI file, or invent music",
    "evaluate": "measure what a model and its memories are worth",
    "votes": "count the votes of a blind listening test",
    "plot": "draw training curves",
    "export": "export a trained model to one file",
    "music21": "make a folder of MIDI files from the scores of the package music21",
}
USAGE = "usage: midigen SUBCOMMAND ...\n\n" + "\n".join(f"  {name:10}{text}" for name, text in SUBCOMMANDS.items())


def dispatch() -> None:
    """
    Raises:
        InputError: there is no such subcommand.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nmidigen SUBCOMMAND --help describes each")
        return
    if name not in SUBCOMMANDS:
        raise InputError(f"{name}: no such subcommand; there are {', '.join(SUBCOMMANDS)}")
    sys.argv[:2] = [f"midigen {name}"]
    importlib.import_module(f".{name}", __package__).main()


def main() -> None:
    run(dispatch)
