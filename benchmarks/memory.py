"""Peak device memory of a train step, read from the compiled program: no such device is needed.

    python benchmarks/memory.py

By default a kNN memory of context keys that has to fit into 16 GB: 32 lanes, 65,536 slots of 8 heads of 64 in bfloat16,
8 segments per step. The program needs its arguments (parameters, optimizer, both memories), which it updates in place,
and its temporary arrays. It is compiled for the device of this machine; the compiler of another may choose otherwise.
"""

import time
from pathlib import Path
from typing import Any

import _shared
import jax
from _ours import BATCH_ARRAYS, circumstances

from midigen_jax import config as cfg
from midigen_jax.cli import command
from midigen_jax.model.decoder import abstract_decoder
from midigen_jax.training.sharding import make_mesh
from midigen_jax.training.state import init_state
from midigen_jax.training.step import make_train_step
from midigen_jax.vocab import Vocabulary

SETTINGS = (
    "memory.retrieval=context",
    "memory.mixing=softmax",
    "memory.knn=65536",
    "memory.backend=xla",
    "data.segments=8",
    "train.remat=true",
)


def gigabytes(config: cfg.Config, vocabulary: Vocabulary) -> dict[str, float]:
    """Of the arguments, of the temporary arrays, and of what can't be updated in place."""
    state = jax.eval_shape(lambda: init_state(config, vocabulary))
    shape = (config.data.lanes, config.data.segment * config.data.segments)
    batch: Any = dict.fromkeys(BATCH_ARRAYS, jax.ShapeDtypeStruct(shape, "int32"))
    train_step: Any = make_train_step(abstract_decoder(config, vocabulary), config, make_mesh(config))
    memory = train_step.lower(state, batch).compile().memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "not in place": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    return {name: size / 1e9 for name, size in parts.items()}


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", help="ignored: nothing is run")
    parser.add_argument("--config", type=Path, default=Path("configs/midigen.py"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting; may be repeated"
    )
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), [*SETTINGS, *args.set])
    began = time.perf_counter()
    parts = gigabytes(config, Vocabulary())
    print(", ".join(f"{name} {size:.2f} GB" for name, size in parts.items()))
    print(f"together {sum(parts.values()):.2f} GB (compiled in {time.perf_counter() - began:.0f} s)")
    _shared.save(
        args.results,
        f"memory-{args.config.stem}-{jax.default_backend()}",
        {**circumstances(config, None), "gigabytes": parts},
        usual=not args.set,
    )


if __name__ == "__main__":
    command.run(main)
