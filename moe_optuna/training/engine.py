"""`train`: an architecture and a budget in, a held-out loss out."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, whole_number
from moe_optuna.training import _checkpoint, native
from moe_optuna.training._attempt import ShortOfMemoryError, micro_batches, own_objects_alone, short_of_memory
from moe_optuna.training._corpus import Corpus
from moe_optuna.training._data import TextData
from moe_optuna.training._module import LanguageModelling
from moe_optuna.training._recipe import Recipe
from moe_optuna.training._result import Report, TrainingFailure, TrainingResult
from moe_optuna.training.compiling import compiled, is_worth_it
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.parameters import initialise
from moe_optuna.training.rules import Hyperparameters, hyperparameters

__all__ = ["train"]

_FILE = "training.pt"


def train(
    architecture: MoEArchitecture,
    *,
    compute: float,
    tokens: int,
    recipe: Recipe,
    seed: int = 0,
    report: Callable[[Report], bool | None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
    device: str = "auto",
    devices: int = 1,
) -> TrainingResult:
    """Train an architecture on `tokens` tokens of the recipe's text, in whole steps.

    Args:
        architecture: What to train.
        compute: C, training FLOPs, from which the rule sets learning rate and batch.
        tokens: D.
        recipe: What all trials share.
        seed: Of initialisation and, unless the recipe has a `data_seed`, of the data's order.
        report: Called at each point of the grid, on the first process only; returns ``False`` to stop.
        interrupted: Asked after every optimizer step but the last, with several devices only at reports; where it is
            true the state is saved and the training stops, to be resumed.
        checkpoint: Folder that the state is written to at each report, and resumed from where it holds one.
        threads: CPU threads; ``None`` leaves torch's number.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        devices: Devices of this trial; with several the recipe's `strategy` is used, and every process but this one,
            unless a launcher has started them, runs the script again.

    Raises:
        InputError: Where an argument is none of these, text and architecture do not fit, or the checkpoint is another
            trial's or of another text.
        TrainingFailure: Where the loss is no longer finite, or memory is short.
    """
    hyper = hyperparameters(architecture, compute=compute, tokens=tokens, recipe=recipe, multiple=devices)
    return run(
        architecture,
        hyper,
        recipe,
        seed=seed,
        report=report,
        interrupted=interrupted,
        checkpoint=checkpoint,
        threads=threads,
        device=device,
        devices=devices,
    )


def run(
    architecture: MoEArchitecture,
    hyper: Hyperparameters,
    recipe: Recipe,
    *,
    seed: int = 0,
    report: Callable[[Report], bool | None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    checkpoint: str | Path | None = None,
    stem: Path | None = None,
    threads: int | None = None,
    device: str = "auto",
    devices: int = 1,
) -> TrainingResult:
    """`train` with given hyperparameters. Where memory is short for a step, a single device begins again with half as
    much of a batch at a time, if nothing has been reported yet or there is a checkpoint to go on from.

    Args:
        stem: File of a training's stable part. It is continued from where it is there and no longer than this one's,
            and written where this one's stable part ends.
    """
    told = False

    def tell(point: Report) -> bool | None:
        nonlocal told
        told = True
        return report(point) if report is not None else None

    sequences = hyper.sequences // whole_number(devices, "devices")
    most = sequences if recipe.micro_batch_tokens is None else recipe.micro_batch_tokens // architecture.context_length
    ways = micro_batches(sequences, most)
    while True:
        try:
            return _attempt(
                architecture, hyper, recipe, ways[0], seed=seed, report=tell, interrupted=interrupted,
                checkpoint=checkpoint, stem=stem, threads=threads, device=device, devices=devices,
            )  # fmt: skip
        except ShortOfMemoryError as failure:
            ways = ways[1:]
            if not ways or devices > 1 or (told and checkpoint is None):
                raise
            warnings.warn(f"{failure.reason}; again with {ways[0]} forward passes a step", stacklevel=2)


@short_of_memory()
@own_objects_alone()
def _attempt(
    architecture: MoEArchitecture,
    hyper: Hyperparameters,
    recipe: Recipe,
    parts: int,
    *,
    seed: int,
    report: Callable[[Report], bool | None],
    interrupted: Callable[[], bool] | None,
    checkpoint: str | Path | None,
    stem: Path | None,
    threads: int | None,
    device: str,
    devices: int,
) -> TrainingResult:
    """`run` with so many forward passes a step."""
    begin = time.perf_counter()
    if (seed := whole_number(seed, "seed", least=0)) >= 2**32:
        raise InputError(f"{seed}, expected at most {2**32 - 1}: torch looks at 32 bits alone", where="seed")
    if devices > 1 and sys.argv[0] in ("", "-", "-c") and "LOCAL_RANK" not in os.environ:
        raise InputError(f"{devices}, expected 1 outside a script: the other processes run it again", where="devices")
    if checkpoint is not None:
        for place in (Path(checkpoint), *Path(checkpoint).parents):
            if place.is_file():
                raise InputError("a file, expected a folder", where=place)
    if threads is not None:
        torch.set_num_threads(whole_number(threads, "threads"))
    accelerator = _accelerator(device)
    corpus = Corpus.prepare(recipe)
    if corpus.vocab_size > architecture.vocab_size:
        ending = ", the last of which ends a document" if corpus.end == corpus.vocab_size - 1 else ""
        raise InputError(
            f"{architecture.vocab_size}, expected at least the text's {corpus.vocab_size} token ids{ending}",
            where="vocab_size",
        )
    context = architecture.context_length
    data = TextData(
        corpus,
        context_length=context,
        sequences=hyper.sequences,
        steps=hyper.steps,
        seed=seed if recipe.data_seed is None else recipe.data_seed,
        reports=recipe.reports,
        micro_batches=parts,
        final_windows=recipe.final_windows,
        pause=hyper.stable_steps if stem is not None else None,
    )
    if recipe.document_mask and corpus.end is None:
        raise InputError("true, but where a document of this text ends is not known", where="document_mask")
    model = MoELanguageModel(architecture, recipe, corpus.end if recipe.document_mask else None)
    initialise(model, seed)
    module = LanguageModelling(model, recipe, hyper, parts)
    identity = _checkpoint.identity(architecture, recipe, hyper, seed, corpus)
    grid = _Grid(data, report, interrupted, begin, checkpoint, stem, identity)
    grid.resume(module)
    if accelerator == "cpu":
        native.library()  # which warns where there is none
    with _quiet():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=_strategy(recipe.strategy, devices),
            precision=_precision(recipe.precision, accelerator),  # type: ignore[arg-type]
            max_epochs=1,
            callbacks=[grid],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        if module.step < hyper.steps:
            with ExitStack() as stack:
                if is_worth_it(recipe, architecture, hyper, accelerator):
                    stack.enter_context(compiled(model, must=recipe.compile == "always"))
                with _interruptible(), short_of_memory(ShortOfMemoryError):
                    trainer.fit(module, datamodule=data)
    if module.captured is not None and module.captured.failure:
        reason = module.captured.failure
        warnings.warn(f"no CUDA graph, so that steps are launched kernel by kernel: {reason}", stacklevel=2)
    return grid.result(module)


class _Grid(pl.Callback):
    """Evaluates, reports, saves and stops at fixed shares of the token budget."""

    def __init__(
        self,
        data: TextData,
        report: Callable[[Report], bool | None],
        interrupted: Callable[[], bool] | None,
        begin: float,
        checkpoint: str | Path | None,
        stem: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.data, self.report, self.begin, self.stem, self.identity = data, report, begin, stem, identity
        self.interrupted = interrupted
        self.file = Path(checkpoint) / _FILE if checkpoint is not None else None
        self.curve: list[tuple[float, float]] = []
        self.stopped = False
        self.failure: TrainingFailure | None = None
        self.evaluation_seconds = 0.0

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, module: LanguageModelling, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        hyper, reports = module.hyper, len(self.data.report_steps)
        if self.stem is not None and module.step == hyper.stable_steps:
            self.save(module, self.stem, _checkpoint.of_stem(self.identity), [])
        if module.step not in self.data.report_steps:
            # Several devices must agree to stop, which they do at reports.
            if self.stopped or (trainer.world_size == 1 and self.ask()):
                trainer.should_stop = True
                if self.file is not None:
                    self.save(module, self.file, self.identity, self.curve)
            return
        index = self.data.report_steps.index(module.step) + 1
        final = index == reports
        if module.device.type == "cuda":
            torch.cuda.synchronize()  # steps that still run are not the evaluation's time
        begin = time.perf_counter()
        windows = self.data.held_out if final else self.data.report_windows(module.recipe.report_windows)
        loss = module.held_out_loss(windows, self.data.evaluation_sequences(module.recipe.micro_batch_tokens))
        self.evaluation_seconds += time.perf_counter() - begin
        if not math.isfinite(loss):
            self.failure = TrainingFailure(
                f"held-out loss is {loss} after {module.step} of {hyper.steps} steps", self.diagnostics(module)
            )
            trainer.should_stop = True
            return
        tokens = module.step * hyper.sequences * self.data.context_length
        self.curve.append((tokens, loss))
        go_on = True
        if trainer.is_global_zero:
            answer = self.report(Report(index, index / reports, tokens, loss))
            go_on = answer is None or bool(answer)  # nothing returned is no wish to stop
        if go_on and not final and self.interrupted is not None and trainer.is_global_zero:
            go_on = not self.interrupted()
        if not trainer.strategy.broadcast(go_on):
            self.stopped = not final
            trainer.should_stop = True
        if self.file is not None:
            self.save(module, self.file, self.identity, self.curve)

    def on_train_start(self, trainer: pl.Trainer, module: LanguageModelling) -> None:  # type: ignore[override]
        if self.interrupted is not None and trainer.world_size == 1:
            module.interrupted = self.ask

    def ask(self) -> bool:
        """Whether the training is to stop between reports; what is asked once is not asked again."""
        self.stopped = self.interrupted is not None and self.interrupted()
        return self.stopped

    def diagnostics(self, module: LanguageModelling) -> dict[str, float]:
        """What the result tells beside the loss."""
        return {
            "learning_rate": module.hyper.learning_rate,
            "sequences": module.hyper.sequences,
            "micro_batches": module.micro_batches,
            "evaluation_seconds": self.evaluation_seconds,
            **({} if module.captured is None else {"replayed_steps": module.captured.replayed}),
            **module.load_diagnostics(),
        }

    def save(
        self, module: LanguageModelling, file: Path, identity: dict[str, Any], curve: list[tuple[float, float]]
    ) -> None:
        """Write the state; the first process does, but sharded parameters are gathered from all."""
        state = {"identity": identity, "curve": curve, "random": torch.get_rng_state(), **module.state()}
        if module.trainer.is_global_zero:
            _checkpoint.write(file, state)

    def resume(self, module: LanguageModelling) -> None:
        """Continue from the checkpoint, or else from the stem, where there is one."""
        state = None
        if self.file is not None and self.file.is_file():
            state = _checkpoint.read(self.file, self.identity)
        if state is None and self.stem is not None and self.stem.is_file():
            state = _checkpoint.read(self.stem, _checkpoint.of_stem(self.identity))
            if state is not None and state["step"] > module.hyper.stable_steps:
                state = None
        if state is None:
            return
        module.load_state(state)
        torch.set_rng_state(state["random"])
        self.curve = [tuple(point) for point in state["curve"]]
        self.data.first_step = module.step

    def result(self, module: LanguageModelling) -> TrainingResult:
        if self.failure is not None:
            raise self.failure
        loss = self.curve[-1][1] if self.curve else math.nan
        whole = module.step == module.hyper.steps
        windows = self.data.held_out if whole else self.data.report_windows(module.recipe.report_windows)
        return TrainingResult(
            loss=loss,
            bits_per_byte=self.data.corpus.bits_per_byte(loss, windows.numpy()),
            tokens=module.step * module.hyper.sequences * self.data.context_length,
            steps=module.step,
            seconds=time.perf_counter() - self.begin,
            stopped=self.stopped,
            curve=tuple(self.curve),
            diagnostics=self.diagnostics(module),
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is what it is elsewhere: of Lightning it would end the process, and be ignored in what is left of it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise end.__context__ from None


def _accelerator(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"{device!r}, expected auto, cpu or cuda", where="device")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("cuda, but torch finds no GPU", where="device")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _strategy(name: str, devices: int) -> Any:
    if devices == 1:
        return "auto"
    if name == "ddp":
        return name
    from moe_optuna.training.sharded import sharded_strategy  # seconds, which no other trial pays

    return sharded_strategy(devices)


def _precision(name: str, accelerator: str) -> str:
    mixed = name == "bfloat16" or (name == "auto" and accelerator == "cuda")
    return "bf16-mixed" if mixed else "32-true"


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning says nothing: no banner, no hints, no warnings about what is meant."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
