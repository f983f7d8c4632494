"""The state with which a run begins: new, from its own checkpoint, or initialised from another run."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .. import config as cfg
from ..data.corpus import Corpus
from ..errors import InputError
from ..miditok_vocab import vocabulary_from_json
from ..run import trained
from ..run.checkpoint import Checkpoints, Damaged, open_run
from ..vocab import Vocabulary
from .sharding import state_sharding
from .state import TrainState, init_state

# Sections and settings that a run may change when it resumes.
CHANGEABLE = ("train.", "memory.backend", "data.location", "data.workers")
# What the position in the music depends on, and what the memories depend on.
LOADER_KEYS = (
    "data.lanes",
    "data.segment",
    "data.segments",
    "data.transpose",
    "data.modulate",
    "data.mixture",
    "data.velocity_offset",
    "data.seed",
)
MEMORY_KEYS = (*LOADER_KEYS, "memory.xl", "memory.knn", "memory.retrieval", "memory.dtype", "model.dtype")


def items_of(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint."""
    return {
        "params": state.params,
        "optimizer": state.optimizer,
        "memory": state.memory,
        "rest": {"step": state.step, "key": state.key},
    }


def abstract_state(config: cfg.Config, vocabulary: Vocabulary, mesh: Mesh) -> TrainState:
    """The shapes and shardings of the state."""

    def placed(sharding: jax.sharding.Sharding, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    shapes = jax.eval_shape(lambda: init_state(config, vocabulary))
    return jax.tree.map(placed, state_sharding(mesh), shapes)


def restore_or_init(
    checkpoints: Checkpoints, config: cfg.Config, corpus: Corpus, mesh: Mesh, init_from: Path | None
) -> TrainState:
    """The state with which a run begins: that of its checkpoint, else a new one.

    Args:
        init_from: another run whose parameters a new run begins with.

    Raises:
        InputError: config or corpus don't fit the checkpoint.
    """

    def shapes(meta: dict[str, Any]) -> dict[str, Any]:
        check_fits(meta, config, corpus, checkpoints.run)
        return items_of(abstract_state(config, corpus.vocabulary, mesh))

    if checkpoints.steps():
        found = checkpoints.newest(shapes)
        print(f"{checkpoints.run}: resumed at step {found.step:,} of {config.train.steps:,}")
        items = found.items
        return TrainState(items["params"], items["optimizer"], items["memory"], **items["rest"])
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=state_sharding(mesh))(config, corpus.vocabulary)
    return state if init_from is None else initialise_from(init_from, state, config, corpus, mesh)


def _config_of(meta: dict[str, Any]) -> dict[str, Any]:
    """All settings; those added since the checkpoint was written have their defaults."""
    return cfg.flatten(cfg.Config()) | meta["config"]


def check_fits(meta: dict[str, Any], config: cfg.Config, corpus: Corpus, run: Path) -> None:
    """Raises InputError if config or corpus differ from the checkpoint's in what a run can't change."""
    before = _config_of(meta)
    for key, value in cfg.flatten(config).items():
        then = before[key]
        if then != value and (not key.startswith(CHANGEABLE) or key == "train.seed"):
            another = f"from it with --init-from {run} --workdir ANOTHER"
            if _needs_same(key, config, before):
                another = "with another --workdir"
            raise InputError(
                f"{run}: its checkpoint has {key}={then}, the config {value}; --set {key}={then}, or start another run "
                f"{another}"
            )
    if vocabulary_from_json(meta["vocabulary"]) != corpus.vocabulary:
        raise InputError(
            f"{run}: its checkpoint has another vocabulary than {corpus.path}; give the corpus that it was trained on"
        )
    if meta["corpus"] != corpus.fingerprint:
        raise InputError(
            f"{run}: its checkpoint was trained on another corpus than {corpus.path}; give that one, or start another "
            f"run from it with --init-from {run} --workdir ANOTHER"
        )


def check_format(run: Path) -> None:
    """Raises InputError if the newest checkpoint of a run is of another format."""
    with contextlib.closing(open_run(run)) as checkpoints, contextlib.suppress(Damaged):
        checkpoints.read(checkpoints.steps()[0], lambda meta: {})


def vocabulary_of(run: Path) -> Vocabulary:
    """The vocabulary of a run or an exported model, with which another run that continues it encodes its music.

    Raises:
        InputError: it has no checkpoint, or is no model.
    """
    if run.is_file():
        return trained.read_export(run).vocabulary
    with contextlib.closing(open_run(run)) as checkpoints:
        found = checkpoints.newest(lambda meta: {})
    return vocabulary_from_json(found.meta["vocabulary"])


def initialise_from(source: Path, fresh: TrainState, config: cfg.Config, corpus: Corpus, mesh: Mesh) -> TrainState:
    """The state of a new run that continues another one, or begins with an exported model.

    It prints a line for each part that is kept or reset. Parameters are kept. On the same music so are the optimizer
    and the step, and the memories if their settings and those of the lanes are unchanged. On other music, and of an
    exported model, all these are reset.

    Raises:
        InputError: the model or its vocabulary differs.
    """
    if source.is_file():
        model = trained.read_export(source)
        meta = {"config": cfg.flatten(model.config), "vocabulary": model.vocabulary.to_json()}
        check_compatible(meta, config, corpus, source)
        print(f"initialised from {source}, step {model.step:,}:\n  parameters: kept\n  everything else: reset")
        return fresh._replace(params=jax.device_put(model.params, jax.tree.map(lambda x: x.sharding, fresh.params)))
    new = items_of(abstract_state(config, corpus.vocabulary, mesh))

    def shapes(meta: dict[str, Any]) -> dict[str, Any]:
        check_compatible(meta, config, corpus, source)
        same_music = meta["corpus"] == corpus.fingerprint
        kept = {"params"} | ({"optimizer", "rest"} if same_music else set())
        if same_music and not _changes(meta, config, MEMORY_KEYS):
            kept.add("memory")
        return {name: tree for name, tree in new.items() if name in kept}

    with contextlib.closing(open_run(source)) as checkpoints:
        found = checkpoints.newest(shapes)
    if "rest" in found.items and found.step >= config.train.steps:
        raise InputError(
            f"--init-from {source}: it has been trained for {found.step:,} steps on this music; --set train.steps="
            f"{2 * found.step}, or another larger number"
        )
    loading, memories = (_changes(found.meta, config, keys) for keys in (LOADER_KEYS, MEMORY_KEYS))
    lines = {"parameters": "kept"}
    if "rest" in found.items:
        lines["optimizer and step"] = "kept"
        lines["memories"] = f"emptied, since {memories}" if memories else "kept"
        lines["position in the music"] = f"reset, since {loading}" if loading else "kept"
    else:
        lines["everything else"] = "reset, since the music is different"
    print(
        f"initialised from {source}, step {found.step:,}:",
        *(f"  {name}: {what}" for name, what in lines.items()),
        sep="\n",
    )
    items = items_of(fresh) | found.items
    return TrainState(items["params"], items["optimizer"], items["memory"], **items["rest"])


def _changes(meta: dict[str, Any], config: cfg.Config, keys: tuple[str, ...]) -> str:
    """Which of these settings changed, such as "data.lanes 8 -> 16"; empty if none."""
    then = _config_of(meta)
    return ", ".join(
        f"{key} {then[key]} -> {cfg.get(config, key)}" for key in keys if then[key] != cfg.get(config, key)
    )


def _needs_same(key: str, config: cfg.Config, then: dict[str, Any]) -> bool:
    """Whether a run with another value of this setting can't use the parameters."""
    shapes_parameters = key.startswith("model.") and key not in ("model.dropout", "model.dtype")
    has_memory = key == "memory.knn" and bool(then[key]) != bool(cfg.get(config, key))
    other_kind = key == "memory.retrieval" and config.memory.knn > 0
    # The parameters may have the same shapes, but they were trained for another place or meaning.
    other_use = key in ("memory.knn_layer", "memory.mixing") and config.memory.has_keys
    return shapes_parameters or has_memory or other_kind or other_use


def check_compatible(meta: dict[str, Any], config: cfg.Config, corpus: Corpus, source: Path) -> None:
    """Raises InputError if a run of this config can't use another run's parameters."""
    then = _config_of(meta)
    for key, value in cfg.flatten(config).items():
        if then[key] != value and _needs_same(key, config, then):
            raise InputError(f"--init-from {source}: its model has {key}={then[key]}; --set {key}={then[key]}")
    if vocabulary_from_json(meta["vocabulary"]) != corpus.vocabulary:
        raise InputError(
            f"--init-from {source}: {corpus.path} has another vocabulary; give the folder of MIDI files, which is then "
            "encoded with the run's own"
        )
