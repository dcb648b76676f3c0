"""Budgets that share a stable part: each result is that of a training of its own, for fewer steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.training import Recipe, TrainingResult, train, train_budgets
from moe_optuna.training._module import LanguageModelling
from moe_optuna.training.capture import Pace
from moe_optuna.training.rules import hyperparameters

Build = Callable[..., MoEArchitecture]
BUDGETS = (1280, 320, 640)  # 20, 5 and 10 steps
WARMUP_STEPS = 1


def recipe(folder: Path, **changes: Any) -> Recipe:
    """Batch and rate are stated: the rule sets them by the budget, and here they must be common."""
    common: dict[str, Any] = {"batch_tokens": 64, "learning_rate": 3e-3, "reports": 3, "report_windows": 4,
                              "final_windows": 8, "warmup": WARMUP_STEPS / 5}  # fmt: skip
    return Recipe(data=str(folder), **(common | changes))


def shared(a: MoEArchitecture, folder: Path, **how: Any) -> list[TrainingResult]:
    return train_budgets(a, compute=1e8, tokens=BUDGETS, recipe=recipe(folder), device="cpu", threads=1, **how)


def alone(a: MoEArchitecture, folder: Path, tokens: int) -> TrainingResult:
    own = recipe(folder, warmup=WARMUP_STEPS / (tokens // 64))
    return train(a, compute=1e8, tokens=tokens, recipe=own, device="cpu", threads=1)


def test_each_is_a_training_of_its_own(architecture: Build, folder: Path) -> None:
    """To the last bit, loss and what of the curve lies behind the shared part."""
    a = architecture(n_moe_layers=2)
    for tokens, result in zip(BUDGETS, shared(a, folder), strict=True):
        own = alone(a, folder, tokens)
        assert (result.loss, result.tokens, result.steps) == (own.loss, own.tokens, own.steps)
        assert result.curve == own.curve[-len(result.curve) :]


def test_all_have_the_rule_of_the_largest(architecture: Build, folder: Path) -> None:
    """Or the shorter would have smaller batches, and no stable part in common."""
    a, budgets = architecture(), (5_000, 20_000)
    rule = [hyperparameters(a, compute=1e8, tokens=tokens, recipe=Recipe()) for tokens in budgets]
    assert rule[0].sequences < rule[1].sequences
    plain = Recipe(data=str(folder), reports=1, report_windows=4, final_windows=8)
    short, long = train_budgets(a, compute=1e8, tokens=budgets, recipe=plain, device="cpu", threads=1)
    assert long.steps == rule[1].steps
    assert short.steps == round(budgets[0] / (rule[1].sequences * a.context_length))


def test_the_stable_part_is_trained_once(architecture: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps of the largest, and of the others the 4 and 2 in which the rate falls."""
    taken, own = [], LanguageModelling._one_step

    def one_step(self: LanguageModelling, windows: Sequence[torch.Tensor], pace: Pace) -> None:
        taken.append(len(windows))
        own(self, windows, pace)

    monkeypatch.setattr(LanguageModelling, "_one_step", one_step)
    shared(architecture(), folder)
    assert len(taken) == 20 + 4 + 2


def test_an_interrupted_one_goes_on(architecture: Build, folder: Path, tmp_path: Path) -> None:
    a, whole = architecture(), shared(architecture(), folder)
    for stop in (2, 5, 4):
        left = iter([False] * stop + [True])
        part = shared(a, folder, checkpoint=tmp_path / "state", interrupted=lambda left=left: next(left))
        assert [result.stopped for result in part].count(True) == 1
    found = shared(a, folder, checkpoint=tmp_path / "state")
    assert [result.loss for result in found] == [result.loss for result in whole]


def test_a_damaged_checkpoint_leaves_the_stable_part(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """From which the longer training goes on; a damaged stable part is trained again."""
    whole = [result.loss for result in shared(architecture(), folder, checkpoint=tmp_path)]
    ends, (stem, *others) = sorted(tmp_path.glob("*-steps/*")), [path for path in tmp_path.glob("*") if path.is_file()]
    assert not others
    for damaged in (ends, [*ends, stem]):
        for file in damaged:
            file.write_bytes(b"")
        with pytest.warns(UserWarning, match="not a checkpoint"):
            assert [result.loss for result in shared(architecture(), folder, checkpoint=tmp_path)] == whole
        assert stem.stat().st_size


def test_numbers_of_numpy_and_a_folder_by_name_will_do(architecture: Build, folder: Path, tmp_path: Path) -> None:
    """A second call reads what the first has left, in the same place."""
    numbers = recipe(folder, reports=np.int64(3), learning_rate=np.float64(3e-3))
    assert numbers == recipe(folder)
    numbers = replace(numbers, learning_rate=None)  # the rule's is made of the numbers below
    for _ in range(2):
        results = train_budgets(
            architecture(), compute=np.float64(1e8), tokens=np.array([640, 320]), recipe=numbers,
            checkpoint=str(tmp_path / "state"), device="cpu", threads=1,
        )  # fmt: skip
    assert [result.steps for result in results] == [10, 5]
    seconds: list[float] = []
    for _ in range(2):
        result = train(architecture(), compute=np.float64(1e8), tokens=np.int64(640), recipe=numbers, seed=np.int64(0),
                       checkpoint=str(tmp_path / "one"), device="cpu", threads=1)  # fmt: skip
        seconds.append(result.diagnostics["evaluation_seconds"])
    assert result.steps == 10
    assert (seconds[0] > 0, seconds[1]) == (True, 0)  # which read that all was done


def test_devices_need_a_common_folder(architecture: Build, folder: Path) -> None:
    with pytest.raises(InputError, match="checkpoint"):
        shared(architecture(), folder, devices=2)


@pytest.mark.parametrize(
    ("tokens", "changes", "where"),
    [
        ((640,), {"schedule": "cosine"}, "schedule"),
        ((), {}, "tokens"),
        ((0, 640), {}, "tokens"),
        ((640, math.inf), {}, "tokens"),
        ((64, 640), {"decay": 0.8}, "tokens"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    architecture: Build, folder: Path, tokens: tuple[float, ...], changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(InputError, match=where):
        train_budgets(architecture(), compute=1e8, tokens=tokens, recipe=recipe(folder, **changes))


def test_another_stable_part_is_refused(architecture: Build, folder: Path, tmp_path: Path) -> None:
    shared(architecture(), folder, checkpoint=tmp_path)
    for file in tmp_path.glob("*-steps/*"):
        file.unlink()
    with pytest.raises(InputError, match="differs in seed"):
        shared(architecture(), folder, checkpoint=tmp_path, seed=1)
