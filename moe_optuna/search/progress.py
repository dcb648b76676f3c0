"""What a person sees while a search runs: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moe_optuna.search._events import Event, Observer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Display", "display"]


@contextmanager
def display(*, quiet: bool = False, console: Console | None = None) -> Iterator[Observer]:
    """An observer for `search` that draws on standard error.

    Args:
        quiet: Draw nothing.
        console: Where to draw.
    """
    if quiet:
        yield lambda event: None
        return
    from rich.console import Console
    from rich.live import Live

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: _print_line(console, event)
        return
    shown = Display()
    with Live(shown, console=console, refresh_per_second=4, transient=False) as live:

        def observe(event: Event) -> None:
            shown.observe(event)
            if event.kind == "note":
                live.console.print(f"[yellow]{_escape(event.message)}")

        yield observe


class Display:
    """The state of a search as a rich renderable: a line a study, a bar for what runs, the time left."""

    def __init__(self) -> None:
        self._studies: dict[tuple[float, int | None], Event] = {}
        self._running: dict[int, Event] = {}
        self._last = Event("prepare")
        self._since = time.monotonic()
        self._told = self._since

    def observe(self, event: Event) -> None:
        """Take in an event."""
        self._told = time.monotonic()
        if event.kind == "study":
            self._running.clear()
        if event.kind != "note" and event.phase is not None:
            self._studies[event.compute, event.phase] = event
        if event.trial is not None and event.kind in ("start", "report"):
            self._running[event.trial] = event
        elif event.trial is not None and event.kind == "end":
            self._running.pop(event.trial, None)
        if event.kind != "note":
            self._last = event

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("budget", "phase", "trials"):
            table.add_column(name, justify="right")
        table.add_column("", width=24)
        table.add_column("best loss", justify="right")
        for event in self._studies.values():
            table.add_row(
                f"{event.compute:.3g}",
                str(event.phase),
                f"{event.finished}/{event.trials}",
                ProgressBar(total=max(1, event.trials), completed=event.finished, width=24),
                "" if event.best is None else f"{event.best:.4f}",
            )
        running = "   ".join(
            f"trial {number} {event.fraction:.0%}" + ("" if event.loss is None else f" {event.loss:.3f}")
            for number, event in sorted(self._running.items())
        )
        line = f"{_clock(time.monotonic() - self._since)} so far"
        if self._last.remaining is not None:
            line += f", about {_clock(max(0.0, self._last.remaining - (time.monotonic() - self._told)))} left"
        if self._last.kind == "prepare":
            line += "   preparing the text"
        return Group(table, Text(running, style="cyan"), Text(line, style="dim"))


def _print_line(console: Console, event: Event) -> None:
    if event.kind in ("report", "start") or (event.kind == "study" and not event.trials):
        return
    where = f"{event.compute:.3g} FLOPs, phase {event.phase}" if event.phase is not None else ""
    if event.kind == "end":
        loss = "" if event.loss is None else f", loss {event.loss:.4f}"
        left = "" if event.remaining is None else f", about {_clock(event.remaining)} left"
        what = f"trial {event.trial} {event.state}{loss} ({event.finished}/{event.trials}){left}"
    elif event.kind == "study":
        what = f"{event.trials} trials" + (f", {event.finished} there already" if event.finished else "")
    else:
        what = {"prepare": "preparing the text", "done": "done"}.get(event.kind, "")
    text = ": ".join(part for part in (where, what, event.message) if part)
    console.print(_escape(text), soft_wrap=True, highlight=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
