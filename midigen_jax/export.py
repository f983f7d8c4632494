"""Writes a trained model into one file that can be given away: parameters, vocabulary and config.

    python -m midigen_jax.export RUN model.safetensors
    python sample.py model.safetensors --prompt FILE.mid

Neither optimizer nor music is in it. Nothing in the file is code.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import cli, model
from . import config as cfg
from .cli import InputError
from .tensors import by_path, read_tensors, write_tensors
from .vocab import Vocabulary

FORMAT_VERSION = 4
KIND = "midigen_jax model"


def write(path: Path, config: cfg.Config, params: dict, vocabulary: Vocabulary) -> None:
    words = {
        "format_version": FORMAT_VERSION,
        "config": cfg.flatten(config),
        "vocabulary": vocabulary.to_json(),
    }
    write_tensors(path, by_path(params), KIND, words)


def read(path: Path) -> tuple[cfg.Config, dict, Vocabulary]:
    """What `write` wrote.

    Raises:
        InputError: it is no such file, or damaged.
    """
    arrays, words = read_tensors(path, KIND, FORMAT_VERSION)
    damaged = f"{path}: damaged model file; export it again with python -m midigen_jax.export RUN {path}"
    try:
        config, vocabulary = cfg.from_flat(words["config"], str(path)), Vocabulary.from_json(words["vocabulary"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{damaged} ({error})") from None
    shapes: Any = jax.eval_shape(lambda: model.init_params(config, vocabulary, seed=0)[1])
    params = {}
    for name, shape in by_path(shapes).items():
        if name not in arrays or arrays[name].shape != shape.shape or arrays[name].dtype != shape.dtype:
            raise InputError(f"{damaged} ({name} is missing or has another shape)")
        params[name] = arrays[name]
    return config, jax.tree.unflatten(jax.tree.structure(shapes), list(params.values())), vocabulary


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint")
    parser.add_argument("file", type=Path, help="where to write it")
    parser.add_argument(
        "--best", action="store_true", help="the checkpoint with the lowest validation loss; else the newest"
    )
    args = parser.parse_args()
    from .sampler import Sampler  # which imports this module

    if args.file.is_dir():
        raise InputError(f"{args.file}: is a folder; give the name of a file to write")
    sampler = Sampler.from_run(args.run, best=args.best)
    write(args.file, sampler.config, jax.tree.map(np.asarray, sampler.params), sampler.vocabulary)
    n_params = sum(x.size for x in jax.tree.leaves(sampler.params))
    print(f"{args.file}: {n_params / 1e6:.1f} M parameters, {args.file.stat().st_size / 1e6:.1f} MB")
    print(f"continue a song, in any folder, with python -m midigen_jax.sample {args.file} --prompt FILE.mid")


if __name__ == "__main__":
    cli.run(main)
