"""The time left, against the time that a simulated search then takes."""

import pytest

from moe_optuna.search._clock import Clock
from moe_optuna.search._events import Event
from moe_optuna.space import SearchSpace


def left_along(space: SearchSpace, exponent: float, already: int = 0) -> list[tuple[float, float]]:
    """Pairs of the time left as told and as it turns out, at each trial's end of a search with one worker whose trials
    take ``C ** exponent`` seconds; `already` of each study's trials are there."""
    told: list[tuple[float, float | None]] = []
    time = 0.0
    clock = Clock(space, lambda event: told.append((time, event.remaining)), now=lambda: time)
    plan = space.search
    for step, compute in enumerate(space.budgets):
        for phase in (0, 1, 2):
            trials = plan.trials(phase, step) + (plan.repeated(step) if phase == 2 else 0)
            begin = min(already, trials) if step == 0 else 0
            clock.observe(Event("study", compute, phase, finished=begin, trials=trials))
            for trial in range(begin, trials):
                for part in range(5):
                    time += compute**exponent / 5 if part else 0.0
                    clock.observe(Event("report", compute, phase, trial, fraction=part / 5, finished=trial))
                time += compute**exponent / 5
                clock.observe(Event("end", compute, phase, trial, "complete", finished=trial + 1, trials=trials))
    return [(left, time - at) for at, left in told if left is not None]


@pytest.mark.parametrize("already", [0, 2])
@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_right_once_two_budgets_are_known(exponent: float, already: int) -> None:
    told = left_along(SearchSpace.load("cpu"), exponent, already)
    later = told[len(told) // 2 :]
    assert later[-1] == (pytest.approx(0, abs=1e-6), 0.0)
    for left, true in later[:-1]:
        assert left == pytest.approx(true, rel=0.15, abs=0.02 * told[0][1])


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_within_a_factor_of_two_before(exponent: float) -> None:
    told = left_along(SearchSpace.load("cpu"), exponent)
    assert all(0.5 < left / true < 2 for left, true in told[5:-1] if true > 0.05 * told[0][1])
