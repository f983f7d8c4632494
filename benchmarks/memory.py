"""Peak device memory of a train step, read from the compiled program: no such device has to be at hand.

python benchmarks/memory.py

By default a memory that has to fit into 16 GB: 32 lanes, 65,536 slots of 8 heads of 64 in bfloat16, 8 segments
a step. What the program takes is its arguments (parameters, optimizer, both memories), which it writes in place, and
its temporary arrays. It is compiled for the device that is here; another's compiler may choose otherwise.
"""

import time
from pathlib import Path

import jax
from _ours import circumstances
from _shared import save

from midigen_jax import cli, model, step
from midigen_jax import config as cfg
from midigen_jax.shapes import Array
from midigen_jax.vocab import Vocabulary

SETTINGS = (
    "memory.knn=65536",
    "memory.backend=xla",
    "data.segments=8",
    "train.remat=true",
)


def gigabytes(config: cfg.Config, vocabulary: Vocabulary) -> dict[str, float]:
    """Of the arguments, of the temporary arrays, and of what can't be written over the arguments."""
    mesh = step.make_mesh(config)
    state = jax.eval_shape(lambda: step.init_state(config, vocabulary))
    shape = (config.data.lanes, config.data.segment * config.data.segments)
    tokens: Array = jax.ShapeDtypeStruct(shape, "int32")
    batch = dict.fromkeys(("tokens", "targets", "bar", "step", "song"), tokens)
    train_step = step.make_train_step(model.abstract(config, vocabulary), config, mesh)
    took = train_step.lower(state, batch).compile().memory_analysis()  # type: ignore[attr-defined]
    parts = {
        "arguments": took.argument_size_in_bytes,
        "temporary": took.temp_size_in_bytes,
        "not in place": took.output_size_in_bytes - took.alias_size_in_bytes,
    }
    return {name: size / 1e9 for name, size in parts.items()}


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--data", help="not used: nothing is run")
    parser.add_argument("--config", type=Path, default=Path("configs/midigen.py"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), [*SETTINGS, *args.set])
    begin = time.perf_counter()
    parts = gigabytes(config, Vocabulary())
    print(", ".join(f"{name} {size:.2f} GB" for name, size in parts.items()))
    print(f"together {sum(parts.values()):.2f} GB (compiled in {time.perf_counter() - begin:.0f} s)")
    save(
        f"memory-{args.config.stem}-{jax.default_backend()}",
        {**circumstances(config, None), "gigabytes": parts},
        otherwise=bool(args.set),
    )


if __name__ == "__main__":
    cli.run(main)
