"""Trains a model on a corpus or a folder of MIDI files, or resumes where the run folder holds a checkpoint.

    python train.py configs/demo.py --data CORPUS_OR_MIDI_DIR --workdir RUN

Ctrl-C finishes the step, saves and exits; the same command resumes from there.

On several hosts, run this command on each with --distributed; all must see the same folders.
"""

import sys
from pathlib import Path

from .. import config as cfg
from ..errors import InputError
from ..run.folder import check_model, has_checkpoint
from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="music to learn from")
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="folder of this run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides a setting of midigen_jax/config.py, such as train.steps=500; may be repeated",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="RUN_OR_FILE",
        help="start a new run with the weights of this run or exported model, for other music, more lanes or a larger "
        "memory",
    )
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,PROCESSES,INDEX",
        help="this process is one of several, one per host; without a value JAX asks the cluster",
    )
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), args.set)
    if not args.data.is_dir():
        kind = "is a file, not a folder" if args.data.exists() else "no such folder"
        raise InputError(f"--data {args.data}: {kind}; give a folder of MIDI files, or a corpus")
    if args.init_from is not None and not has_checkpoint(args.workdir):
        check_model(args.init_from)

    # Imported here: bad arguments are reported without waiting for JAX.
    from ..run import hosts
    from ..run.runtime import enable_compilation_cache, retain_freed_memory
    from ..training.loop import train

    if args.distributed is not None:
        hosts.join(args.distributed)
    retain_freed_memory()
    enable_compilation_cache()
    if stopped_by := train(config, args.data, args.workdir, args.init_from):
        sys.exit(128 + stopped_by)
