"""What a training tells: reports on the way, a result at the end, or why it failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Report", "TrainingFailure", "TrainingResult"]


@dataclass(frozen=True, slots=True)
class Report:
    """Held-out loss at a point of the fixed grid.

    Attributes:
        index: Grid index, 1 to n.
        fraction: Share of the token budget trained, ``index / n``.
        tokens: Tokens trained.
        loss: Held-out loss [nats per token], on all windows at the last point and on a fixed part of them before.
    """

    index: int
    fraction: float
    tokens: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The outcome of a training.

    Attributes:
        loss: Held-out loss [nats per token]; of the last report where the training was stopped.
        bits_per_byte: The same per byte of the text that it was taken on, or ``None`` where that is unknown.
        tokens, steps: What was trained.
        seconds: Wall-clock time.
        stopped: Whether the report's receiver stopped it before the end.
        curve: Pairs of tokens and loss, one a report.
        diagnostics: What else is worth knowing: the load's coefficient of variation per layer
            (``load_cv_layer_3``), the greatest of them (``load_cv``), the visits that no expert took
            (``dropped_layer_3``), the number of ``collapsed_routers``, learning rate, batch.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    steps: int
    seconds: float
    stopped: bool
    curve: tuple[tuple[float, float], ...]
    diagnostics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class TrainingFailure(RuntimeError):
    """A training that cannot give a loss: it diverged, or found no memory.

    Attributes:
        reason: One line.
        diagnostics: What was known when it failed.
    """

    def __init__(self, reason: str, diagnostics: dict[str, float] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.diagnostics = diagnostics or {}

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions cross process borders by their arguments
        return type(self), (self.reason, self.diagnostics)
