"""How long damaged and malicious files keep the reader and the encoder busy: the slowest call of many.

    python benchmarks/damaged.py --data MIDI_DIR

What the calls return is checked by tests/test_fuzz.py.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _shared
import numpy as np
from tqdm import tqdm

from midigen_jax.cli import command
from midigen_jax.data.folders import midi_files
from midigen_jax.kernels import encode, smf
from midigen_jax.run.environment import environment
from midigen_jax.vocab import Scheme

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from damaged_files import MALICIOUS, damage

SLOW = 0.05  # seconds
SCHEMES = (Scheme(), Scheme(24, multi=True, velocities=True))


def seconds_of(call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call; of a slow one, which may have been interrupted, the best of six."""
    seconds: list[float] = []
    while not seconds or (min(seconds) > SLOW and len(seconds) < 6):
        began = time.perf_counter()
        call(*arguments)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure(data: bytes) -> dict[str, float]:
    """Seconds to read a file, and to encode it in the slowest scheme."""
    array, bounds = np.frombuffer(data, np.uint8), np.array([0, len(data)])
    workspace = encode.make_workspace(len(data))
    encoding = [seconds_of(encode.encode_files, array, bounds, scheme, workspace) for scheme in SCHEMES]
    return {"read": seconds_of(smf.read_smf, array), "encode": max(encoding)}


def main() -> None:
    parser = _shared.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="MIDI_DIR", help="files to be damaged")
    parser.add_argument("--mutations", type=int, default=100_000, help="number of damaged files")
    args = parser.parse_args()
    originals = [(args.data / name).read_bytes() for name in midi_files(args.data)]
    measure(originals[0])  # compiles the kernels
    dice = random.Random(0)
    slowest = {"read": 0.0, "encode": 0.0}
    n_slow = 0
    for _ in tqdm(range(args.mutations), "damaged", leave=False, disable=None):
        seconds = measure(damage(dice.choice(originals), originals, dice))
        n_slow += max(seconds.values()) > SLOW
        slowest = {what: max(slowest[what], seconds[what]) for what in slowest}
    malicious = {name: measure(make()) for name, make in MALICIOUS.items()}
    for name, seconds in (("the slowest damaged file", slowest), *malicious.items()):
        print(f"{name:50} read {1e3 * seconds['read']:5.1f} ms, encode {1e3 * seconds['encode']:5.1f} ms")
    print(f"{n_slow:,} of {args.mutations:,} damaged files took over {1e3 * SLOW:.0f} ms")
    result = {
        "environment": environment(("numpy", "numba")),
        "mutations": args.mutations,
        "over_50_ms": n_slow,
        "slowest_seconds": slowest,
        "malicious_seconds": malicious,
    }
    usual = _shared.has_defaults(parser, args, "mutations")
    _shared.save(args.results, f"damaged-{args.data.resolve().name}", result, usual=usual)


if __name__ == "__main__":
    command.run(main)
