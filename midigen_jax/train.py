"""Trains a model on a corpus or a folder of MIDI files, or resumes where the run folder holds a checkpoint.

    python train.py configs/demo.py --data CORPUS_OR_MIDI_DIR --workdir RUN

Ctrl-C finishes the step, saves and leaves; the same command goes on from there.

On several hosts every one runs this command with --distributed, and all see the same folders.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tensorboardX import SummaryWriter
from tqdm import tqdm

from . import checkpoint, cli, data, evaluate, model, search
from . import config as cfg
from .cli import InputError
from .corpus import Corpus, is_corpus, open_corpus, skipped_files
from .encode import encode_folder, midi_files
from .shapes import Array
from .step import (
    TrainState,
    init_state,
    keep_freed_memory,
    make_loss,
    make_mesh,
    make_optimizer,
    make_train_step,
    put_batch,
    state_sharding,
)
from .vocab import Vocabulary


class Log:
    """metrics.jsonl and TensorBoard event files of a run, written by the first host."""

    def __init__(self, run: Path, step: int):
        """A resumed run forgets the lines of steps that came after the checkpoint, since they are done again."""
        self.silent = jax.process_index() > 0
        if self.silent:
            return
        path = run / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line half-written when the machine went away
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, path)
        self.file = open(path, "a")  # noqa: SIM115  (open as long as the run)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.silent:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if not self.silent:
            self.file.close()
            self.board.close()


def join_hosts(address: str) -> None:
    """Makes this process one of many that train together; must come before anything is computed.

    Args:
        address: "HOST:PORT,PROCESSES,INDEX" of the first process, of all and of this one; empty where JAX can ask the
            cluster (TPU pods, Slurm, Kubernetes, Open MPI).

    Raises:
        InputError: this is no such address, or JAX knows no such cluster.
    """
    try:
        if address:
            first, processes, index = address.split(",")
            jax.distributed.initialize(first, int(processes), int(index))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise InputError(f"--distributed {address}: give HOST:PORT,PROCESSES,INDEX ({error})") from None
    if jax.process_index() > 0:
        # The first host speaks for all.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open as long as the process)


def on_any_host(here: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.array(here)).any())


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step is finished; the second one acts at once."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            sys.exit(128 + number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def get_corpus(source: Path, run: Path) -> Corpus:
    """The corpus at `source`, or that of the MIDI folder `source`, encoded into RUN/corpus the first time.

    Raises:
        InputError: there is nothing to encode, or RUN/corpus is of another folder, or of other files than now.
    """
    if is_corpus(source):
        return open_corpus(source)
    names, path = midi_files(source), run / "corpus"
    if not is_corpus(path):
        encode_folder(source, path)
    corpus = open_corpus(path)
    if sorted({*corpus.names, *skipped_files(path)}) != names:
        raise InputError(
            f"{path}: was encoded from other files than are in {source} now; give another --workdir, or --data "
            f"{path} to go on with the old files"
        )
    return corpus


def check_fits(meta: dict[str, Any], config: cfg.Config, corpus: Corpus, run: Path) -> None:
    """Raises InputError if the config or the corpus is not that of the checkpoint in what can't change."""
    now, then = cfg.flatten(config), meta["config"]
    for key, value in now.items():
        if not key.startswith("train.") and key != "memory.backend" and then.get(key) != value:
            raise InputError(
                f"{run}: its checkpoint has {key}={then.get(key)}, the config {value}; give another --workdir, or "
                f"--set {key}={then.get(key)}"
            )
    if meta["corpus"] != corpus.fingerprint:
        raise InputError(f"{run}: its checkpoint was trained on another corpus than {corpus.path}; give that one")


def rest_of(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds beside the parameters."""
    return {name: value for name, value in state._asdict().items() if name != "params"}


def restore_state(
    checkpoints: checkpoint.Checkpoints, step: int, config: cfg.Config, vocabulary: Vocabulary, mesh: jax.sharding.Mesh
) -> TrainState:
    def placed(sharding: jax.sharding.Sharding, tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    shapes = jax.tree.map(placed, state_sharding(mesh), jax.eval_shape(lambda: init_state(config, vocabulary)))
    items = checkpoints.restore(step, params=shapes.params, rest=rest_of(shapes))
    return TrainState(items["params"], **items["rest"])


def train(config: cfg.Config, source: Path, run: Path) -> bool:
    """Trains up to `config.train.steps`, validating, logging and saving on the way.

    Returns:
        False if a signal ended it before.

    Raises:
        InputError: data or config can't be used, or don't fit the checkpoint in the run folder.
    """
    settings = config.train
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("the first host has encoded")
    corpus = get_corpus(source, run)
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices("the first host has encoded")
    training, validation = corpus.songs_of("train"), corpus.songs_of("validation")
    if len(training) == 0:
        raise InputError(
            f"{corpus.path}: no song fell to the training split; encode with python -m midigen_jax.encode MIDI_DIR "
            "--out CORPUS --split 1 0 0 and train on that corpus"
        )
    if config.data.transpose and corpus.vocabulary.merges:
        raise InputError(
            f"data.transpose={config.data.transpose}: the merged tokens of {corpus.path} can't be transposed; encode "
            "with --transpose, and --set data.transpose=0"
        )
    validation = validation[: settings.validation_songs or None]
    run.mkdir(parents=True, exist_ok=True)
    checkpoints, meta = checkpoint.Checkpoints(run, keep=settings.keep), checkpoint.meta_of(config, corpus)
    mesh, first = make_mesh(config), checkpoints.latest() or 0
    if first:
        check_fits(checkpoints.meta(first), config, corpus, run)
        state = restore_state(checkpoints, first, config, corpus.vocabulary, mesh)
        print(f"{run}: resumed at step {first:,} of {settings.steps:,}")
    else:
        begin = jax.jit(init_state, static_argnums=(0, 1), out_shardings=state_sharding(mesh))
        state = begin(config, corpus.vocabulary)
    graphdef = model.abstract(config, corpus.vocabulary)
    train_step, total_loss = make_train_step(graphdef, config, mesh), make_loss(graphdef, config, mesh)
    _, learning_rate = make_optimizer(config)
    n_params = sum(x.size for x in jax.tree.leaves(state.params))
    tokens_per_step = config.data.lanes * config.data.segment * config.data.segments
    print(
        f"{n_params / 1e6:.1f} M parameters; {len(training):,} training and {len(validation):,} validation songs; "
        f"{tokens_per_step:,} tokens a step; XL memory {config.memory.xl:,} and kNN memory {config.memory.knn:,} slots "
        f"a lane ({search.resolve_backend(config.memory.backend)} search); {jax.devices()[0].device_kind}"
    )
    if len(validation) == 0:
        print(
            "no song fell to the validation split, so no validation loss will be shown; give more songs, or encode "
            "with python -m midigen_jax.encode MIDI_DIR --out CORPUS --split 0.5 0.5 0 and train on that corpus"
        )
    else:
        bigram, floor = evaluate.bigram_floor(corpus, training, validation)
        print(f"floor to beat, a bigram model (weight {bigram.weight:.2f}) on the validation songs: {floor}")
    log = Log(run, first)

    def save(step: int) -> None:
        if checkpoints.latest() != step:
            checkpoints.save(step, state.params, rest_of(state), meta)

    def validate(step: int) -> None:
        result = evaluate.figures(total_loss(state.params, corpus, validation), corpus, validation)
        below = 1 - result.nats_per_token / floor.nats_per_token
        tqdm.write(
            f"step {step:,}: validation {result}; {abs(below):.1%} {'below' if below > 0 else 'above'} the floor"
        )
        values = {f"validation/{name}": value for name, value in result._asdict().items()}
        log.write(step, {**values, "validation/floor_nats_per_token": floor.nats_per_token})

    batches = data.training_steps(
        corpus,
        training,
        n_lanes=config.data.lanes,
        tokens_per_step=tokens_per_step // config.data.lanes,
        n_steps=settings.steps,
        first=first,
        seed=config.data.seed,
        transpose=config.data.transpose,
    )
    step, recent = first, list[dict[str, Array]]()
    last_time = time.perf_counter()
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(log),
        contextlib.closing(batches),
        stop_signals() as stopping,
        tqdm(
            initial=first,
            total=settings.steps,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            disable=jax.process_index() > 0,
        ) as bar,
    ):
        for batch in batches:
            state, metrics = train_step(state, put_batch(batch, mesh))
            # The step before is waited for while this one runs, so that the device never waits for the host.
            jax.block_until_ready(recent[-1:])
            recent.append(metrics)
            step += 1
            bar.update()
            stop = bool(stopping)
            if jax.process_count() > 1:
                # All hosts must leave after the same step.
                stop = step % settings.log_every == 0 and on_any_host(stop)
            saving = step % settings.save_every == 0 or step == settings.steps or stop
            if saving or step % settings.log_every == 0:
                values = mean_metrics(recent)
                seconds = time.perf_counter() - last_time
                values["tokens_per_second"] = len(recent) * tokens_per_step / seconds
                values["learning_rate"] = float(learning_rate(step - 1))
                log.write(step, values)
                bar.set_postfix_str(
                    f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s, "
                    f"kNN hits {values['hit_rate']:.0%}, age {values['hit_age']:,.0f}, gate {values['gate']:.2f}"
                )
                if not math.isfinite(values["loss"] + values["gradient_norm"]):
                    raise InputError(
                        f"{run}: the loss is {values['loss']}, the gradient's norm {values['gradient_norm']} by step "
                        f"{step:,}; the checkpoint before it is kept; "
                        "go on from there with a smaller train.learning_rate"
                    )
                recent = []
            if len(validation) and (step % settings.validate_every == 0 or step == settings.steps):
                validate(step)
            if saving:
                save(step)
            if not recent:
                last_time = time.perf_counter()
            if stop:
                break
    if step < settings.steps:
        print(f"{run}: stopped and saved at step {step:,}; the same command goes on from there")
        return False
    print(f"{run}: trained {step:,} steps; continue a song with sample.py {run} --prompt FILE.mid")
    return True


def mean_metrics(steps: list[dict[str, Array]]) -> dict[str, float]:
    """Means over steps, of the hits' age over hits, of the gate by head; the resets are summed."""
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(steps))
    heads = stacked["gate"].mean(0).tolist()
    means = {name: float(np.mean(x)) for name, x in stacked.items()}
    return means | {
        "hit_age": means.pop("ages") / max(means.pop("hits"), 1e-9),
        "resets": float(stacked["resets"].sum()),
        **{f"gate/{head}": gate for head, gate in enumerate(heads)},
    }


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("--data", type=Path, required=True, metavar="CORPUS_OR_MIDI_DIR", help="music to learn from")
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="folder of this run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides a setting of midigen_jax/config.py, such as train.steps=500; may be given several times",
    )
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,PROCESSES,INDEX",
        help="this process is one of many, a host each; nothing need follow where JAX can ask the cluster",
    )
    args = parser.parse_args()
    if args.distributed is not None:
        join_hosts(args.distributed)
    keep_freed_memory()
    if jax.default_backend() != "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # On the CPU compiling takes seconds, and a program that calls Faiss can't be kept.
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "midigen_jax" / "xla"))
    config = cfg.override(cfg.load(args.config), args.set)
    if not train(config, args.data, args.workdir):
        sys.exit(130)


if __name__ == "__main__":
    cli.run(main)
