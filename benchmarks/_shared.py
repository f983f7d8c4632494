"""Where all benchmarks keep their figures."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save(name: str, result: dict[str, Any], *, otherwise: bool = False) -> None:
    """Whole or not at all.

    Args:
        otherwise: it was measured in another way than the scripts do by themselves, so it does not replace what they
            found.
    """
    if otherwise:
        print(f"not kept in {RESULTS}, since it was measured with other settings than usual")
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)
