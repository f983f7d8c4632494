"""Trains a model on a corpus or a folder of MIDI files, or resumes where the run folder holds a checkpoint.

    python train.py configs/demo.py --data CORPUS_OR_MIDI_DIR --workdir RUN

Ctrl-C finishes the step, saves and leaves; the same command goes on from there.

On several hosts every one runs this command with --distributed, and all see the same folders.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from tqdm import tqdm

from . import checkpoint, cli, data, hosts, model, search, start
from . import config as cfg
from .checkpoint import Checkpoints, SaveFailed
from .cli import InputError
from .corpus import Corpus, is_corpus, open_corpus, skipped_files
from .encode import encode_folder, midi_files
from .log import Log, Recent
from .process import keep_freed_memory, keep_programs
from .step import TrainState, host_rows, make_loss, make_mesh, make_put, make_train_step
from .vocab import Vocabulary
from .watch import Samples, Validation


def get_corpus(source: Path, run: Path, vocabulary: Vocabulary | int = 0) -> Corpus:
    """The corpus at `source`, or that of the MIDI folder `source`, encoded into RUN/corpus the first time.

    Args:
        vocabulary: as `encode_folder` takes it.

    Raises:
        InputError: there is nothing to encode, or RUN/corpus is of another folder, or of other files than now.
    """
    if is_corpus(source):
        return open_corpus(source)
    names, path = midi_files(source), run / "corpus"
    if not is_corpus(path):
        encode_folder(source, path, vocabulary=vocabulary)
    corpus = open_corpus(path)
    if sorted({*corpus.names, *skipped_files(path)}) != names:
        raise InputError(
            f"{path}: was encoded from other files than are in {source} now; for these give another run "
            f"folder, for the old ones --data {path}"
        )
    return corpus


def check_usable(config: cfg.Config, corpus: Corpus) -> None:
    """Raises InputError if this corpus can't be trained on with this config."""
    if len(corpus.songs_of("train")) == 0:
        raise InputError(
            f"{corpus.path}: no song fell to the training split; encode with python -m midigen_jax.encode MIDI_DIR "
            "--out CORPUS --split 1 0 0 and train on that corpus"
        )
    if corpus.vocabulary.merges and (config.data.transpose or config.data.louder):
        raise InputError(
            f"{corpus.path}: its merged tokens can't be transposed or made louder; --set data.transpose=0 --set "
            "data.louder=0, and encode with --transpose"
        )


def train(config: cfg.Config, source: Path, run: Path, init_from: Path | None = None) -> int:
    """Trains up to `config.train.steps`, validating, logging, saving and sampling on the way.

    Args:
        source: a corpus or a folder of MIDI files.
        init_from: the run that a new run begins from.

    Returns:
        0, or the number of the signal that ended it before.

    Raises:
        InputError: data or config can't be used, or don't fit the checkpoint in the run folder; the loss is not finite;
            or a checkpoint could not be written and `train.on_failed_save` says to stop.
    """
    settings = config.train
    if any(path.name.isdigit() for path in (run / "checkpoints").glob("*")):
        init_from = None  # the run has a checkpoint of its own
    vocabulary = 0 if init_from is None else start.vocabulary_of(init_from)
    corpus = hosts.first_then_all(lambda: get_corpus(source, run, vocabulary))
    check_usable(config, corpus)
    run.mkdir(parents=True, exist_ok=True)
    mesh, meta = make_mesh(config), checkpoint.meta_of(config, corpus)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(cli.stop_signals())
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(run, keep=settings.keep)))
        hosts.check_alike(f"{cfg.flatten(config)} {corpus.fingerprint} {init_from} {checkpoints.steps()}")
        state = start.state_of(checkpoints, config, corpus, mesh, init_from)
        step = int(state.step)
        describe(config, corpus, state)
        graphdef = model.abstract(config, corpus.vocabulary)
        train_step, put = make_train_step(graphdef, config, mesh), make_put(config, corpus, mesh)
        validation = Validation(config, corpus, make_loss(graphdef, config, mesh))
        samples = Samples(config, corpus, run / "samples")
        log = stack.enter_context(contextlib.closing(Log(run, step, config)))
        rows = host_rows(config)
        batches = stack.enter_context(contextlib.closing(data.training_steps(config, corpus, first=step, rows=rows)))
        bar = stack.enter_context(progress_bar(step, settings.steps))
        recent = Recent(config, corpus)
        saved_at = sampled_at = time.monotonic()
        for batch in batches:
            state, metrics = train_step(state, put(batch))
            step += 1
            recent.add(metrics)
            bar.update()
            last, logging = step == settings.steps, step % settings.log_every == 0
            now = [bool(stopping), over(saved_at, settings.save_minutes), over(sampled_at, settings.sample_minutes)]
            if jax.process_count() > 1:  # all do the same after the same step
                now = hosts.on_any(now) if logging else [False] * 3
            stop, saving, sampling = now
            validating = len(validation.songs) > 0 and (last or step % settings.validate_every == 0)
            saving |= stop or last or validating or step % settings.save_every == 0
            if saving or logging:
                recent.check(run, step)  # nothing that is not a number is saved
            if logging or last:
                values = recent.summary(step)
                log.write(step, values)
                bar.set_postfix_str(in_short(values, settings.steps - step))
            if validating or saving or sampling:
                with recent.aside():
                    loss = validation.write(step, state.params, log) if validating else None
                    if saving:
                        # The save before is waited for, and so is this one if no other follows.
                        anyhow = settings.on_failed_save == "go on"
                        tell_failure(checkpoints, checkpoints.wait, anyhow=anyhow)
                        save = partial(checkpoints.save, step, start.items_of(state), meta, loss)
                        tell_failure(checkpoints, save, anyhow=anyhow and not (stop or last))
                        saved_at = time.monotonic()
                    if sampling:
                        samples.write(step, state.params, log)
                        sampled_at = time.monotonic()
            if stop:
                break
        tell_failure(checkpoints, checkpoints.wait, anyhow=False)
    if step < settings.steps:
        print(f"{run}: stopped and saved at step {step:,}; the same command goes on from there")
        return stopping[0] if stopping else signal.SIGTERM  # or another host's
    already = " already" if step > settings.steps else ""
    print(f"{run}: has trained {step:,} steps{already}; continue a song with sample.py {run} --prompt FILE.mid")
    return 0


def over(since: float, minutes: float) -> bool:
    """Whether so many minutes are over; 0 never are."""
    return 0 < 60 * minutes < time.monotonic() - since


def describe(config: cfg.Config, corpus: Corpus, state: TrainState) -> None:
    """Prints what is trained on what."""
    n_params = sum(x.size for x in jax.tree.leaves(state.params))
    memory, here = config.memory, config.data
    print(
        f"{n_params / 1e6:.1f} M parameters; {len(corpus.songs_of('train')):,} training and "
        f"{len(corpus.songs_of('validation')):,} validation songs; "
        f"{here.lanes * here.segment * here.segments:,} tokens a step; XL memory {memory.xl:,} and kNN memory "
        f"{memory.knn:,} slots a lane ({search.resolve_backend(memory.backend)} search); "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )


def progress_bar(step: int, steps: int) -> tqdm:
    return tqdm(
        initial=step,
        total=steps,
        unit="step",
        desc="training",
        dynamic_ncols=True,
        disable=not hosts.is_first(),
    )


def in_short(values: dict[str, float], steps_left: int) -> str:
    """The figures behind the progress bar."""
    done = time.strftime("%H:%M", time.localtime(time.time() + steps_left * values["seconds_per_step"]))
    return (
        f"loss {values['loss']:.3f}, {values['bits_per_note']:.2f} bits a note, "
        f"{values['tokens_per_second']:,.0f} tokens/s, done {done}, "
        f"kNN hits {values['hit_rate']:.0%}, age {values['hit_age']:,.0f}, gate {values['gate']:.2f}"
    )


def tell_failure(checkpoints: Checkpoints, action: Callable[[], None], *, anyhow: bool) -> None:
    """Does it; if a checkpoint can't be written, says so and goes on `anyhow` or raises InputError."""
    try:
        action()
    except SaveFailed as error:
        said = f"{checkpoints.path}: a checkpoint could not be written ({error})"
        if not anyhow:
            steps = checkpoints.steps()
            where = f"goes on from step {steps[0]:,}" if steps else "begins anew"
            raise InputError(f"{said}; make room and give the same command, which {where}") from None
        tqdm.write(f"{said}; the run goes on and tries again with the next one")


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
        "--init-from",
        type=Path,
        metavar="RUN",
        help="a new run begins from this one's weights, as for other music, more lanes or a larger memory",
    )
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,PROCESSES,INDEX",
        help="this process is one of many, a host each; nothing need follow where JAX can ask the cluster",
    )
    args = parser.parse_args()
    config = cfg.override(cfg.load(args.config), args.set)
    if args.distributed is not None:
        hosts.join(args.distributed)
    keep_freed_memory()
    keep_programs()
    if stopped_by := train(config, args.data, args.workdir, args.init_from):
        sys.exit(128 + stopped_by)


if __name__ == "__main__":
    cli.run(main)
