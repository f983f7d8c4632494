"""The training loop: step, log, validate, save and sample, in this order."""

import contextlib
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from tqdm import tqdm

from .. import config as cfg
from ..data import loader
from ..data.corpus import Corpus
from ..data.encode import open_or_encode
from ..errors import InputError
from ..model import search
from ..model.decoder import abstract_decoder
from ..run import checkpoint, hosts
from ..run.checkpoint import Checkpoints, SaveFailed
from ..run.folder import has_checkpoint
from ..run.signals import stop_signals
from . import restore
from .log import Log
from .metrics import RecentMetrics
from .samples import Samples
from .sharding import host_rows, make_mesh, make_put
from .state import TrainState
from .step import make_loss, make_train_step
from .validation import Validation


def check_usable(config: cfg.Config, corpus: Corpus) -> None:
    """Raises InputError if this corpus can't be trained on with this config."""
    if len(corpus.songs_of("train")) == 0:
        raise InputError(
            f"{corpus.path}: no song fell to the training split; encode with midigen encode MIDI_DIR "
            "--out CORPUS --split 1 0 0 and train on that corpus"
        )
    changed = [x for x in ("transpose", "modulate", "velocity_offset") if getattr(config.data, x)]
    if corpus.vocabulary.merges and changed:
        raise InputError(
            f"{corpus.path}: its merged tokens can't be transposed or change velocity while training; "
            f"{' '.join(f'--set data.{x}=0' for x in changed)} (midigen encode --transpose makes transposed copies)"
        )


def train(config: cfg.Config, source: Path, run: Path, init_from: Path | None = None) -> int:
    """Trains up to `config.train.steps`, and validates, logs, saves and samples on the way.

    Args:
        source: a corpus or a folder of MIDI files.
        init_from: the run whose parameters a new run begins with.

    Returns:
        0, or the number of the signal that stopped it early.

    Raises:
        InputError: data or config can't be used, or don't fit the checkpoint in the run folder; the loss is not finite;
            or a checkpoint could not be written and `train.on_failed_save` says to stop.
    """
    settings = config.train
    if has_checkpoint(run):
        if init_from is not None:
            print(f"{run}: has checkpoints and resumes from them; --init-from {init_from} is ignored")
            init_from = None
        restore.check_format(run)
    vocabulary = 0 if init_from is None else restore.vocabulary_of(init_from)
    corpus = hosts.main_process_first(lambda: open_or_encode(source, run, vocabulary))
    check_usable(config, corpus)
    if corpus.vocabulary.merges and config.memory.aligns:
        print(f"{corpus.path}: merges hide some of what returns in another key; encode without --vocabulary to find it")
    run.mkdir(parents=True, exist_ok=True)
    mesh, meta = make_mesh(config), checkpoint.meta_of(config, corpus)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(stop_signals())
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(run, keep=settings.keep, keep_every=settings.keep_every))
        )
        hosts.check_same_on_all_hosts(f"{cfg.flatten(config)} {corpus.fingerprint} {init_from} {checkpoints.steps()}")
        state = restore.restore_or_init(checkpoints, config, corpus, mesh, init_from)
        step = int(state.step)
        describe(config, corpus, state)
        graphdef = abstract_decoder(config, corpus.vocabulary)
        train_step, put = make_train_step(graphdef, config, mesh), make_put(config, corpus, mesh)
        validation = Validation(config, corpus, make_loss(graphdef, config, mesh))
        samples = Samples(config, corpus, run / "samples")
        log = stack.enter_context(contextlib.closing(Log(run, step, config)))
        rows = host_rows(config)
        batches = stack.enter_context(contextlib.closing(loader.training_steps(config, corpus, first=step, rows=rows)))
        bar = stack.enter_context(progress_bar(step, settings.steps))
        recent = RecentMetrics(config, corpus)
        saved_at = sampled_at = time.monotonic()
        for batch in batches:
            state, metrics = train_step(state, put(batch))
            step += 1
            recent.add(metrics)
            bar.update()
            last, logging = step == settings.steps, step % settings.log_every == 0
            now = [bool(stopping), over(saved_at, settings.save_minutes), over(sampled_at, settings.sample_minutes)]
            if jax.process_count() > 1:  # all hosts do the same after the same step
                now = hosts.any_host(now) if logging else [False] * 3
            stop, saving, sampling = now
            validating = len(validation.songs) > 0 and (last or step % settings.validate_every == 0)
            saving |= stop or last or validating or step % settings.save_every == 0
            saving |= settings.keep_every > 0 and step % settings.keep_every == 0
            if saving or logging:
                recent.check(run, step)  # nothing that is not finite is saved
            if logging or last:
                values = recent.summary(step)
                log.write(step, values)
                bar.set_postfix_str(summary_line(values, config, settings.steps - step))
            if validating or saving or sampling:
                with recent.paused():
                    loss = validation.write(step, state.params, log) if validating else None
                    if saving:
                        # The previous save must be done, and this one too if no other follows.
                        go_on = settings.on_failed_save == "continue"
                        attempt(checkpoints, checkpoints.wait, go_on=go_on)
                        save = partial(checkpoints.save, step, restore.items_of(state), meta, loss)
                        attempt(checkpoints, save, go_on=go_on and not (stop or last))
                        saved_at = time.monotonic()
                    if sampling:
                        samples.write(step, state.params, log)
                        sampled_at = time.monotonic()
            if stop:
                break
        attempt(checkpoints, checkpoints.wait, go_on=False)
    if step < settings.steps:
        print(f"{run}: stopped and saved at step {step:,}; the same command resumes from there")
        return stopping[0] if stopping else signal.SIGTERM  # another host was stopped
    already = " already" if step > settings.steps else ""
    print(f"{run}: has trained {step:,} steps{already}; continue a song with sample.py {run} --prompt FILE.mid")
    return 0


def over(since: float, minutes: float) -> bool:
    """Whether this many minutes have passed; never for 0."""
    return 0 < 60 * minutes < time.monotonic() - since


def describe(config: cfg.Config, corpus: Corpus, state: TrainState) -> None:
    """Prints the sizes of model, music, memories and machine."""
    n_params = sum(x.size for x in jax.tree.leaves(state.params))
    memory, here = config.memory, config.data
    search_by = f", {search.resolve_backend(memory.backend)} search" if memory.has_keys else ""
    retrieval = f" ({memory.retrieval}{search_by})" if memory.knn else ""
    print(
        f"{n_params / 1e6:.1f} M parameters; {len(corpus.songs_of('train')):,} training and "
        f"{len(corpus.songs_of('validation')):,} validation songs; "
        f"{here.lanes * here.segment * here.segments:,} tokens per step; XL memory {memory.xl:,} and kNN memory "
        f"{memory.knn:,} slots per lane{retrieval}; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )


def progress_bar(step: int, steps: int) -> tqdm:
    return tqdm(
        initial=step,
        total=steps,
        unit="step",
        desc="training",
        dynamic_ncols=True,
        disable=not hosts.is_main_process(),
    )


def summary_line(values: dict[str, float], config: cfg.Config, steps_left: int) -> str:
    """The figures beside the progress bar."""
    done = time.strftime("%H:%M", time.localtime(time.time() + steps_left * values["seconds_per_step"]))
    found = f"kNN hits {values['hit_rate']:.0%}, age {values['hit_age']:,.0f}, share {values['memory_share']:.0%}"
    return (
        f"loss {values['loss']:.3f}, {values['bits_per_note']:.2f} bits per note, "
        f"{values['tokens_per_second']:,.0f} tokens/s, done {done}{', ' + found if config.memory.knn else ''}"
    )


def attempt(checkpoints: Checkpoints, action: Callable[[], None], *, go_on: bool) -> None:
    """Calls `action`; if a checkpoint can't be written, reports it, and raises InputError unless the run may go on."""
    try:
        action()
    except SaveFailed as error:
        report = f"{checkpoints.path}: a checkpoint could not be written ({error})"
        if not go_on:
            steps = checkpoints.steps()
            where = f"resumes from step {steps[0]:,}" if steps else "starts over"
            raise InputError(f"{report}; free some space and give the same command, which {where}") from None
        tqdm.write(f"{report}; the run continues and tries again at the next save")
