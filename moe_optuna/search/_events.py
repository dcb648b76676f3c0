"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Event", "Observer"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened.

    Attributes:
        kind: ``prepare`` (the text is being made ready), ``study`` (a phase of a budget begins), ``start``, ``report``,
            ``end`` (of a trial), ``note`` (something a person should know), ``done``.
        compute, phase: Budget [FLOPs] and phase.
        trial: The trial's number in its study.
        state: How a trial ended: ``complete``, ``pruned``, ``failed``, ``returned`` (given back, to be resumed).
        loss: Of the report or the trial, nats per token.
        best: Lowest loss of the study so far.
        fraction: Share of the trial's token budget that is trained.
        finished, trials: Trials of the study that are finished, and that it is to have.
        remaining: Estimated seconds to the end of the search, from the FLOP rate so far.
        message: For a person.
    """

    kind: Literal["prepare", "study", "start", "report", "end", "note", "done"]
    compute: float = 0.0
    phase: int | None = None
    trial: int | None = None
    state: str = ""
    loss: float | None = None
    best: float | None = None
    fraction: float = 0.0
    finished: int = 0
    trials: int = 0
    remaining: float | None = None
    message: str = ""


Observer = Callable[[Event], None]
