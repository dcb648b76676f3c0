import io

import pytest
from rich.console import Console

from moe_optuna.search import Event
from moe_optuna.search.progress import Display, display

EVENTS = [
    Event("prepare"),
    Event("study", 1e9, 1, finished=0, trials=3),
    Event("start", 1e9, 1, 0, trials=3),
    Event("report", 1e9, 1, 0, loss=3.25, fraction=0.5, trials=3, remaining=125.0),
    Event("note", 1e9, 1, 0, trials=3, message="trial 0 goes back: [Errno 28] no space"),
    Event("end", 1e9, 1, 0, "complete", loss=2.5, best=2.5, fraction=1.0, finished=1, trials=3, remaining=3700.0),
    Event("end", 1e9, 1, 1, "failed", finished=1, trials=3, message="the loss is nan at report 2"),
    Event("done"),
]


def shown(*, terminal, quiet=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with display(quiet=quiet, console=console) as observer:
        for event in EVENTS:
            observer(event)
    return console.file.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    assert shown(terminal=False).splitlines() == [
        "preparing the text",
        "1e+09 FLOPs, phase 1: 3 trials",
        "1e+09 FLOPs, phase 1: trial 0 goes back: [Errno 28] no space",
        "1e+09 FLOPs, phase 1: trial 0 complete, loss 2.5000 (1/3), about 1:01:40 left",
        "1e+09 FLOPs, phase 1: trial 1 failed (1/3): the loss is nan at report 2",
        "done",
    ]


def test_a_live_table_in_a_terminal():
    text = shown(terminal=True)
    assert "[Errno 28] no space" in text
    assert "best loss" in text
    assert "1/3" in text


def test_nothing_where_it_is_to_be_quiet():
    assert shown(terminal=True, quiet=True) == ""


@pytest.mark.parametrize("step", range(1, len(EVENTS) + 1))
def test_the_display_can_be_drawn_after_any_event(step):
    state = Display()
    for event in EVENTS[:step]:
        state.observe(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(state)
    text = console.file.getvalue()
    assert "so far" in text
    assert ("trial 0 50% 3.250" in text) == (step in (4, 5))
    assert ("about 2:05 left" in text) == (step in (4, 5))
