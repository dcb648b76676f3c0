"""One model of the loss across budgets: a scaling law as the mean, a Gaussian process on what it misses.

log loss(C, u) = mean(log C, w(u); theta) + g(log C, w(u)) + seed noise

theta has a normal prior and is linearised at its most probable value, so that its uncertainty is a further term of
the covariance (J S J'): prediction, fantasies and evidence are all exact Gaussian algebra, and far from the runs the
law's own uncertainty remains. Three means compete (`moe_optuna.laws._means`): the law, a quadratic, a constant. The
one that predicts the largest budget best from the smaller ones wins, by log p(largest | smaller); with one budget,
by its evidence. Smaller budgets that make the largest one less likely are dropped, so that a wrong law or a foreign
parent costs a few trials and no more.

Pruned runs enter as lower bounds of their final loss (Tobit, by expectation propagation), single runs far from all
others are down-weighted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular

from moe_optuna.errors import InputError
from moe_optuna.laws import _gp, _means
from moe_optuna.laws._gp import Array, Hyperparameters, Posterior, Prior
from moe_optuna.laws.band import BAND, Band, Optimum, band_of_draws

__all__ = ["NamedAxis", "Observations", "Surrogate"]

TUNED_POINTS = 240
DRAWS = 512
JOINT_CANDIDATES = 384
CHUNK = 16384
OUTLIER = 4.0
DROP_GAIN = 3.0
POLE = 289 / 9

MeanName = Literal["law", "quadratic", "constant"]
MEANS: tuple[MeanName, ...] = ("law", "quadratic", "constant")


class NamedAxis(Protocol):
    """An axis that can say which values its unit coordinates stand for (a `moe_optuna.space` axis is one)."""

    @property
    def name(self) -> str: ...

    def from_unit(self, unit: NDArray[np.float64], /) -> ArrayLike: ...


@dataclass(frozen=True)
class Observations:
    """Runs, as arrays over them.

    Attributes:
        compute: FLOPs (n,).
        coordinates: In the unit cube (n, p).
        loss: Nats per token (n,).
        censored: Whether `loss` is only a lower bound of the final loss, as of a pruned run (n,). The last value
            that a pruned run reported is no such bound, since losses fall: give the loss that it could not be
            expected to beat.
        group: The same number for runs of the same architecture (n,).

    Raises:
        InputError: Where shapes disagree, or a value is not finite, or a loss or budget is not positive.
    """

    compute: Array
    coordinates: Array
    loss: Array
    censored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    group: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        n = len(self.loss)
        filled = {
            "compute": np.broadcast_to(np.asarray(self.compute, float), (n,)),
            "coordinates": np.asarray(self.coordinates, float).reshape(n, -1),
            "loss": np.asarray(self.loss, float),
            "censored": np.asarray(self.censored, bool) if len(self.censored) else np.zeros(n, bool),
            "group": np.asarray(self.group) if len(self.group) else np.arange(n),
        }
        for name, values in filled.items():
            if len(values) != n:
                raise InputError(f"{len(values)} rows, expected {n}, one a loss", where=name)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError("holds a value that is not finite; leave failed runs out", where=name)
            object.__setattr__(self, name, values)
        for name in ("compute", "loss"):
            if n and filled[name].min() <= 0:
                raise InputError(f"{filled[name].min():g}, expected positive numbers", where=name)

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Observations:
        return Observations(
            self.compute[rows], self.coordinates[rows], self.loss[rows], self.censored[rows], self.group[rows]
        )


@dataclass(frozen=True)
class _Model:
    """A mean with everything that was learned for it.

    Attributes:
        theta, eta: Coefficients of the mean, and the kernel's hyperparameters.
        target, site, seeded: What each observation is taken for (see `_gp`), (n,).
        score: log p(largest budget | smaller ones).
    """

    mean: _means.Mean
    theta: Array
    eta: Hyperparameters
    target: Array
    site: Array
    seeded: Array
    score: float = 0.0

    def expected(self, h: Array, w: Array) -> tuple[Array, Array]:
        """Prior mean (n,), and the square root of the covariance that theta brings (n, q)."""
        values, jacobian = self.mean.evaluate(self.theta, h, w)
        return values + jacobian @ (self.mean.prior_mean - self.theta), jacobian * self.mean.prior_sd

    def noise(self, h: Array) -> Array:
        return self.seeded * self.eta.noise_variance(h) + self.site


class Surrogate:
    """The loss over log compute and a phase's unit coordinates, with uncertainty.

    Example::

        surrogate = Surrogate(("compute_density", "expansion_ratio")).fit(Observations(compute, coordinates, loss))
        mean, sd = surrogate.predict(1e20, candidates)
        surrogate.optimum(1e20, candidates).in_band

    Args:
        axes: The coordinates' names, or axes that have a name and `from_unit`, which lets the law use its exact form.
        pole: Where the loss over `expansion_ratio` has its upper pole, (n_experts + shared) / (top_k + shared).
        means: The means that compete.
        seed: For the draws behind `optimum` and `band`.

    Attributes:
        mean_: The mean that won: ``law``, ``quadratic`` or ``constant``.
        scores_: log p(largest budget | smaller ones) of each mean.
        noise_: Relative sd of a run's loss over seeds, at the largest budget.
        dropped_: Smaller budgets that were found to mislead.
    """

    def __init__(
        self,
        axes: Sequence[str | NamedAxis],
        *,
        pole: float = POLE,
        means: Sequence[MeanName] = MEANS,
        seed: int = 0,
    ) -> None:
        if unknown := [name for name in means if name not in MEANS] or not means:
            raise InputError(f"{unknown}, expected some of {', '.join(MEANS)}", where="means")
        self.means = tuple(means)
        self.axes = tuple(axis if isinstance(axis, str) else axis.name for axis in axes)
        self.seed = seed
        forms = [_Form.of(axis, pole) for axis in axes]
        self._forms = tuple(forms)
        self._warm: dict[str, Array] = {}

    # ---- learning

    def fit(self, observations: Observations, *, noise: float | None = None) -> Surrogate:
        """Learn from all runs so far, of any budgets.

        A second call starts from what the first one learned.

        Args:
            noise: Relative sd of a run's loss over seeds where it is known; estimated by default.

        Raises:
            InputError: Where there is no observation, or their coordinates are not those of `axes`.
        """
        if not len(observations):
            raise InputError("no runs, expected at least one", where="observations")
        if observations.coordinates.shape[1] != len(self.axes):
            found = observations.coordinates.shape[1]
            raise InputError(f"{found} columns, expected {len(self.axes)}: {', '.join(self.axes)}", where="coordinates")
        self.dropped_: tuple[float, ...] = ()
        self._learn(observations, noise)
        misleading = self._misleading()
        if misleading:
            self.dropped_ = misleading
            self._learn(observations[~np.isin(observations.compute, misleading)], noise)
        self.noise_ = float(np.sqrt(self._model.eta.noise_variance(self._h.max(keepdims=True))[0]))
        return self

    def _learn(self, observations: Observations, noise: float | None) -> None:
        self._data = observations
        self._reference = float(np.mean(np.log(np.unique(observations.compute))))
        self._h, self._w = self._inputs(observations.compute, observations.coordinates)
        y = np.log(observations.loss)
        spread, level = _spread_and_level(y, self._h, observations)
        prior = self._prior(spread, noise, observations)
        ranges = np.array([form.range for form in self._forms])
        build = {
            "law": lambda: _means.law(ranges, spread, level),
            "quadratic": lambda: _means.quadratic(len(self.axes), spread, level),
            "constant": lambda: _means.constant(spread, level),
        }
        models = {name: self._learn_mean(build[name](), y, prior, spread) for name in self.means}
        self.scores_ = {name: model.score for name, model in models.items()}
        self.mean_ = max(self.scores_, key=lambda name: self.scores_[name])
        self._model, self._law = models[self.mean_], models.get("law")
        self._condition_all()

    def _prior(self, spread: float, noise: float | None, observations: Observations) -> Prior:
        repeats = _repeat_sd(observations)
        guess = noise or repeats or max(0.3 * spread, 3e-4)
        amplitude = (np.log(0.3 * spread), 1.0)
        lengths = [(np.log(6.0), 0.7)] + [(np.log(0.5), 0.7)] * len(self.axes)
        seeds = (np.log(guess), 0.05 if noise else 1.0)
        table = np.array([amplitude, seeds, (0.0, 0.03 if noise else 0.1), *lengths])
        return Prior(table[:, 0], table[:, 1])

    def _learn_mean(self, mean: _means.Mean, y: Array, prior: Prior, spread: float) -> _Model:
        h, w, censored = self._h, self._w, self._data.censored
        X = np.column_stack([h, w])
        known = ~censored
        eta = Hyperparameters.unpack(self._warm.get(mean.name, prior.mean))
        model = _Model(mean, mean.prior_mean, eta, y.copy(), np.where(known, 0.0, 1e4 * spread**2), known.astype(float))
        theta: Array | None = None
        for sweep in range(2):
            kernel = model.eta.kernel(X, X)
            covariance = kernel + np.diag(model.noise(h))
            theta = mean.fit(h, w, model.target, covariance, theta)
            model = replace(model, theta=theta)
            rows = self._tuning_rows(known)
            expected, root = model.expected(h[rows], w[rows])
            eta = _gp.tune(
                X[rows], model.target[rows] - expected, root @ root.T, h[rows], model.seeded[rows], model.site[rows],
                prior, model.eta.pack(), 25 if sweep == 0 else 10,
            )  # fmt: skip
            model = replace(model, eta=eta)
            if not sweep:
                model = self._judge(model, X, y)
        self._warm[mean.name] = model.eta.pack()
        return replace(model, score=self._score(model, X))

    def _tuning_rows(self, known: NDArray[np.bool_]) -> NDArray[np.int64]:
        """At most TUNED_POINTS rows: all of the largest budget up to half of them, others at random."""
        rows = np.arange(len(known))
        if len(rows) <= TUNED_POINTS:
            return rows
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(rows)
        last = order[self._h[order] >= self._h.max() - 1e-9][: TUNED_POINTS // 2]
        others = order[~np.isin(order, last)][: TUNED_POINTS - len(last)]
        return np.sort(np.concatenate([last, others]))

    def _judge(self, model: _Model, X: Array, y: Array) -> _Model:
        """Sites for what is not an ordinary observation: censored runs, and runs far from where all others put
        them."""
        expected, root = model.expected(self._h, self._w)
        covariance = model.eta.kernel(X, X) + root @ root.T
        known, noise = ~self._data.censored, model.eta.noise_variance(self._h)
        site = np.zeros_like(y)
        posterior = Posterior.of((y - expected)[known], covariance[np.ix_(known, known)] + np.diag(noise[known]))
        residual, sd = posterior.leave_one_out()
        site[known] = np.where(np.abs(residual) > OUTLIER * sd, residual**2, 0.0)
        target, variance = _gp.censored_sites(y - expected, covariance, noise + site, self._data.censored)
        site[~known] = variance[~known]
        return replace(model, target=target + expected, site=site)

    def _score(self, model: _Model, X: Array) -> float:
        expected, root = model.expected(self._h, self._w)
        covariance = model.eta.kernel(X, X) + root @ root.T + np.diag(model.noise(self._h))
        return self._conditional(model.target - expected, covariance, self._h < self._h.max() - 1e-9)

    def _conditional(self, residual: Array, covariance: Array, given: NDArray[np.bool_]) -> float:
        """log p(the largest budget's runs | the `given` ones)."""
        kept = given | (self._h >= self._h.max() - 1e-9)
        return _gp.log_density(residual[kept], covariance[np.ix_(kept, kept)]) - _gp.log_density(
            residual[given], covariance[np.ix_(given, given)]
        )

    def _misleading(self) -> tuple[float, ...]:
        """Smaller budgets without which the largest one's runs are far likelier."""
        budgets = np.unique(self._data.compute)
        last = self._data.compute == budgets[-1]
        if len(budgets) < 2 or last.sum() < 4:
            return ()
        X = np.column_stack([self._h, self._w])
        expected, root = self._model.expected(self._h, self._w)
        covariance = self._model.eta.kernel(X, X) + root @ root.T + np.diag(self._model.noise(self._h))
        residual = self._model.target - expected
        options = [()] + [(float(budget),) for budget in budgets[:-1]] + [tuple(map(float, budgets[:-1]))]
        scores = [self._conditional(residual, covariance, ~last & ~np.isin(self._data.compute, o)) for o in options]
        best = int(np.argmax(scores))
        return options[best] if scores[best] > scores[0] + DROP_GAIN else ()

    def _condition_all(self) -> None:
        X = np.column_stack([self._h, self._w])
        expected, root = self._model.expected(self._h, self._w)
        covariance = self._model.eta.kernel(X, X) + root @ root.T + np.diag(self._model.noise(self._h))
        self._X, self._root = X, root
        self._posterior = Posterior.of(self._model.target - expected, covariance)

    def condition(self, observations: Observations) -> Surrogate:
        """This surrogate with further runs (or fantasies), everything learned held fixed: O(n^2)."""
        twin = copy.copy(self)
        h, w = self._inputs(observations.compute, observations.coordinates)
        X = np.column_stack([h, w])
        expected, root = self._model.expected(h, w)
        cross = self._model.eta.kernel(self._X, X) + self._root @ root.T
        own = self._model.eta.kernel(X, X) + root @ root.T
        noise = self._model.eta.noise_variance(h)
        residual = np.log(observations.loss) - expected
        if observations.censored.any():
            projected = self._posterior.project(cross)
            mean = projected.T @ self._posterior.white
            target, noise = _gp.censored_sites(
                residual - mean, own - projected.T @ projected, noise, observations.censored
            )
            residual = target + mean
        twin._X, twin._root = np.vstack([self._X, X]), np.vstack([self._root, root])
        twin._posterior = self._posterior.extend(residual, cross, own + np.diag(noise))
        return twin

    # ---- answers

    def predict(self, compute: ArrayLike, coordinates: ArrayLike) -> tuple[Array, Array]:
        """Loss without seed noise: mean and sd (m,), nats per token.

        Args:
            compute: FLOPs, one number or (m,).
            coordinates: Unit coordinates (m, p).
        """
        coordinates = np.asarray(coordinates, float).reshape(-1, len(self.axes))
        h, w = self._inputs(compute, coordinates)
        mean, sd = np.empty(len(h)), np.empty(len(h))
        for begin in range(0, len(h), CHUNK):
            part = slice(begin, begin + CHUNK)
            expected, root, projected = self._projected(h[part], w[part])
            mean[part] = expected + projected.T @ self._posterior.white
            prior = np.exp(2 * self._model.eta.log_amplitude) + (root * root).sum(1)
            sd[part] = np.sqrt(np.maximum(prior - (projected * projected).sum(0), 1e-14))
        loss = np.exp(mean)
        return loss, loss * sd

    def joint(self, compute: float, coordinates: ArrayLike) -> tuple[Array, Array]:
        """Loss without seed noise: mean (m,) and covariance (m, m), nats per token."""
        coordinates = np.asarray(coordinates, float).reshape(-1, len(self.axes))
        h, w = self._inputs(compute, coordinates)
        expected, root, projected = self._projected(h, w)
        X = np.column_stack([h, w])
        covariance = self._model.eta.kernel(X, X) + root @ root.T - projected.T @ projected
        loss = np.exp(expected + projected.T @ self._posterior.white)
        return loss, covariance * np.outer(loss, loss)

    def optimum(self, compute: float, candidates: ArrayLike, *, width: float = BAND) -> Optimum:
        """The candidate of the least expected loss, and how sure that is.

        Args:
            candidates: Unit coordinates (m, p).
            width: Share of loss above the least that counts as near-optimal.
        """
        candidates = np.asarray(candidates, float)
        mean, sd = self.predict(compute, candidates)
        best = int(mean.argmin())
        likely = np.unique(np.append(np.argsort(mean - 2 * sd)[:JOINT_CANDIDATES], best))
        draws = self.draw(compute, candidates[likely])
        chosen = draws[:, np.searchsorted(likely, best)]
        in_band = float((chosen <= draws.min(1) * (1 + width)).mean())
        span = (float(mean[best] - 1.96 * sd[best]), float(mean[best] + 1.96 * sd[best]))
        return Optimum(best, float(mean[best]), span, in_band, width)

    def band(self, compute: float, candidates: ArrayLike, axis: int, *, width: float = BAND) -> Band:
        """The near-optimal band of an axis in unit coordinates, the other axes at their best.

        Args:
            candidates: Unit coordinates (m, p).
            axis: Which coordinate.
        """
        candidates = np.asarray(candidates, float)
        mean, sd = self.predict(compute, candidates)
        chosen = _profile(candidates[:, axis], mean - sd)
        return band_of_draws(self.draw(compute, candidates[chosen]), candidates[chosen, axis], width)

    def draw(self, compute: float, candidates: Array, draws: int = DRAWS) -> Array:
        """Joint draws of the loss without seed noise, (draws, m)."""
        mean, covariance = self.joint(compute, candidates)
        normal = np.random.default_rng(self.seed).standard_normal((draws, len(mean)))
        return np.asarray(mean + normal @ _gp.cholesky(covariance).T)

    def in_band(self, compute: float, candidates: ArrayLike, *, width: float = BAND) -> Array:
        """Probability of each candidate (m,) to be within `width` of the least loss; 0 where it has no
        chance."""
        candidates = np.asarray(candidates, float)
        mean, sd = self.predict(compute, candidates)
        likely = np.argsort(mean - 2 * sd)[:JOINT_CANDIDATES]
        draws = self.draw(compute, candidates[likely])
        result = np.zeros(len(candidates))
        result[likely] = (draws <= draws.min(1, keepdims=True) * (1 + width)).mean(0)
        return result

    def level(self, compute: ArrayLike, coordinates: ArrayLike) -> tuple[Array, tuple[Array, Array]]:
        """Loss without seed noise with its 95 % interval, nats per token: (m,) and two (m,)."""
        mean, sd = self.predict(compute, coordinates)
        return mean, (mean * np.exp(-1.96 * sd / mean), mean * np.exp(1.96 * sd / mean))

    def law(self) -> tuple[Array, Array, float]:
        """The law's coefficients (q,), their covariance (q, q), and the log of compute at which h = 0, whichever
        mean won; their meaning is that of `_means.law`."""
        if self._law is None:
            raise InputError("the law is not among the means", where="means")
        model, X = self._law, np.column_stack([self._h, self._w])
        _, root = model.expected(self._h, self._w)
        jacobian = root / model.mean.prior_sd
        factor = _gp.cholesky(model.eta.kernel(X, X) + np.diag(model.noise(self._h)))
        white = solve_triangular(factor, jacobian, lower=True)
        information = white.T @ white + np.diag(model.mean.prior_sd**-2.0)
        return model.theta, np.linalg.inv(information), self._reference

    def _projected(self, h: Array, w: Array) -> tuple[Array, Array, Array]:
        expected, root = self._model.expected(h, w)
        cross = self._model.eta.kernel(self._X, np.column_stack([h, w])) + self._root @ root.T
        return expected, root, self._posterior.project(cross)

    def _inputs(self, compute: ArrayLike, coordinates: Array) -> tuple[Array, Array]:
        h = np.log(np.broadcast_to(np.asarray(compute, float), (len(coordinates),))) - self._reference
        w = np.column_stack([form.centred(column) for form, column in zip(self._forms, coordinates.T, strict=True)])
        return h, w


@dataclass(frozen=True)
class _Form:
    """How an axis enters the law: the range R of t over the axis, and t itself where the axis can tell its values.

    Attributes:
        knots, places: Unit coordinates and where they lie on t, scaled to [-1/2, 1/2].
    """

    range: float
    knots: Array
    places: Array

    @classmethod
    def of(cls, axis: str | NamedAxis, pole: float) -> _Form:
        name = axis if isinstance(axis, str) else axis.name
        knots = np.linspace(0, 1, 257)
        straight = knots - 0.5
        usual = {"compute_density": 2.4, "expansion_ratio": 2.2}.get(name, 0.0)
        if isinstance(axis, str) or not usual:
            return cls(usual, knots, straight)
        x = np.asarray(axis.from_unit(knots), float)
        with np.errstate(all="ignore"):
            t = np.log(x - 6) if name == "compute_density" else np.log((x - 1) / (pole - x))
        if not np.isfinite(t).all():
            return cls(usual, knots, straight)
        return cls(float(t[-1] - t[0]), knots, (t - t[0]) / (t[-1] - t[0]) - 0.5)

    def centred(self, unit: Array) -> Array:
        return np.asarray(np.interp(unit, self.knots, self.places))


def _profile(values: Array, losses: Array, bins: int = 48, each: int = 8) -> NDArray[np.int64]:
    """The candidates of the least loss in each bin of an axis: what a profile over the other axes needs."""
    span = values.max() - values.min()
    bin_of = np.minimum(((values - values.min()) / (span or 1.0) * bins).astype(int), bins - 1)
    order = np.lexsort((losses, bin_of))
    first = np.searchsorted(bin_of[order], bin_of[order])
    return np.asarray(order[np.arange(len(order)) - first < each])


def _spread_and_level(y: Array, h: Array, observations: Observations) -> tuple[float, float]:
    """Robust sd of log loss within budgets, and log loss at h = 0 by a line through the budgets' medians."""
    known = ~observations.censored if not observations.censored.all() else np.ones(len(y), bool)
    budgets = np.unique(h[known])
    medians = np.array([np.median(y[known & (h == b)]) for b in budgets])
    deviations = np.abs(y[known] - medians[np.searchsorted(budgets, h[known])])
    spread = max(1.48 * float(np.median(deviations)), 0.7 * float(np.quantile(deviations, 0.8)), 0.003)
    level = float(medians.mean() if len(budgets) < 2 else np.polyfit(budgets, medians, 1)[1])
    return spread, level


def _repeat_sd(observations: Observations) -> float | None:
    """Relative sd of repeated runs around their group's mean, or None with fewer than two repeats."""
    y = np.log(observations.loss)
    squares, freedom = 0.0, 0
    for group in np.unique(observations.group[~observations.censored]):
        member = y[(observations.group == group) & ~observations.censored]
        squares += float(((member - member.mean()) ** 2).sum())
        freedom += len(member) - 1
    return max(float(np.sqrt(squares / freedom)), 1e-4) if freedom >= 2 else None
