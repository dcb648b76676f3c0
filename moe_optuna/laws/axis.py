"""The loss along one axis at one budget: the three forms of arXiv:2603.21862, their optimum and their near-optimal
band.

`pole_linear`
    ``a / (x - 6) + b x + c`` for compute density M / Na, which is above 6.
`two_pole`
    ``a / (x - 1) + b / (pole - x) + c`` for the expansion ratio N / Na; pole = (n_experts + shared) / (top_k +
    shared).
`quadratic_log`
    ``a log(x)^2 + b log(x) + c`` for widths, counts and FLOPs per token.

All are linear in (a, b, c), so the fit is a robust least-squares problem with an exact answer and no start to
choose. In t = log(x - 6), logit((x - 1) / (pole - 1)) or log x each is a convex curve over t: ``2 sqrt(a b') (cosh(t
- t_opt) - 1)`` or a parabola above the least loss, which gives optimum and band in closed form.

Several axes that varied together are fitted together, additively. Intervals come from draws of the coefficients from
their Student distribution, which is right also for six runs, where resampling runs is not. A draw whose curve has no
inner minimum puts its optimum at an end of the searched range: where the runs do not pin an optimum, its interval is
the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from moe_optuna.errors import InputError, whole_number
from moe_optuna.laws.band import BAND, Band, interval

__all__ = ["AxisFit", "AxisForm", "FormName", "fit_axes", "fit_axis"]

Array = NDArray[np.float64]
FormName = Literal["pole_linear", "two_pole", "quadratic_log"]
LOWER_POLE = {"pole_linear": 6.0, "two_pole": 1.0, "quadratic_log": 0.0}
"""What x is above, by form: M/Na is above 6, N/Na above 1."""
_AT_LEAST_0 = {"pole_linear": (True, True), "two_pole": (True, True), "quadratic_log": (True, False)}
"""Whether a and b are at least 0, by form, as a curve with an inner minimum has them."""
HUBER = 2.0  # residual sds from which a run counts less
NOISE_FREEDOM = 10  # degrees of freedom that a known noise counts as
GRID = 257  # points over t on which a band's edges are looked for
MARGIN = 0.25  # of the searched range of t, by which optimum and band may lie beyond it


@dataclass(frozen=True)
class AxisForm:
    """One of the three forms over an axis.

    Attributes:
        name: Which.
        pole: Upper pole of `two_pole`.
    """

    name: FormName
    pole: float = np.inf

    def __post_init__(self) -> None:
        if self.name not in LOWER_POLE:
            raise InputError(f"{self.name!r}, expected one of {', '.join(LOWER_POLE)}", where="form")
        if self.name == "two_pole" and not (np.isfinite(self.pole) and self.pole > 1):
            raise InputError(f"{self.pole!r}, expected a finite number above 1", where="pole")

    def basis(self, x: Array) -> Array:
        """The columns that a and b multiply, (n, 2)."""
        if self.name == "pole_linear":
            return np.column_stack([1 / (x - 6), x])
        if self.name == "two_pole":
            return np.column_stack([1 / (x - 1), 1 / (self.pole - x)])
        return np.column_stack([np.log(x) ** 2, np.log(x)])

    def t(self, x: ArrayLike) -> Array:
        """The coordinate in which the curve is symmetric around its optimum; not finite at a pole, NaN beyond."""
        x = np.asarray(x, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.name == "two_pole":
                return np.asarray(np.log((x - 1) / (self.pole - x)))
            return np.asarray(np.log(x - LOWER_POLE[self.name]))

    def x(self, t: ArrayLike) -> Array:
        """The inverse of `t`."""
        t = np.asarray(t, float)
        if self.name == "two_pole":
            return np.asarray(1 + (self.pole - 1) * expit(t))
        return np.asarray(np.exp(t) + LOWER_POLE[self.name])

    def optimum_t(self, a: Array, b: Array) -> Array:
        """t of the inner minimum for coefficients a, b (s,); NaN where there is none."""
        with np.errstate(all="ignore"):
            if self.name == "quadratic_log":
                return np.where(a > 0, -b / (2 * a), np.nan)
            return np.where((a > 0) & (b > 0), 0.5 * np.log(a / b), np.nan)

    def check(self, x: Array, where: object) -> None:
        """Raises InputError where a value is not inside the form's domain."""
        low, high = LOWER_POLE[self.name], self.pole if self.name == "two_pole" else np.inf
        bad = x[~((x > low) & (x < high) & np.isfinite(x))]
        if len(bad):
            upper = f" and below {high:g}" if np.isfinite(high) else ""
            raise InputError(f"{bad[0]:g}, expected values above {low:g}{upper}", where=where)


@dataclass(frozen=True)
class AxisFit:
    """The fitted curve of one axis.

    Attributes:
        form: The form and its pole.
        coefficients: a, b, c; the curve ``a basis_1 + b basis_2 + c`` has the other axes of the fit at their best.
        range: The searched values, lowest and highest, and a quarter more on each side; optimum and band stay inside.
        optimum, interval: Where the loss is least, and its 95 % interval.
        loss, loss_interval: The least loss, nats per token, and its 95 % interval.
        noise: Relative sd of a run around the fit.
        noise_width: The smallest relative excess of loss that these runs can tell from none, at least `BAND`: 1.96
            standard errors of a fitted loss.
        points: Runs in the fit.
        draws: Draws of the coefficients, (s, 3).
    """

    form: AxisForm
    coefficients: Mapping[str, float]
    range: tuple[float, float]
    optimum: float
    interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    noise: float
    noise_width: float
    points: int
    draws: Array = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        form: AxisForm,
        coefficients: Array,
        bounds: tuple[float, float],
        *,
        noise: float,
        points: int,
        error: float,
    ) -> AxisFit:
        """The fit with the coefficients (a, b, c) in the first row and their draws in the others, (1 + s, 3).

        Args:
            error: Standard error of a fitted loss, nats per token.
        """
        best, draws = coefficients[:1], coefficients[1:]
        optima = _optima(form, coefficients, bounds)
        losses = _least(form, coefficients, bounds) + coefficients[:, 2]
        return cls(
            form=form,
            coefficients=dict(zip("abc", map(float, best[0]), strict=True)),
            range=bounds,
            optimum=float(optima[0]),
            interval=interval(optima[1:]),
            loss=float(losses[0]),
            loss_interval=interval(losses[1:]),
            noise=noise,
            noise_width=max(BAND, 1.96 * error / float(losses[0])),
            points=points,
            draws=draws,
        )

    def predict(self, x: ArrayLike) -> Array:
        """Loss along the axis, nats per token."""
        x = np.asarray(x, float)
        columns = self.form.basis(x.reshape(-1)) @ np.array([self.coefficients["a"], self.coefficients["b"]])
        return np.asarray((columns + self.coefficients["c"]).reshape(x.shape))

    def band(self, width: float = BAND) -> Band:
        """Values whose loss is within `width` of the least, inside the searched range, with 95 % intervals of both
        edges.
        """
        low, high = self.edges(width)
        ours = np.array([[self.coefficients[name] for name in "abc"]])
        own_low, own_high = _edges(self.form, ours, self.range, width)
        return Band(float(own_low[0]), float(own_high[0]), interval(low), interval(high), width)

    def edges(self, width: float = BAND) -> tuple[Array, Array]:
        """Low and high edge of the band for each draw, (s,) each."""
        return _edges(self.form, self.draws, self.range, width)


def fit_axis(
    form: FormName | AxisForm,
    x: ArrayLike,
    loss: ArrayLike,
    *,
    pole: float = np.inf,
    noise: float | None = None,
    draws: int = 400,
    seed: int = 0,
) -> AxisFit:
    """Fit one axis at one budget.

    Args:
        form: `pole_linear`, `two_pole` or `quadratic_log`.
        x: Values of the axis (n,).
        loss: Nats per token (n,).
        pole: Upper pole of `two_pole`.
        noise: Relative sd of a run over seeds, where repeats told; it counts as 10 further degrees of freedom.
        draws, seed: For the intervals.

    Raises:
        InputError: On fewer than four runs, fewer than three different values, values outside the form's domain, a
            negative noise, or no draw.
    """
    chosen = form if isinstance(form, AxisForm) else AxisForm(form, pole)
    return fit_axes({"x": chosen}, {"x": x}, loss, noise=noise, draws=draws, seed=seed)["x"]


def fit_axes(
    forms: Mapping[str, AxisForm],
    columns: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    noise: float | None = None,
    draws: int = 400,
    seed: int = 0,
) -> dict[str, AxisFit]:
    """Fit axes that varied together, as a sum of their forms; arguments as of `fit_axis`, by name of the axis."""
    y = np.asarray(loss, float)
    x = {name: np.asarray(columns[name], float) for name in forms}
    if not (len(y) and np.isfinite(y).all() and (y > 0).all()):
        raise InputError("expected positive finite numbers, at least one", where="loss")
    if noise is not None and not 0 <= noise < np.inf:
        raise InputError(f"{noise!r}, expected a number of at least 0", where="noise")
    draws = whole_number(draws, "draws")
    for name, form in forms.items():
        if x[name].shape != y.shape:
            raise InputError(f"{len(x[name])} rows, expected {len(y)}, one a loss", where=name)
        form.check(x[name], name)
        if len(np.unique(x[name])) < 3:
            raise InputError(f"{len(np.unique(x[name]))} different values, expected at least 3", where=name)
    coefficients = 1 + 2 * len(forms)
    if len(y) <= coefficients:
        raise InputError(f"{len(y)} runs, expected at least {coefficients + 1}", where="loss")

    ranges = {name: _range(form, x[name]) for name, form in forms.items()}
    design = np.column_stack([form.basis(x[name]) for name, form in forms.items()] + [np.ones_like(y)])
    physical = np.concatenate([_AT_LEAST_0[form.name] for form in forms.values()] + [[False]])
    best, sampled, sd, error = _regress(design, y, physical, noise, draws, np.random.default_rng(seed))

    table = np.vstack([best, sampled])
    pairs = {name: table[:, 2 * i : 2 * i + 2] for i, name in enumerate(forms)}
    least = {name: _least(form, pairs[name], ranges[name]) for name, form in forms.items()}
    total = table[:, -1] + np.sum(list(least.values()), axis=0)
    return {
        name: AxisFit.of(
            form,
            np.column_stack([pairs[name], total - least[name]]),
            ranges[name],
            noise=sd / float(np.median(y)),
            points=len(y),
            error=error,
        )
        for name, form in forms.items()
    }


def _range(form: AxisForm, x: Array) -> tuple[float, float]:
    """The searched values, widened by MARGIN of their range of t at both ends."""
    t = form.t(np.array([x.min(), x.max()]))
    low, high = form.x(t + MARGIN * (t[1] - t[0]) * np.array([-1.0, 1.0]))
    return float(low), float(high)


def _regress(
    design: Array,
    y: Array,
    physical: NDArray[np.bool_],
    noise: float | None,
    draws: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, float, float]:
    """Huber regression: coefficients (k,), draws of them (s, k), residual sd, and the typical standard error of a
    fitted value.
    """
    scale = np.abs(design).max(0)
    X = design / scale
    freedom = len(y) - X.shape[1]
    weight = np.ones_like(y)
    for _ in range(30):
        root = np.sqrt(weight)
        coefficients = np.linalg.lstsq(X * root[:, None], y * root, rcond=None)[0]
        residual = np.abs(y - X @ coefficients)
        sd = 1.48 * float(np.median(residual)) * np.sqrt(len(y) / freedom) + 1e-12 * float(np.abs(y).max())
        before, weight = weight, np.minimum(1.0, HUBER * sd / np.maximum(residual, 1e-300))
        if np.abs(weight - before).max() < 1e-6:
            break
    # the variance of Huber's estimator (Huber and Ronchetti, Robust Statistics, eq. 7.81)
    variance = float(((weight * residual) ** 2).sum() / freedom / np.mean(weight == 1) ** 2)
    if noise is not None:
        known = (noise * float(np.median(y))) ** 2
        variance = (freedom * variance + NOISE_FREEDOM * known) / (freedom + NOISE_FREEDOM)
        freedom += NOISE_FREEDOM
    covariance = variance * np.linalg.pinv(X.T @ X, hermitian=True)
    normal = rng.standard_normal((draws, len(coefficients))) @ _root(covariance).T
    student = normal / np.sqrt(rng.chisquare(freedom, draws) / freedom)[:, None]
    error = float(np.sqrt(np.mean(np.einsum("ij,jk,ik->i", X, covariance, X))))
    everything = np.vstack([coefficients, coefficients + student])
    for _ in range(3):  # what lies outside the physical region moves to its border, the others as their covariance says
        for i in np.flatnonzero(physical):
            everything -= np.outer(np.minimum(everything[:, i], 0) / covariance[i, i], covariance[i])
    everything[:, physical] = np.maximum(everything[:, physical], 0)
    everything /= scale
    return everything[0], everything[1:], float(np.sqrt(variance)), error


def _root(covariance: Array) -> Array:
    """A square root of a covariance that may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _optima(form: AxisForm, coefficients: Array, bounds: tuple[float, float]) -> Array:
    """Where each curve (s, 2 or 3) is least inside the bounds, (s,)."""
    t = np.clip(form.optimum_t(coefficients[:, 0], coefficients[:, 1]), *form.t(bounds))
    inner = form.x(t)
    ends = form.basis(np.array(bounds)) @ coefficients[:, :2].T  # (2, s)
    edge = np.where(ends[0] <= ends[1], bounds[0], bounds[1])
    return np.where(np.isnan(t), edge, np.clip(inner, *bounds))


def _least(form: AxisForm, coefficients: Array, bounds: tuple[float, float]) -> Array:
    """The least of ``a basis_1 + b basis_2`` inside the bounds for each (s, 2), (s,)."""
    return np.asarray((form.basis(_optima(form, coefficients, bounds)) * coefficients[:, :2]).sum(1))


def _edges(form: AxisForm, coefficients: Array, bounds: tuple[float, float], width: float) -> tuple[Array, Array]:
    """Both edges of the band of each curve (s, 3): on a grid over t, the crossings interpolated."""
    t = np.linspace(form.t(bounds[0]), form.t(bounds[1]), GRID)
    curve = coefficients[:, :2] @ form.basis(np.clip(form.x(t), *bounds)).T + coefficients[:, 2:]  # (s, g)
    least = _least(form, coefficients, bounds) + coefficients[:, 2]
    excess = curve - (least + width * np.abs(least))[:, None]
    at = form.t(_optima(form, coefficients, bounds))
    return form.x(_crossing(t, excess, at, -1)), form.x(_crossing(t, excess, at, 1))


def _crossing(t: Array, excess: Array, start: Array, direction: Literal[-1, 1]) -> Array:
    """The first t in a direction from `start` (s,) at which `excess` (s, g) turns positive; the end where it does
    not.
    """
    if direction == -1:
        return -_crossing(-t[::-1], excess[:, ::-1], -start, 1)
    beyond = (excess > 0) & (t > start[:, None])
    index = np.where(beyond.any(1), beyond.argmax(1), len(t))
    inner = np.clip(index, 1, len(t) - 1)
    rows = np.arange(len(excess))
    low, high = excess[rows, inner - 1], excess[rows, inner]
    with np.errstate(all="ignore"):
        share = np.where(low < 0, -low / (high - low), 0.0)
    crossed = t[inner - 1] + share * (t[inner] - t[inner - 1])
    return np.asarray(np.where(index < len(t), np.maximum(crossed, start), t[-1]))
