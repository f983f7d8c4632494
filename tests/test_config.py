from pathlib import Path

import pytest

from midigen_jax import config as cfg
from midigen_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_json(path):
    config = cfg.load(path)
    assert cfg.from_flat(cfg.flatten(config), "test") == config


def test_overrides_take_the_type_of_their_key():
    config = cfg.override(
        cfg.Config(), ["model.width=128", "train.clip=2", "model.dtype=bfloat16", "train.learning_rate=3e-4"]
    )
    assert (config.model.width, config.train.clip, config.model.dtype) == (128, 2.0, "bfloat16")
    assert config.train.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.depth=3", r"unknown config key model\.depth; .*known are model\.layers"),
        ("depth=3", "unknown config key depth; known are model, memory"),
        ("model.width", "give key.path=value"),
        ("model.width=wide", "give a whole number"),
        ("model.width=256.5", "give a whole number"),
        ("model.dtype=float64", "give one of float32, bfloat16"),
        ("model.heads=3", r"model\.heads=3: must divide width=256"),
        ("memory.knn=1000", r"memory\.knn=1000: must be a multiple of data\.segment=256"),
        ("model.heads=64", "a width of at least 8 for model.positions=musical"),
        ("memory.knn=2097152", "must be at most 1,048,576 for a memory by alignment"),
        ("memory.top_k=100000", r"must be at most memory\.knn=\d+ for a memory by alignment"),
        ("memory.retrieval=all", "give one of context, attention, alignment, context.alignment, attention.alignment"),
        ("memory.mixing=sum", "give one of softmax, gate"),
        ("data.lanes=0", "must be at least 1"),
        ("model.heads=0", "must be at least 1"),
        ("data.segment=0", "must be at least 1"),
        ("train.validate_every=0", "must be at least 1"),
        ("train.validation_songs=-1", "can't be negative"),
        ("model.previous_tokens=-1", "can't be negative"),
        ("data.seed=-1", "can't be negative"),
        ("train.clip=0", "must be a finite number above 0"),
        ("train.learning_rate=NaN", "must be a finite number above 0"),
        ("train.beta2=1", "must be from 0 up to, not including, 1"),
        ("model.qk_norm=True", "give true or false"),
    ],
)
def test_bad_overrides_name_the_key_and_the_mend(assignment, message):
    with pytest.raises(InputError, match=message):
        cfg.override(cfg.Config(), [assignment])


@pytest.mark.parametrize("retrieval", ["context", "attention"])
def test_a_knn_memory_of_keys_needs_its_layer(retrieval):
    with pytest.raises(InputError, match="must be one of the 4 layers"):
        cfg.override(cfg.Config(), [f"memory.retrieval={retrieval}", "memory.knn_layer=9"])
    cfg.override(cfg.Config(), ["memory.retrieval=alignment", "memory.knn_layer=9"])  # which ignores it


def test_only_context_keys_need_xl_memory_and_wide_heads():
    for change, message in (("memory.xl=0", "must be at least 1"), ("model.heads=32", "a width of at least 16")):
        with pytest.raises(InputError, match=message):
            cfg.override(cfg.Config(), ["memory.retrieval=context", change])
        cfg.override(cfg.Config(), ["memory.retrieval=attention", change])


def test_bad_config_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.py: no such config file"):
        cfg.load(tmp_path / "missing.py")
    (tmp_path / "broken.py").write_text("def config(: pass")
    with pytest.raises(InputError, match=r"broken\.py: SyntaxError"):
        cfg.load(tmp_path / "broken.py")
    for name, code, message in (
        ("text", 'Config(model=Model(width="x"))', r"text\.py: model\.width=x: give a whole number"),
        ("norm", 'Config(model=Model(norm="x"))', r"norm\.py: model\.norm=x: give one of layer, rms"),
        ("section", "Config(model=Data())", r"section\.py: model: give a config\.Model"),
    ):
        code = f"from midigen_jax.config import Config, Data, Model\ndef config(): return {code}"
        (tmp_path / f"{name}.py").write_text(code)
        with pytest.raises(InputError, match=message):
            cfg.load(tmp_path / f"{name}.py")
    (tmp_path / "README.md").write_text("# Title")
    with pytest.raises(InputError, match=r"README\.md: no Python file"):
        cfg.load(tmp_path / "README.md")
    (tmp_path / "wrong.py").write_text("def config(): return 3")
    with pytest.raises(InputError, match=r"wrong\.py: config\(\) must return"):
        cfg.load(tmp_path / "wrong.py")
