"""One model of the loss across budgets: a scaling law as the mean, a Gaussian process on what it misses.

log loss(C, u) = mean(log C, w(u); theta) + g(log C, w(u)) + seed noise

theta has a normal prior and is linearised at its most probable value, so that its uncertainty is a further term of
the covariance (J S J'): prediction, fantasies and evidence are all exact Gaussian algebra, and far from the runs the
law's own uncertainty remains. Three means compete (`moe_optuna.laws._means`): the law, a quadratic, a constant. They
are mixed by how well they predict the budget asked about from the others, log p(asked | others); with one budget, by
their evidence. Others that make it less likely are dropped, so that a wrong law or a foreign parent costs a few trials
and no more.

Pruned runs enter with the final loss that their curve foretold and how surely it did, or as lower bounds of it (Tobit,
by expectation propagation); single runs far from all others are down-weighted, and so are bad runs of other budgets:
what is worth handing on is where those are good.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_optuna.errors import InputError
from moe_optuna.laws import _gp, _means
from moe_optuna.laws._component import TUNED_POINTS, Component
from moe_optuna.laws._field import Field
from moe_optuna.laws._gp import Array, Prior
from moe_optuna.laws._means import MeanName
from moe_optuna.laws._observations import Observations
from moe_optuna.laws.band import BAND, Band, Optimum, band_of_draws
from moe_optuna.laws.threads import one_thread

__all__ = ["Field", "NamedAxis", "Observations", "Surrogate"]

USUAL_SPREAD = 0.015
USUAL_DRIFT = 0.05
USUAL_NOISE = 1e-3  # relative sd of a run's loss over seeds, where no repeats tell it; known within a factor of e
DRAWS = 512
CAUTION = 0.25  # sd of a candidate's loss that count against it: of two that promise the same the better known wins
JOINT_CANDIDATES = 384
FOREIGN = 0.2  # of a run's log loss above the least of its budget: sd of what it is off by, seen from another budget
DROP_GAIN = 0.5  # of log density; where parents are of one law with the largest budget, it stays below -0.4
POLE = 289 / 9  # of N/Na with 8 of 288 experts and a shared one, the models of arXiv:2603.21862

MEANS: tuple[MeanName, ...] = ("law", "quadratic", "constant")
PREFERENCE = {"law": 0.0, "quadratic": -0.7, "constant": -1.4}  # log prior odds: what is known of the forms beforehand
NEGLIGIBLE = 0.02  # share of the best mean's weight below which a mean is left out


class NamedAxis(Protocol):
    """An axis that can say which values its unit coordinates stand for (a `moe_optuna.space` axis is one)."""

    @property
    def name(self) -> str: ...

    def from_unit(self, unit: NDArray[np.float64], /) -> ArrayLike: ...


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
        drifts: How far the law's optima usually move on each axis as log compute grows by one (p,), as sd of a prior
            about 0; `USUAL_DRIFT` by default.
        seed: For the draws behind `optimum` and `band`.

    Attributes:
        mean_: The mean that counts most: ``law``, ``quadratic`` or ``constant``.
        scores_: log p(budget asked about | others) of each mean.
        noise_: Relative sd of a run's loss over seeds, at the budget asked about.
        dropped_: Other budgets that were found to mislead.
    """

    def __init__(
        self,
        axes: Sequence[str | NamedAxis],
        *,
        pole: float = POLE,
        means: Sequence[MeanName] = MEANS,
        drifts: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in means if name not in MEANS]
        if unknown or not means:
            raise InputError(f"{unknown or 'none'}, expected some of {', '.join(MEANS)}", where="means")
        self.means = tuple(means)
        self.axes = tuple(axis if isinstance(axis, str) else axis.name for axis in axes)
        self.seed = seed
        self._drifts = np.full(len(axes), USUAL_DRIFT) if drifts is None else np.asarray(drifts, float)
        self._forms = tuple(_Form.of(axis, pole) for axis in axes)
        self._warm: dict[str, Array] = {}

    # ---- learning

    @one_thread
    def fit(
        self,
        observations: Observations,
        *,
        noise: float | None = None,
        wary: bool = True,
        compute: float | None = None,
    ) -> Surrogate:
        """Learn from all runs so far, of any budgets.

        A second call starts from what the first one learned.

        Args:
            noise: Relative sd of a run's loss over seeds where it is known; estimated by default.
            wary: Whether other budgets are believed only as far as they help with the one asked about: their bad runs
                count less (`FOREIGN`), and budgets that mislead are left out.
            compute: The budget asked about, FLOPs; by default, or without a run at it, the largest.

        Raises:
            InputError: Where there is no observation, their coordinates are not those of `axes`, or the noise is not
                positive.
        """
        if not len(observations):
            raise InputError("no runs, expected at least one", where="observations")
        if observations.coordinates.shape[1] != len(self.axes):
            found = observations.coordinates.shape[1]
            raise InputError(f"{found} columns, expected {len(self.axes)}: {', '.join(self.axes)}", where="coordinates")
        if noise is not None and not 0 < noise < np.inf:
            raise InputError(f"{noise!r}, expected a positive number", where="noise")
        observations = observations.distinct()
        told = observations.compute[~observations.censored]
        if compute is None or compute not in told:
            compute = float(max(told, default=observations.compute.max()))
        self.dropped_: tuple[float, ...] = ()
        self._learn(observations, noise, compute, wary)
        while wary and (misleading := self._misleading(observations, compute)):
            self.dropped_ += misleading
            observations = observations[~np.isin(observations.compute, misleading)]
            self._learn(observations, noise, compute, wary)
        best = max(self._mixture, key=lambda member: member[0])[1]
        self.mean_: MeanName = best.mean.name
        self.noise_ = float(np.sqrt(best.eta.noise_variance(np.array([np.log(compute) - self._reference]))[0]))
        return self

    def _learn(self, observations: Observations, noise: float | None, asked: float, wary: bool) -> None:
        self._reference = float(np.mean(np.log(np.unique(observations.compute))))
        h, w = self._inputs(observations.compute, observations.coordinates)
        y, censored = np.log(observations.loss), observations.censored
        spread, level = _spread_and_level(y, h, censored)
        prior = self._prior(spread, noise, observations)
        known, last = ~censored, observations.compute == asked
        vague = observations.vague
        if wary:
            vague = np.hypot(vague, np.where(last, 0.0, FOREIGN * _excess(y, h, censored)))
        ranges = np.array([form.range for form in self._forms])
        rows = self._tuning_rows(known, last)
        self._members: dict[MeanName, Component] = {}
        self.scores_: dict[MeanName, float] = {}
        for name in self.means:
            mean = _means.build(name, ranges, spread, level, self._drifts)
            start = self._warm.get(name, prior.mean)
            member = Component.learn(mean, h, w, y, censored, vague, prior, start, rows)
            self._warm[name] = member.eta.pack()
            self._members[name], self.scores_[name] = member, member.conditional(known & ~last, known & last)
        weights = np.exp([self.scores_[name] + PREFERENCE[name] - max(self.scores_.values()) for name in self.means])
        weights = np.where(weights < NEGLIGIBLE * weights.max(), 0.0, weights)
        shares = dict(zip(self.means, map(float, weights / weights.sum()), strict=True))
        self._mixture = [(share, self._members[name]) for name, share in shares.items() if share]

    def _prior(self, spread: float, noise: float | None, observations: Observations) -> Prior:
        guess = noise or observations.repeat_sd() or USUAL_NOISE
        amplitude = (np.log(0.3 * spread), 1.0)
        lengths = [(np.log(6.0), 0.7)] + [(np.log(0.5), 0.7)] * len(self.axes)
        seeds = (np.log(guess), 0.05 if noise else 1.0)
        table = np.array([amplitude, seeds, (0.0, 0.03 if noise else 0.1), *lengths])
        return Prior(table[:, 0], table[:, 1])

    def _tuning_rows(self, known: NDArray[np.bool_], last: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows that tune the hyperparameters: of those that are not censored at most TUNED_POINTS, half of them
        of the budget asked about, the others at random."""
        rows = np.flatnonzero(known) if known.any() else np.arange(len(known))
        if len(rows) <= TUNED_POINTS:
            return rows
        order = np.random.default_rng(self.seed).permutation(rows)
        chosen = order[last[order]][: TUNED_POINTS // 2]
        others = order[~np.isin(order, chosen)][: TUNED_POINTS - len(chosen)]
        return np.sort(np.concatenate([chosen, others]))

    def _misleading(self, observations: Observations, asked: float) -> tuple[float, ...]:
        """Other budgets without which the runs of the one asked about are far likelier."""
        compute, known = observations.compute, ~observations.censored
        other = compute != asked
        if not other.any() or (known & ~other).sum() < 4:
            return ()
        best = max(self._mixture, key=lambda member: member[0])[1]
        others = tuple(map(float, np.unique(compute[other])))
        options: list[tuple[float, ...]] = [(), *((budget,) for budget in others), others]
        scores = [best.conditional(known & other & ~np.isin(compute, o), known & ~other) for o in options]
        chosen = int(np.argmax(scores))
        return options[chosen] if scores[chosen] > scores[0] + DROP_GAIN else ()

    @one_thread
    def condition(self, observations: Observations) -> Surrogate:
        """This surrogate with further runs (or fantasies), everything learned held fixed: O(n^2)."""
        twin = copy.copy(self)
        h, w = self._inputs(observations.compute, observations.coordinates)
        y = np.log(observations.loss)
        twin._mixture = [
            (share, one.condition(h, w, y, observations.censored, observations.vague)) for share, one in self._mixture
        ]
        return twin

    # ---- answers

    @one_thread
    def predict(self, compute: ArrayLike, coordinates: ArrayLike) -> tuple[Array, Array]:
        """Loss without seed noise: mean and sd (m,), nats per token.

        Args:
            compute: FLOPs, one number or (m,).
            coordinates: Unit coordinates (m, p).
        """
        h, w = self._inputs(compute, np.asarray(coordinates, float).reshape(-1, len(self.axes)))
        shares = np.array([share for share, _ in self._mixture])[:, None]
        means, sds = map(np.array, zip(*(member.predict(h, w) for _, member in self._mixture), strict=True))
        mean = (shares * means).sum(0)
        loss = np.exp(mean)
        return loss, loss * np.sqrt((shares * (sds**2 + (means - mean) ** 2)).sum(0))

    def joint(self, compute: float, coordinates: ArrayLike) -> tuple[Array, Array]:
        """Loss without seed noise: mean (m,) and covariance (m, m), nats per token."""
        return self.field(compute, coordinates).joint()

    @one_thread
    def field(self, compute: float, coordinates: ArrayLike) -> Field:
        """The joint distribution behind `joint`, to which runs at these candidates can be added one by one."""
        h, w = self._inputs(compute, np.asarray(coordinates, float).reshape(-1, len(self.axes)))
        means, covariances = map(np.array, zip(*(member.joint(h, w) for _, member in self._mixture), strict=True))
        noise = np.concatenate([member.eta.noise_variance(h[:1]) for _, member in self._mixture])
        return Field(np.array([share for share, _ in self._mixture]), means, covariances, noise)

    def optimum(self, compute: float, candidates: ArrayLike, *, width: float = BAND) -> Optimum:
        """The candidate for which expected loss plus `CAUTION` times its sd is least, and how sure that is.

        Args:
            candidates: Unit coordinates (m, p).
            width: Share of loss above the least that counts as near-optimal.
        """
        candidates = np.asarray(candidates, float)
        mean, sd = self.predict(compute, candidates)
        best = int((mean + CAUTION * sd).argmin())
        likely = np.unique(np.append(np.argsort(mean - 2 * sd)[:JOINT_CANDIDATES], best))
        draws = self.draw(compute, candidates[likely])
        chosen = draws[:, np.searchsorted(likely, best)]
        in_band = float((chosen <= draws.min(1) * (1 + width)).mean())
        reach = float(np.exp(1.96 * sd[best] / mean[best]))
        span = (float(mean[best] / reach), float(mean[best] * reach))
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

    @one_thread
    def draw(self, compute: float, candidates: ArrayLike, draws: int = DRAWS) -> Array:
        """Joint draws of the loss without seed noise, (draws, m)."""
        h, w = self._inputs(compute, np.asarray(candidates, float).reshape(-1, len(self.axes)))
        rng = np.random.default_rng(self.seed)
        counts = rng.multinomial(draws, [share for share, _ in self._mixture])
        parts = []
        for count, (_, member) in zip(counts, self._mixture, strict=True):
            mean, covariance = member.joint(h, w)
            parts.append(mean + rng.standard_normal((count, len(mean))) @ _gp.cholesky(covariance).T)
        return np.exp(np.vstack(parts))

    def law(self) -> tuple[Array, Array, float]:
        """The law's coefficients (q,), their covariance (q, q), and the log of compute at which h = 0, whichever
        mean won; their meaning is that of `_means.law`."""
        if "law" not in self._members:
            raise InputError("the law is not among the means", where="means")
        return *self._members["law"].coefficients(), self._reference

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
        usual = {"compute_density": 2.4, "expansion_ratio": 2.2}.get(name, 0.0)  # ranges of t of usual searches
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


def _excess(y: Array, h: Array, censored: NDArray[np.bool_]) -> Array:
    """Log loss above the least of the same budget, (n,); 0 where that is not known."""
    excess = np.zeros_like(y)
    for budget in np.unique(h):
        here = h == budget
        excess[here] = y[here] - y[here & ~censored].min(initial=np.inf)
    return np.maximum(excess, 0.0, out=excess)


def _spread_and_level(y: Array, h: Array, censored: NDArray[np.bool_]) -> tuple[float, float]:
    """Robust sd of log loss within budgets, drawn towards USUAL_SPREAD where runs are few, and log loss at h = 0 by
    a line through the budgets' medians."""
    known = ~censored if not censored.all() else np.ones(len(y), bool)
    budgets = np.unique(h[known])
    medians = np.array([np.median(y[known & (h == b)]) for b in budgets])
    deviations = np.abs(y[known] - medians[np.searchsorted(budgets, h[known])])
    robust = max(1.48 * float(np.median(deviations)), 0.7 * float(np.quantile(deviations, 0.8)))
    freedom = len(deviations) - len(budgets)
    spread = float(np.sqrt((freedom * robust**2 + 4 * USUAL_SPREAD**2) / (freedom + 4)))
    level = float(medians.mean() if len(budgets) < 2 else np.polyfit(budgets, medians, 1)[1])
    return spread, level
