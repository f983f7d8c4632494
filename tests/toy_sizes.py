"""Sizes at which tests train this project and its rivals, and what rivals need."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "pop909.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None
TOY = [
    f"model.layers={4 if HAS_TORCH else 1}",  # the PyTorch baseline needs four
    *("model.width=32", "model.heads=2", "model.ff_width=32", "model.previous_tokens=1"),
    *("memory.xl=16", "memory.knn=64", "memory.knn_layer=1", "memory.top_k=4"),
    *("data.lanes=2", "data.segment=16", "train.warmup=1"),
]

needs_x_transformers = pytest.mark.skipif(
    not HAS_TORCH or importlib.util.find_spec("x_transformers") is None, reason="x-transformers is not installed"
)
