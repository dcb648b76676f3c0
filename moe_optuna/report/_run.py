"""`Run`: what the folder of a search holds, read and checked; the parts that are not there yet are empty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_optuna.architecture import COUNTS, DIMENSIONS, MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.laws import LadderLaws
from moe_optuna.laws.ladder import FittedAxis
from moe_optuna.report._checked import MOST, checked_blueprint, checked_laws
from moe_optuna.search.blueprint import Blueprint

__all__ = ["Comparison", "Run", "Trial", "quantity"]

FILES = ("runs.csv", "laws.json", "blueprint.json", "journal.log")
STATES = ("complete", "pruned", "failed")
TEXTS = ("study", "state", "reason")
COLUMNS = ("study", "trial", "state", "phase", "compute", "loss")
SEARCHED = ((0, "flops_per_token"), (1, "compute_density"), (1, "expansion_ratio"), (2, "d_model"))
"""What the phases search, for as long as there are no laws to say."""
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of `runs.csv`.

    Attributes:
        study, number: The study's name and the trial's number in it.
        state: ``complete``, ``pruned`` or ``failed``.
        phase: 0, 1 or 2.
        compute: Training FLOPs of the budget.
        loss: Nats per token, held out; the last one reported where the trial was pruned; nan where there is none.
        reason: Why it failed, or nothing.
        values: Every numeric column by its name; nan where the field is empty.
    """

    study: str
    number: int
    state: str
    phase: int
    compute: float
    loss: float
    reason: str
    values: Mapping[str, float]

    def __getitem__(self, column: str) -> float:
        """The value of a numeric column; nan where there is none."""
        return self.values.get(column, math.nan)

    @property
    def shape(self) -> tuple[float, ...]:
        """The dimensions: the same for the same architecture."""
        return tuple(self[name] for name in DIMENSIONS)

    def architecture(self) -> MoEArchitecture | None:
        """The architecture, where the dimensions alone tell it: its count of FLOPs is the row's."""
        try:
            found = MoEArchitecture.from_dict({name: int(self[name]) for name in DIMENSIONS})
        except (InputError, ValueError, OverflowError):  # of a row that was edited, or has no dimensions
            return None
        return found if found.non_embedding.flops_per_token == self["flops_per_token"] else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A quantity at the largest budget: what the smaller budgets predicted, and what came out.

    Attributes:
        quantity: Its word.
        predicted, interval: The prediction with its 95 % interval, where it has one.
        band: The predicted near-optimal band, where it is an axis.
        found, found_interval: The outcome with its 95 % interval, where it has one.
        band_widths: How many widths of the band that was found the prediction is off, where it is an axis.
        pooled: Whether what was found leans on the runs of the smaller budgets too.
        trainings: How often the architecture was trained whose mean was found; 0 where it is a fit's.
    """

    quantity: str
    predicted: float
    interval: Interval | None
    band: Interval | None
    found: float
    found_interval: Interval | None
    band_widths: float | None
    pooled: bool = False
    trainings: int = 0

    @property
    def error(self) -> float:
        """Predicted over found, less 1."""
        return self.predicted / self.found - 1

    @property
    def consistent(self) -> bool | None:
        """Whether the two intervals meet; ``None`` where there is no predicted one."""
        if self.interval is None:
            return None
        low, high = self.found_interval or (self.found, self.found)
        return self.interval[0] <= high and low <= self.interval[1]


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a search.

    Attributes:
        folder: Where it lies.
        trials: The rows of `runs.csv`, in its order.
        laws: What was fitted; ``None`` where the search has not come so far.
        blueprint: The architecture for the target; ``None`` as above.
        held_out: The largest budget, predicted and found; empty as above.
        recorded: The loss predicted for that budget, as written down before its first trial, with its 95 % interval.
        score: How the complete trials of that budget were predicted: `rows`, `rmse_log`, `coverage`; empty as above.
    """

    folder: Path
    trials: tuple[Trial, ...] = ()
    laws: LadderLaws | None = None
    blueprint: Blueprint | None = None
    held_out: tuple[Comparison, ...] = ()
    recorded: tuple[float, Interval | None] | None = None
    score: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read what is there.

        Raises:
            InputError: Where the folder is not one of a search, or a file in it is not what its name says.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError("no such folder, expected one that `moe-optuna search` wrote", where=folder)
        if not any((folder / name).is_file() for name in FILES):
            raise InputError(f"not the folder of a search, expected {' or '.join(FILES)} in it", where=folder)
        trials = _trials(folder / "runs.csv")
        blueprint, path = None, folder / "laws.json"
        laws = checked_laws(path) if path.is_file() else None
        held_out: Mapping[str, Any] | None = laws.held_out if laws is not None else None
        if (folder / "blueprint.json").is_file():
            path = folder / "blueprint.json"
            blueprint = checked_blueprint(path)
            held_out = blueprint.held_out or held_out
        compared = _comparisons(held_out, path)
        score = {key: held_out.get(key) for key in ("rows", "rmse_log", "coverage")} if held_out else {}
        return cls(folder, trials, laws, blueprint, compared, _recorded(held_out, path), score)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state: ``complete``, ``pruned``, ``failed``."""
        return {state: sum(t.state == state for t in self.trials) for state in STATES}

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets trained so far, ascending."""
        return tuple(sorted({trial.compute for trial in self.trials}))

    @property
    def target(self) -> float | None:
        """The budget that the blueprint is for."""
        return None if self.blueprint is None else self.blueprint.compute

    @property
    def fits(self) -> tuple[FittedAxis, ...]:
        """The fits along the axes at each budget."""
        return () if self.laws is None else self.laws.axes

    @property
    def axes(self) -> tuple[tuple[int, str], ...]:
        """What was searched: (phase, axis)."""
        if self.fits:
            return tuple(dict.fromkeys((fit.phase, fit.axis) for fit in self.fits))
        return tuple((phase, axis) for phase, axis in SEARCHED if len({t[axis] for t in self.select(phase=phase)}) > 1)

    def fit(self, phase: int, axis: str, compute: float) -> FittedAxis | None:
        """The fit along an axis at a budget, where there is one."""
        key = (phase, axis)
        return next((f for f in self.fits if (f.phase, f.axis) == key and math.isclose(f.compute, compute)), None)

    def select(self, *, phase: int | None = None, compute: float | None = None) -> list[Trial]:
        """The trials that have a loss, of a phase and of a budget."""
        return [
            trial
            for trial in self.trials
            if math.isfinite(trial.loss)
            and phase in (None, trial.phase)
            and (compute is None or math.isclose(compute, trial.compute))
        ]

    def best(self, compute: float) -> Trial | None:
        """The complete trial of least loss at a budget."""
        complete = [trial for trial in self.select(compute=compute) if trial.state == "complete"]
        return min(complete, key=lambda trial: trial.loss, default=None)


def quantity(architecture: MoEArchitecture, name: str) -> float:
    """A dimension, a ratio or a count (non_embedding) of an architecture, by its word."""
    return float(getattr(architecture.non_embedding if name in COUNTS else architecture, name))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark at the beginning
    except OSError as error:
        raise InputError(error.strerror or "cannot be read", where=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", where=path) from None


def _pair(ends: Sequence[Any] | None) -> Interval | None:
    if ends is None:
        return None
    low, high = (_number_above(0.0, end) for end in ends)
    return low, high


def _number_above(least: float, value: Any) -> float:
    if not least < (number := float(value)) < MOST:
        raise ValueError(f"{value!r}, expected a number above {least}")
    return number


def _comparisons(data: Any, path: Path) -> tuple[Comparison, ...]:
    """The held-out budget, loss first."""
    if not data:
        return ()
    try:
        entries = {"loss": data["loss"], **data["axes"]} if data.get("loss") else data.get("axes", {})
        return tuple(
            Comparison(
                quantity=name,
                predicted=_number_above(0.0, each["predicted"]),
                interval=_pair(each["interval"]),
                band=_pair(each.get("band")),
                found=_number_above(0.0, each["found"]),
                found_interval=_pair(each["found_interval"]),
                band_widths=_number_above(-math.inf, off)
                if (off := each.get("error_in_band_widths")) is not None
                else None,
                pooled=bool(each.get("pooled")),
                trainings=trainings if (trainings := int(each.get("trainings", 0))) > 1 else 0,
            )
            for name, each in entries.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a prediction and its outcome ({error!r})", where=f"{path}: held_out") from None


def _recorded(data: Any, path: Path) -> tuple[float, Interval | None] | None:
    """What was written down of the held-out budget before its first trial: its least loss."""
    plan = (data or {}).get("recorded") or {}
    try:
        if plan.get("predicted_loss") is None:
            return None
        return _number_above(0.0, plan["predicted_loss"]), _pair(plan["intervals"].get("predicted_loss"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a prediction ({error!r})", where=f"{path}: held_out: recorded") from None


def _trials(path: Path) -> tuple[Trial, ...]:
    if not path.is_file():
        return ()
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), restkey="", strict=True)
    try:
        columns = reader.fieldnames or []
        if missing := [name for name in COLUMNS if name not in columns]:
            raise InputError(f"no column {', '.join(missing)}", where=path)
        return tuple(_trial(row, f"{path}: line {reader.line_num}") for row in reader)
    except csv.Error as error:
        raise InputError(f"not CSV ({error})", where=f"{path}: line {reader.line_num}") from None


def _trial(row: dict[str, Any], where: str) -> Trial:
    if "" in row or None in row.values():
        raise InputError("another number of fields than the header has", where=where)
    if row["state"] not in STATES:
        raise InputError(f"state {row['state']!r}, expected complete, pruned or failed", where=where)
    values = {name: _number(text, f"{where}: {name}") for name, text in row.items() if name not in TEXTS}
    if values["phase"] not in (0, 1, 2):
        raise InputError(f"{row['phase']!r}, expected 0, 1 or 2", where=f"{where}: phase")
    for name in ("trial", "compute"):
        if not math.isfinite(values[name]) or values[name] < (name == "compute"):
            raise InputError(f"{row[name]!r}, expected a positive number", where=f"{where}: {name}")
    if values["loss"] <= 0:
        raise InputError(f"{row['loss']!r}, expected a positive number", where=f"{where}: loss")
    return Trial(
        row["study"],
        int(values["trial"]),
        row["state"],
        int(values["phase"]),
        values["compute"],
        values["loss"],
        row.get("reason", ""),
        values,
    )


def _number(text: str, where: str) -> float:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if abs(value) > MOST:
        raise InputError(f"{text!r}, expected a finite number", where=where)
    return value
