"""The settings of a run: frozen dataclasses, one Python file per experiment in `configs/`."""

import dataclasses
import difflib
import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError

MAX_REPEATS = 100  # of a song in an epoch
MAX_LAGS = 1 << 20  # slots of a memory by alignment, which packs scores and lags into numbers of 32 bits
LEAST_FOR_MUSICAL = 8  # the width of a head with musical positions: each kind turns two features or more
CONTEXT_LENGTH = 16  # tokens that a key of the kNN memory describes; heads that hold such keys are at least as wide


@dataclass(frozen=True)
class Model:
    layers: int = 4
    width: int = 256
    heads: int = 4
    ff_width: int = 1024
    activation: Literal["gelu", "relu", "relu2", "swiglu"] = "relu2"
    norm: Literal["layer", "rms"] = "layer"
    # What attention knows of positions: T5's bias by distance in tokens; the same, and rotary positions by bar,
    # position in the bar and pitch; or rotary positions by distance in tokens.
    positions: Literal["t5", "musical", "rotary"] = "musical"
    qk_norm: bool = True  # queries and keys have length 1 in all layers, not only in the kNN layer
    biases: bool = True  # of the linear layers and of LayerNorm
    tied: bool = False  # the output layer's weights are the token embeddings
    pitches: bool = False  # add embeddings of its pitch class and octave to a token's
    previous_tokens: int = 4  # add embeddings of this many tokens before it to a token's
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32


@dataclass(frozen=True)
class Memory:
    xl: int = 256  # slots of Transformer-XL memory, in every layer
    knn: int = 8192  # slots of the kNN memory, a multiple of the segment; 0: none
    # By what it finds what is similar: keys that describe the last tokens; the queries and keys of a layer's attention,
    # with its values (Wu et al. 2022, "Memorizing Transformers"); aligning the song with itself, in any key; or two.
    retrieval: Literal["context", "attention", "alignment", "context+alignment", "attention+alignment"] = (
        "context+alignment"
    )
    knn_layer: int = 3  # the layer that uses such keys, counted from 1
    # How that layer weighs the memory against its window: by one softmax over both, or by a learned gate per head that
    # ignores the query, as in Memorizing Transformers. A memory by alignment ignores it.
    mixing: Literal["softmax", "gate"] = "softmax"
    top_k: int = 16
    backend: Literal["auto", "faiss", "xla", "dense"] = "auto"  # dense: attention to all slots, for comparison
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the keys, and of the values of a layer

    @property
    def aligns(self) -> bool:
        """Whether there is a memory by alignment."""
        return self.knn > 0 and "alignment" in self.retrieval

    @property
    def has_keys(self) -> bool:
        """Whether there is a kNN memory of keys, which one layer searches."""
        return self.knn > 0 and self.retrieval != "alignment"

    @property
    def has_context_keys(self) -> bool:
        """Whether these keys describe the last tokens."""
        return self.knn > 0 and "context" in self.retrieval


@dataclass(frozen=True)
class Data:
    lanes: int = 8
    segment: int = 256  # tokens
    segments: int = 1  # per step
    transpose: int = 0  # shift training songs by up to this many semitones, anew in each epoch
    # This share of training songs, anew in each epoch, goes on in another key from a bar in its middle half on: so the
    # memory by alignment learns to trust what returns transposed.
    modulate: float = 0.0
    # How often training songs in folders of the corpus are read in an epoch; others once. "games=3 quartets=0.5"
    mixture: str = ""
    velocity_offset: int = 0  # shift their velocities by up to this many of the 32 bins, where tokens have them
    seed: int = 0
    location: Literal["disk", "host", "device"] = "disk"  # where the corpus is: memory-mapped, or in memory as a whole
    workers: int = 0  # processes that read ahead; 0: threads

    @property
    def repeats(self) -> dict[str, float]:
        """How often the songs in each folder of the mixture are read in an epoch.

        Raises:
            ValueError: the mixture is no list of folders and numbers.
        """
        pairs = (part.rpartition("=") for part in self.mixture.split())
        repeats = {folder.strip("/"): float(number) for folder, _, number in pairs}
        if "" in repeats or not all(0 <= number <= MAX_REPEATS for number in repeats.values()):
            raise ValueError(self.mixture)
        return repeats

    @property
    def transposes(self) -> bool:
        """Whether training songs, or parts of them, are in other keys than in the corpus."""
        return self.transpose > 0 or self.modulate > 0


@dataclass(frozen=True)
class Train:
    steps: int = 1000
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    # The learning rate falls as a cosine over the last steps, this share of those after warm-up. Below 1, a run can go
    # on for as long as it takes while the rate stays, and be finished with a larger share.
    decay: float = 1.0
    final_learning_rate: float = 0.0  # as a share of learning_rate
    weight_decay: float = 0.01
    beta2: float = 0.95
    clip: float = 1.0  # global norm of the gradients
    remat: bool = False  # recompute activations for the gradient: less memory, a third more work
    log_every: int = 10  # steps, as are these
    validate_every: int = 500  # and saves
    save_every: int = 500
    save_minutes: float = 10.0  # save when the last save was this long ago; 0: never
    keep: int = 3  # number of newest checkpoints to keep, beside the one with the lowest validation loss
    keep_every: int = 0  # steps; checkpoints at its multiples are saved and kept for good; 0: none
    on_failed_save: Literal["continue", "stop"] = "continue"  # such as on a full disk
    validation_songs: int = 0  # at most this many; 0: all
    sample_minutes: float = 30.0  # between continuations of a validation song; 0: never
    seed: int = 0


@dataclass(frozen=True)
class Config:
    model: Model = field(default_factory=Model)
    memory: Memory = field(default_factory=Memory)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)

    def __post_init__(self) -> None:
        for section, cls in get_type_hints(Config).items():
            if not isinstance(getattr(self, section), cls):
                raise InputError(f"{section}: give a config.{cls.__name__}")
            for name, kind in get_type_hints(cls).items():
                _checked(getattr(getattr(self, section), name), kind, f"{section}.{name}")
        for key in (
            *(f"model.{name}" for name in ("layers", "width", "heads", "ff_width")),
            *(f"data.{name}" for name in ("lanes", "segment", "segments")),
            *(f"train.{name}" for name in ("steps", "log_every", "validate_every", "save_every", "keep")),
            "memory.top_k",
        ):
            self._need(get(self, key) >= 1, key, "must be at least 1")
        for key in (
            "model.previous_tokens",
            *(f"memory.{name}" for name in ("xl", "knn")),
            *(f"data.{name}" for name in ("transpose", "velocity_offset", "workers", "seed")),
            *(
                f"train.{name}"
                for name in ("warmup", "validation_songs", "seed", "keep_every", "weight_decay", "final_learning_rate")
            ),
            *(f"train.{name}" for name in ("save_minutes", "sample_minutes")),
        ):
            self._need(get(self, key) >= 0, key, "can't be negative")
        self._need(self.train.seed < 1 << 32, "train.seed", "must be below 2^32")
        for key in ("train.learning_rate", "train.clip"):
            self._need(0 < get(self, key) < math.inf, key, "must be a finite number above 0")
        self._need(0 < self.train.decay <= 1, "train.decay", "must be above 0 and at most 1")
        for key in ("model.dropout", "train.beta2"):
            self._need(0 <= get(self, key) < 1, key, "must be from 0 up to, not including, 1")
        try:
            self.data.repeats  # noqa: B018
        except ValueError:
            what = f'give folders and numbers from 0 to {MAX_REPEATS}, such as "games=3 quartets=0.5"'
            self._need(False, "data.mixture", what)
        self._need(0 <= self.data.modulate <= 1, "data.modulate", "must be from 0 to 1")
        self._need(self.model.width % self.model.heads == 0, "model.heads", f"must divide width={self.model.width}")
        head_width, positions = self.model.width // self.model.heads, self.model.positions
        even = positions == "t5" or head_width % 2 == 0
        self._need(even, "model.heads", f"must leave each head an even width for model.positions={positions}")
        wide = positions != "musical" or head_width >= LEAST_FOR_MUSICAL
        least = f"must leave each head a width of at least {LEAST_FOR_MUSICAL} for model.positions=musical"
        self._need(wide, "model.heads", least)
        multiple = self.memory.knn % self.data.segment == 0
        self._need(multiple, "memory.knn", f"must be a multiple of data.segment={self.data.segment}, or 0")
        few = self.memory.knn <= MAX_LAGS or not self.memory.aligns
        self._need(few, "memory.knn", f"must be at most {MAX_LAGS:,} for a memory by alignment")
        few = self.memory.top_k <= self.memory.knn or not self.memory.aligns
        self._need(few, "memory.top_k", f"must be at most memory.knn={self.memory.knn} for a memory by alignment")
        has_context_keys = self.memory.has_context_keys
        follows = self.memory.xl > 0 or not has_context_keys
        self._need(follows, "memory.xl", "must be at least 1, since the kNN memory stores the token that followed")
        wide = self.model.width // self.model.heads >= CONTEXT_LENGTH or not has_context_keys
        self._need(wide, "model.heads", f"must leave each head a width of at least {CONTEXT_LENGTH} for the kNN memory")
        one_of_them = 1 <= self.memory.knn_layer <= self.model.layers or not self.memory.has_keys
        self._need(one_of_them, "memory.knn_layer", f"must be one of the {self.model.layers} layers, from 1")

    def _need(self, holds: bool, key: str, what: str) -> None:
        if not holds:
            raise InputError(f"{key}={get(self, key)}: {what}; fix it in the config file or with --set {key}=...")


def get(config: Any, key: str) -> Any:
    """The value at a dotted key such as `model.width`."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def flatten(config: Config) -> dict[str, Any]:
    """All settings by dotted key."""
    return {
        f"{section}.{name}": value
        for section, values in dataclasses.asdict(config).items()
        for name, value in values.items()
    }


def from_flat(values: dict[str, Any], where: str) -> Config:
    """A config from settings by dotted key; what is not named has its default.

    Raises:
        InputError: a key is unknown or a value has the wrong type; `where` says whose it is.
    """
    sections = get_type_hints(Config)
    changes: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for key, value in values.items():
        section, _, name = key.partition(".")
        hints = get_type_hints(sections[section]) if section in sections else {}
        if name not in hints:
            settings = list(flatten(Config()))
            close = difflib.get_close_matches(key, settings, 1) or [k for k in settings if k.endswith(f".{key}")]
            meant = f"did you mean {close[0]}? " if close else ""
            known = [k for k in settings if k.startswith(f"{section}.")] or list(sections)
            raise InputError(f"{where}: unknown config key {key}; {meant}known are {', '.join(known)}")
        changes[section][name] = _checked(value, hints[name], f"{where}: {key}")
    return Config(**{section: cls(**changes[section]) for section, cls in sections.items()})


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _checked(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{where}={value}: give one of {', '.join(get_args(kind))}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}={value}: give {_KINDS[kind]}")
    return value


def override(config: Config, assignments: list[str]) -> Config:
    """Applies `key.path=value` assignments, as given with --set."""
    values = flatten(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: give key.path=value, such as --set train.steps=1000")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return from_flat(values, "--set")


def load(path: Path) -> Config:
    """Runs a config file and returns what its `config()` returns.

    Raises:
        InputError: there is no such file, or it defines no `config()` that returns a Config.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file; see configs/ for those that exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: no Python file; see configs/ for configs")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.config()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {error}; fix the config file") from error
    if not isinstance(config, Config):
        raise InputError(f"{path}: config() must return a midigen_jax.config.Config")
    return config
