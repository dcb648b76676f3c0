"""What the form of a law is: formula, columns, coefficients, physical region; values and analytic gradients.

A form is a value: it holds no data and no coefficients.

Search coordinates. A fit does not search the coefficients as printed: the amplitude of ``A / N^alpha`` at N = 1 is an
extrapolation over nine decades and correlates with alpha almost perfectly. It searches *centred* coordinates, in which
an amplitude is the logarithm of its term at the geometric mean of the runs, as a share of the least loss. The map
from centred coordinates to those of the formula is affine, ``q = T phi + t``, so that regions and starting points
mean the same for runs of 1e12 and of 1e24 FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from moe_optuna.errors import InputError
from moe_optuna.laws._formulas import Answer, Array

__all__ = ["Features", "Form", "Parameter"]

Features = tuple[Array, ...]
Kind = Literal["positive", "negative", "floor", "real"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One coefficient of a form.

    Attributes:
        name: As in the paper, in ASCII.
        low, high: Physical region of its centred coordinate.
        kind: ``positive`` and ``negative`` coefficients are searched by the logarithm of their magnitude, a ``floor``
            (at least 0, in units of the target) as a share of the least target, ``real`` ones as they are.
        starts: Range of the starting points, inside the region; the whole region unless given.
    """

    name: str
    low: float
    high: float
    kind: Kind = "positive"
    starts: tuple[float, float] | None = None

    def coordinate(self, coefficient: Array) -> Array:
        """The formula's coordinate of a coefficient."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "positive":
                return np.log(coefficient)
            return np.log(-coefficient) if self.kind == "negative" else coefficient

    def coefficient(self, coordinate: Array) -> Array:
        """The inverse of `coordinate`."""
        if self.kind == "positive":
            return np.exp(np.minimum(coordinate, 700.0))
        return -np.exp(np.minimum(coordinate, 700.0)) if self.kind == "negative" else coordinate


@dataclass(frozen=True)
class Form:
    """The form of a law.

    Attributes:
        name: Its name on the command line.
        formula: Its text.
        inputs: Columns that it reads, in the order of positional arguments.
        parameters: Its coefficients.
        source: Where it stands.
        features: From the inputs ``(n,)`` to what `model` takes of a run, mostly their logarithms.
        model: The log of the law and its partial derivatives, from features and coordinates (`_formulas`).
        centring: From the runs' features to what T and t of `centre` have beside ones on the diagonal, as
            ``{(row, column): value}`` by names of coefficients. In column ``"loss"`` the value times the log of the
            least target is added to the row's t, in column ``""`` the value itself.
        scale: Inputs whose product orders runs by size: the largest are held out to score a fit.
        target: The column that it gives.
        conventions: What the columns and symbols mean, where that is easy to get wrong.
        delta: Threshold of Huber's loss that suits its data, in log units.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    source: str
    features: Callable[..., Features]
    model: Callable[..., Answer]
    centring: Callable[[Features], Mapping[tuple[str, str], float]]
    scale: tuple[str, ...]
    target: str = "loss"
    conventions: str = ""
    delta: float = 1e-3

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def columns(self) -> tuple[str, ...]:
        """What a table of runs must hold."""
        return (*self.inputs, self.target)

    def read(self, columns: Mapping[str, ArrayLike]) -> Features:
        """The features ``(n,)`` of the model out of columns that broadcast.

        Raises:
            InputError: Where a column is missing.
        """
        if missing := [name for name in self.inputs if name not in columns]:
            raise InputError(f"missing {', '.join(missing)}; it needs {', '.join(self.inputs)}", where=self.name)
        arrays = np.broadcast_arrays(*(np.asarray(columns[name], dtype=float) for name in self.inputs))
        return self.features(*(array.ravel() for array in arrays))

    def coordinates(self, coefficients: Mapping[str, ArrayLike]) -> Array:
        """The formula's coordinates ``(s, p)`` of s sets of coefficients (or of one).

        Raises:
            InputError: Where a coefficient is missing.
        """
        if missing := [name for name in self.names if name not in coefficients]:
            raise InputError(f"missing coefficients {', '.join(missing)}", where=self.name)
        values = [p.coordinate(np.atleast_1d(np.asarray(coefficients[p.name], dtype=float))) for p in self.parameters]
        return np.stack(np.broadcast_arrays(*values), axis=1)

    def coefficients(self, coordinates: Array) -> Array:
        """The inverse of `coordinates`: ``(s, p)`` coefficients in the order of `names`."""
        return np.stack([p.coefficient(coordinates[:, i]) for i, p in enumerate(self.parameters)], axis=1)

    def log_model(self, features: Features, coordinates: Array) -> Answer:
        """Log of the law ``(s, n)`` at the formula's coordinates ``(s, p)``, with its p partial derivatives."""
        return self.model(*features, *(coordinates[:, i : i + 1] for i in range(len(self.parameters))))

    def predict(self, columns: Mapping[str, ArrayLike], coefficients: Mapping[str, float]) -> Array:
        """The law's value, in the shape that the columns broadcast to."""
        shape = np.broadcast_shapes(*(np.shape(columns[name]) for name in self.inputs if name in columns))
        value, _ = self.log_model(self.read(columns), self.coordinates(coefficients))
        return np.asarray(np.exp(value[0]).reshape(shape))

    def centre(self, features: Features, least: float) -> tuple[Array, Array]:
        """The map ``q = T phi + t`` from centred coordinates to the formula's.

        Args:
            features: Of the runs.
            least: The least target among the runs, the unit of amplitudes and floors.

        Returns:
            T ``(p, p)`` and t ``(p,)``.
        """
        index = {name: i for i, name in enumerate(self.names)}
        matrix, offset = np.eye(len(index)), np.zeros(len(index))
        for (row, column), value in self.centring(features).items():
            if column == "loss":
                offset[index[row]] += value * np.log(least)
            elif column == "":
                offset[index[row]] += value
            else:
                matrix[index[row], index[column]] += value
        for i, parameter in enumerate(self.parameters):
            if parameter.kind == "floor":
                matrix[i, i] = least
        return matrix, offset

    @property
    def region(self) -> tuple[Array, Array]:
        """Lower and upper bounds ``(p,)`` of the centred coordinates."""
        return np.array([p.low for p in self.parameters]), np.array([p.high for p in self.parameters])

    def starts(self, count: int) -> Array:
        """Starting points ``(count, p)`` in centred coordinates: a Latin hypercube, always the same."""
        low, high = np.array([p.starts or (p.low, p.high) for p in self.parameters]).T
        rng = np.random.default_rng(0)
        strata = np.stack([rng.permutation(count) for _ in low], axis=1)
        return np.asarray(low + (high - low) * (strata + rng.random(strata.shape)) / count)
