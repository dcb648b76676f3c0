"""One member of the surrogate's mixture: a parametric mean, a Gaussian process on its residuals, learned and
conditioned.

Inputs are h (n,), the centred log of compute, and w (n, p), the centred coordinates; targets are log losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from moe_optuna.laws import _gp
from moe_optuna.laws._gp import Array, Hyperparameters, Posterior, Prior
from moe_optuna.laws._means import Mean

Mask = NDArray[np.bool_]

TUNED_POINTS = 240  # observations at most that tune the hyperparameters: the time goes with the cube of their number
OUTLIER = 4.0  # standard deviations from where all others put a run, beyond which it counts with a noise of its own
CHUNK = 2048  # candidates whose covariances stay in cache


@dataclass(frozen=True)
class Component:
    """A mean with everything that was learned for it.

    Attributes:
        theta: Coefficients of the mean (q,).
        eta: Hyperparameters of kernel and noise.
        h, w: Inputs of the observations, (n,) and (n, p).
        target, site, seeded: What each observation is taken for (see `_gp`), (n,) each.
        posterior: The observations, conditioned on.
    """

    mean: Mean
    theta: Array
    eta: Hyperparameters
    h: Array
    w: Array
    target: Array
    site: Array
    seeded: Array
    posterior: Posterior

    @classmethod
    def learn(
        cls,
        mean: Mean,
        h: Array,
        w: Array,
        y: Array,
        censored: Mask,
        vague: Array,
        prior: Prior,
        start: Array,
        rows: NDArray[np.int64],
    ) -> Component:
        """Coefficients and hyperparameters of the largest posterior density, in turn, twice: what is no ordinary
        observation is judged by what the first time gave, and changes the second.

        Args:
            y: Log losses, or their bounds, (n,).
            censored: Where they are bounds, (n,).
            vague: Sd of what each target is off beside seed noise, (n,).
            start: Hyperparameters to begin with.
            rows: The observations that tune the hyperparameters; no censored ones, whose sites depend on them,
                where there are others.
        """
        wide = 1e4 * float(np.exp(2 * prior.mean[0]))
        component = cls(
            mean, mean.prior_mean, Hyperparameters.unpack(start), h, w, y,
            np.where(censored, wide, vague**2), (~censored).astype(float), Posterior(np.zeros((0, 0)), np.zeros(0)),
        )  # fmt: skip
        for sweep in range(2):
            covariance = component.kernel(h, w) + np.diag(component.noise)
            begin = component.theta if sweep else None
            component = replace(component, theta=mean.fit(h, w, component.target, covariance, begin))
            expected, root = component.expected(h[rows], w[rows])
            X = np.column_stack([h, w])[rows]
            eta = _gp.tune(
                X, component.target[rows] - expected, root @ root.T, h[rows], component.seeded[rows],
                component.site[rows], prior, component.eta.pack(), 10 if sweep else 25,
            )  # fmt: skip
            component = replace(component, eta=eta)
            if not sweep:
                component = component._judge(y, censored, vague)
        expected, covariance = component._joint_prior()
        return replace(component, posterior=Posterior.of(component.target - expected, covariance))

    def _judge(self, y: Array, censored: Mask, vague: Array) -> Component:
        """Sites for what is no ordinary observation: censored runs, and runs far from where all others put them."""
        expected, root = self.expected(self.h, self.w)
        covariance = self.kernel(self.h, self.w) + root @ root.T
        known, noise, site = ~censored, self.eta.noise_variance(self.h), vague**2
        posterior = Posterior.of(
            (y - expected)[known], covariance[np.ix_(known, known)] + np.diag((noise + site)[known])
        )
        residual, sd = posterior.leave_one_out()
        site[known] += np.where(np.abs(residual) > OUTLIER * sd, residual**2, 0.0)
        target, variance = _gp.censored_sites(y - expected, covariance, noise + site, censored)
        site[censored] = variance[censored]
        return replace(self, target=target + expected, site=site)

    def _joint_prior(self) -> tuple[Array, Array]:
        """Expected targets (n,) and their covariance (n, n), noise included."""
        expected, root = self.expected(self.h, self.w)
        return expected, self.kernel(self.h, self.w) + root @ root.T + np.diag(self.noise)

    @property
    def noise(self) -> Array:
        """Variance of each observation around the loss without noise, (n,)."""
        return self.seeded * self.eta.noise_variance(self.h) + self.site

    def kernel(self, h: Array, w: Array) -> Array:
        """Covariance of the residual process among inputs."""
        X = np.column_stack([h, w])
        return self.eta.kernel(X, X)

    def expected(self, h: Array, w: Array) -> tuple[Array, Array]:
        """Mean before any observation (n,), and the square root of the covariance that theta brings (n, q)."""
        values, jacobian = self.mean.evaluate(self.theta, h, w)
        return values + jacobian @ (self.mean.prior_mean - self.theta), jacobian * self.mean.prior_sd

    # ---- answers

    def predict(self, h: Array, w: Array) -> tuple[Array, Array]:
        """Mean and sd of log loss without noise, (m,) each."""
        mean, sd = np.empty(len(h)), np.empty(len(h))
        amplitude = float(np.exp(2 * self.eta.log_amplitude))
        for begin in range(0, len(h), CHUNK):
            part = slice(begin, begin + CHUNK)
            expected, root, projected = self._project(h[part], w[part])
            mean[part] = expected + projected.T @ self.posterior.white
            reduced = np.einsum("ij,ij->j", projected, projected)
            sd[part] = np.sqrt(np.maximum(amplitude + (root * root).sum(1) - reduced, 1e-14))
        return mean, sd

    def joint(self, h: Array, w: Array) -> tuple[Array, Array]:
        """Mean (m,) and covariance (m, m) of log loss without noise."""
        expected, root, projected = self._project(h, w)
        covariance = self.kernel(h, w) + root @ root.T - projected.T @ projected
        return expected + projected.T @ self.posterior.white, covariance

    def _project(self, h: Array, w: Array) -> tuple[Array, Array, Array]:
        expected, root = self.expected(h, w)
        own = self.expected(self.h, self.w)[1]
        cross = self.eta.kernel(np.column_stack([self.h, self.w]), np.column_stack([h, w])) + own @ root.T
        return expected, root, self.posterior.project(cross)

    def condition(self, h: Array, w: Array, y: Array, censored: Mask, vague: Array) -> Component:
        """With further observations, everything learned held fixed."""
        expected, root, projected = self._project(h, w)
        own = self.kernel(h, w) + root @ root.T
        noise, target = self.eta.noise_variance(h) + vague**2, y
        if censored.any():
            mean = expected + projected.T @ self.posterior.white
            sites, noise = _gp.censored_sites(y - mean, own - projected.T @ projected, noise, censored)
            target = sites + mean
        return replace(
            self,
            h=np.concatenate([self.h, h]),
            w=np.vstack([self.w, w]),
            target=np.concatenate([self.target, target]),
            site=np.concatenate([self.site, noise]),
            seeded=np.concatenate([self.seeded, np.zeros(len(h))]),
            posterior=self.posterior.extend(target - expected, projected, own + np.diag(noise)),
        )

    def conditional(self, given: Mask, asked: Mask) -> float:
        """log p(`asked` observations | `given` ones), with everything learned held fixed."""
        expected, covariance = self._joint_prior()
        residual, both = self.target - expected, given | asked

        def density(rows: Mask) -> float:
            return _gp.log_density(residual[rows], covariance[np.ix_(rows, rows)])

        return density(both) - density(given)

    def coefficients(self) -> tuple[Array, Array]:
        """theta (q,) and its posterior covariance (q, q), the residual process counted as noise."""
        jacobian = self.expected(self.h, self.w)[1] / self.mean.prior_sd
        factor = _gp.cholesky(self.kernel(self.h, self.w) + np.diag(self.noise))
        white = solve_triangular(factor, jacobian, lower=True)
        return self.theta, np.linalg.inv(white.T @ white + np.diag(self.mean.prior_sd**-2.0))
