"""Exports a trained model to one shareable file: parameters, vocabulary and config.

    midigen export RUN model.safetensors
    python sample.py model.safetensors --prompt FILE.mid

The file holds neither optimizer nor music, and nothing in it is code.
"""

from pathlib import Path

from ..errors import InputError
from ..run.folder import check_run
from . import command


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint")
    parser.add_argument("file", type=Path, help="the file to write")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the lowest validation loss; else the newest"
    )
    parser.add_argument("--half", action="store_true", help="parameters as 16-bit numbers: a file of half the size")
    args = parser.parse_args()
    if args.file.is_dir():
        raise InputError(f"{args.file}: is a folder; give the name of a file to write")
    check_run(args.run)

    # Imported here: bad arguments are reported without waiting for JAX.
    import jax

    from ..run import trained

    model = trained.load_run(args.run, best=args.best)
    trained.export(args.file, model, half=args.half)
    n_params = sum(x.size for x in jax.tree.leaves(model.params))
    print(f"{args.file}: {n_params / 1e6:.1f} M parameters, {args.file.stat().st_size / 1e6:.1f} MB")
    print(f"continue a song, in any folder, with midigen sample {args.file} --prompt FILE.mid")
