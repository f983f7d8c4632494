import json

import numpy as np
import pytest
from matplotlib.image import imread

from midigen_jax.errors import InputError
from midigen_jax.training import curves


def write_run(run, n_steps, height):
    run.mkdir()
    lines = [
        {
            "step": 10 * i,
            "loss": height + 5 / (i + 1),
            "bits_per_note": 4 * height,
            "gradient_norm": 1.0,
            "hit_rate": 0.9,
        }
        for i in range(n_steps)
    ]
    lines.append({"step": 10 * n_steps, "validation/nats_per_token": height, "validation/bigram_nats_per_token": 2.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "lo')
    return run


@pytest.mark.parametrize("n_steps", [1, 100])
def test_each_run_has_a_colour(tmp_path, n_steps):
    runs = [write_run(tmp_path / name, n_steps, height) for name, height in (("one", 2.0), ("two", 3.0))]
    curves.plot({run.name: curves.curves_of(run) for run in runs}, tmp_path / "deep" / "curves.png")
    image = (imread(tmp_path / "deep" / "curves.png")[..., :3] * 255).round().astype(int)
    assert image.shape == (1440, 1680, 3)
    upper_left = image[:480, :840]
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (np.abs(upper_left - colour).max(-1) < 8).sum() > 20
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["curves.png"]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no metrics\.jsonl; give the folder of a run"):
        curves.curves_of(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="nothing has been logged yet"):
        curves.curves_of(tmp_path)
