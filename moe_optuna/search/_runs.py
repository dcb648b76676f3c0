"""`runs.csv`: one row a trial, with the architecture, both countings and the triad that it was held to; of a pruned one
also the final loss that its curve foretells."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from moe_optuna.architecture import COUNTS, DIMENSIONS
from moe_optuna.files import write_whole
from moe_optuna.pruners import finished_curves, forecast
from moe_optuna.search._work import trained

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from moe_optuna.pruners import Run
    from moe_optuna.space import Phase

__all__ = ["COLUMNS", "Runs"]

COLUMNS = (
    "study", "trial", "state", "phase", "compute", "tokens", "loss", "bits_per_byte", "forecast", "forecast_sd",
    "seconds", "seed", *DIMENSIONS,
    *COUNTS, *(f"full_{name}" for name in COUNTS), "compute_density", "expansion_ratio", "width",
    *(f"triad_{name}" for name in COUNTS), "reason",
)  # fmt: skip
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Runs:
    """The finished trials of a search, as rows.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._studies: dict[str, tuple[Study, Phase]] = {}
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._foretold: dict[str, tuple[int, ...]] = {}

    def add(self, study: Study, phase: Phase) -> None:
        """Count a study in."""
        self._studies[study.study_name] = (study, phase)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, by study in the order in which they were added, then by trial."""
        for study, phase in self._studies.values():
            for trial in study.get_trials(deepcopy=False, states=tuple(_STATES)):
                key = (study.study_name, trial.number)
                if key not in self._rows and (trained(trial) or trial.state == TrialState.FAIL) and trial.params:
                    self._rows[key] = _row(study, phase, trial)
        self._foretell()
        order = {name: position for position, name in enumerate(self._studies)}
        return [self._rows[key] for key in sorted(self._rows, key=lambda key: (order[key[0]], key[1]))]

    def _foretell(self) -> None:
        """Give pruned trials the final loss that their curve foretells, in nats per token, and its relative sd: by the
        curves of their study and, as a search's pruner, of those before."""
        before: list[tuple[float, list[Run]]] = []
        for study, phase in self._studies.values():
            finished = finished_curves(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
            parents = [curves for _, curves in before]
            sisters = [curves for compute, curves in before if compute == phase.compute]
            pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
            known = len(pruned), len(finished), *map(len, parents)
            before.append((phase.compute, finished))
            if self._foretold.get(study.study_name) == known:  # nothing new, as in all studies but the last
                continue
            self._foretold[study.study_name] = known
            for trial in pruned:
                ahead = forecast(trial.intermediate_values, finished, parents, sisters)
                if ahead is not None and (row := self._rows.get((study.study_name, trial.number))) is not None:
                    row |= {"forecast": ahead.loss, "forecast_sd": ahead.sd}

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        states = [row["state"] for row in self.rows]
        return {state: states.count(state) for state in _STATES.values()}

    def columns(self) -> dict[str, np.ndarray]:
        """The rows as one array a column: strings for ``study``, ``state`` and ``reason``, else float64 with nan where
        empty."""
        rows = self.rows
        return {
            name: np.array([row[name] for row in rows])
            if name in ("study", "state", "reason")
            else np.array([np.nan if row[name] == "" else float(row[name]) for row in rows])
            for name in COLUMNS
        }

    def write(self) -> None:
        """Write the file anew.

        Raises:
            OSError: Where it could not be written; the old one is as it was.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self._path, text.getvalue())


def _row(study: Study, phase: Phase, trial: FrozenTrial) -> dict[str, Any]:
    index = phase.index(trial.params)
    assert index is not None, f"{study.study_name}, trial {trial.number}: parameters that no architecture has"
    architecture, triad = phase.lattice[index], phase.triad_of(index)
    coordinates = dict(zip((axis.name for axis in phase.axes), phase.coordinates[index], strict=True))
    attributes = trial.user_attrs
    row: dict[str, Any] = {
        "study": study.study_name,
        "trial": trial.number,
        "state": _STATES[trial.state],
        "phase": phase.number,
        "compute": phase.compute,
        "tokens": attributes.get("tokens", ""),
        "loss": trial.value if trial.value is not None else "",
        "bits_per_byte": attributes.get("bits_per_byte", ""),
        "forecast": "",
        "forecast_sd": "",
        "seconds": attributes.get("seconds", ""),
        "seed": attributes.get("seed", ""),
        "compute_density": architecture.compute_density,
        "expansion_ratio": architecture.expansion_ratio,
        "width": float(coordinates["width"]) if "width" in coordinates else "",
        "reason": attributes.get("reason", ""),
    }
    row |= {name: getattr(architecture, name) for name in DIMENSIONS}
    for name in COUNTS:
        row[name] = getattr(architecture.non_embedding, name)
        row[f"full_{name}"] = getattr(architecture.full, name)
        row[f"triad_{name}"] = getattr(triad, name)
    return row
