"""`train_budgets`: several token budgets of one architecture for little more than the largest costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training._recipe import Recipe
from moe_optuna.training._result import TrainingResult
from moe_optuna.training.engine import run
from moe_optuna.training.rules import Hyperparameters, hyperparameters

__all__ = ["train_budgets"]


def train_budgets(
    architecture: MoEArchitecture,
    *,
    compute: float,
    tokens: Sequence[int],
    recipe: Recipe,
    seed: int = 0,
    interrupted: Callable[[], bool] | None = None,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
    device: str = "auto",
    devices: int = 1,
) -> list[TrainingResult]:
    """Train an architecture to several token budgets, whose trainings share one stable part.

    The learning rate of a warmup-stable-decay schedule is the same for every budget until it falls, so a longer
    training goes on from where a shorter one began to decay (arXiv:2405.18392): budgets D, 2 D and 4 D with a decay of
    40 % train 5.2 D tokens instead of 7 D. Each result is that of a training of its own with the same rate.

    Args:
        architecture: What to train.
        compute: C of the largest budget, training FLOPs.
        tokens: D of each budget, in any order; learning rate and batch are the rule's for the largest, the warm-up is
            the smallest one's.
        recipe: What all trainings share; its schedule must be ``wsd``.
        seed, interrupted: As for `train`; once interrupted, what has ended is returned and the same call goes on, if
            there is a `checkpoint`.
        checkpoint: Folder for the states, which all devices see; a temporary one by default.
        threads, device, devices: As for `train`.

    Returns:
        One result a budget, in the order of `tokens`. Curves and `seconds` begin where a training leaves the part that
        it shares with a smaller budget.

    Raises:
        InputError: Where the schedule is not ``wsd``, or the smallest budget's rate falls before it has risen.
        TrainingFailure: Where a loss is no longer finite, or memory is short.
    """
    if recipe.schedule != "wsd":
        raise InputError(f"{recipe.schedule!r}, expected wsd, which has a stable part to share", where="schedule")
    tokens = list(tokens)
    if not tokens or not all(math.isfinite(budget) and budget >= 1 for budget in tokens):
        raise InputError(f"{tokens}, expected at least one finite number of at least 1", where="tokens")
    tokens = [int(budget) for budget in tokens]
    if devices > 1 and checkpoint is None:
        raise InputError("none, expected a folder that all devices see", where="checkpoint")
    plans = _plans(architecture, compute, tokens, recipe, devices)
    least = plans[min(tokens)]
    if least.stable_steps < least.warmup_steps:
        raise InputError(
            f"{min(tokens)} are {least.steps} steps, {least.warmup_steps} of warm-up and {least.decay_steps} of decay; "
            "expected more",
            where="tokens",
        )
    results: dict[int, TrainingResult] = {}
    with ExitStack() as stack:
        folder = Path(checkpoint or stack.enter_context(TemporaryDirectory()))
        for budget in sorted(set(tokens)):
            plan = plans[budget]
            state, stem = folder / f"{plan.steps}-steps", folder / "stable.pt"
            results[budget] = run(
                architecture,
                plan,
                recipe,
                seed=seed,
                interrupted=interrupted,
                checkpoint=state,
                stem=stem,
                threads=threads,
                device=device,
                devices=devices,
            )
            if results[budget].stopped:
                break
    return [results[budget] for budget in tokens if budget in results]


def _plans(
    architecture: MoEArchitecture, compute: float, tokens: Sequence[int], recipe: Recipe, devices: int
) -> dict[int, Hyperparameters]:
    """Hyperparameters by budget, equal but for their ends."""

    def rule(budget: int, recipe: Recipe) -> Hyperparameters:
        return hyperparameters(architecture, compute=compute, tokens=budget, recipe=recipe, multiple=devices)

    largest = rule(max(tokens), recipe)
    batch = largest.sequences * architecture.context_length
    common = replace(recipe, batch_tokens=batch, learning_rate=largest.learning_rate)
    own = {budget: rule(budget, common) for budget in tokens}
    return {budget: replace(plan, warmup_steps=own[min(tokens)].warmup_steps) for budget, plan in own.items()}
