"""Gaussian-process algebra as pure functions of arrays.

Shapes: X (n, k) inputs, y (n,) targets, base (n, n) a fixed covariance added to the kernel (the uncertain
coefficients of a mean), site (n,) extra variance of single observations (censored or down-weighted ones), seeded
(n,) 1 where an observation carries seed noise and 0 where its site alone describes it.

Kernel: Matern 5/2 with a length per input, ``amplitude^2 (1 + r + r^2 / 3) exp(-r)``, r = sqrt(5) |(x - x') /
lengths| (Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 4.17). Noise variance of an observation:
``seeded exp(2 (log_noise + noise_slope h)) + site`` with h (n,) a covariate (the log of compute).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, lapack, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr

Array = NDArray[np.float64]

_JITTER = 1e-10


@dataclass(frozen=True)
class Prior:
    """Normal priors on the hyperparameters, in the order (log_amplitude, log_noise, noise_slope, log_lengths...)."""

    mean: Array
    sd: Array


@dataclass(frozen=True)
class Hyperparameters:
    """What the kernel and the noise are."""

    log_amplitude: float
    log_noise: float
    noise_slope: float
    log_lengths: Array

    @classmethod
    def unpack(cls, eta: Array) -> Hyperparameters:
        return cls(float(eta[0]), float(eta[1]), float(eta[2]), np.array(eta[3:]))

    def pack(self) -> Array:
        return np.array([self.log_amplitude, self.log_noise, self.noise_slope, *self.log_lengths])

    def kernel(self, left: Array, right: Array) -> Array:
        """Covariance of the residual process between two sets of inputs, (n, k) and (m, k) -> (n, m)."""
        lengths = np.exp(self.log_lengths)
        return np.asarray(np.exp(2 * self.log_amplitude) * matern(left / lengths, right / lengths))

    def noise_variance(self, covariate: Array) -> Array:
        """Variance of seed noise, (n,)."""
        return np.asarray(np.exp(2 * (self.log_noise + self.noise_slope * covariate)))


def matern(left: Array, right: Array) -> Array:
    """Matern 5/2 of unit amplitude and lengths, (n, k) and (m, k) -> (n, m)."""
    r = left @ (-10 * right.T)
    r += 5 * (left * left).sum(1)[:, None]
    r += 5 * (right * right).sum(1)
    np.sqrt(np.maximum(r, 0, out=r), out=r)
    decay = np.exp(-r)
    r *= 1 + r / 3
    r += 1
    r *= decay
    return r


def cholesky(covariance: Array) -> Array:
    """Lower Cholesky factor; jitter grows until the matrix is positive definite."""
    scale = float(np.trace(covariance)) / max(len(covariance), 1) or 1.0
    jitter = _JITTER * scale
    while True:
        factor, info = lapack.dpotrf(covariance + jitter * np.eye(len(covariance)), lower=1, clean=1)
        if info == 0:
            return np.asarray(factor)
        jitter *= 10


def log_density(residual: Array, covariance: Array) -> float:
    """Log of the normal density of `residual` (n,) with mean zero."""
    if not len(residual):
        return 0.0
    factor = cholesky(covariance)
    white = solve_triangular(factor, residual, lower=True)
    return float(-0.5 * white @ white - np.log(np.diag(factor)).sum() - 0.5 * len(residual) * np.log(2 * np.pi))


def objective(
    eta: Array, squares: Array, y: Array, base: Array, covariate: Array, seeded: Array, site: Array, prior: Prior
) -> tuple[float, Array]:
    """Negative log of marginal likelihood times prior, up to a constant, and its gradient in eta (e,).

    Args:
        eta: Hyperparameters, packed.
        squares: Squared differences of the inputs, (k, n, n).
    """
    deviation = (eta - prior.mean) / prior.sd
    inverse_squares = np.exp(-2 * eta[3:])
    r = np.sqrt(np.tensordot(5 * inverse_squares, squares, 1))
    slope = np.exp(2 * eta[0] - r) * (1 + r)
    kernel = slope * (1 + r * r / (3 * (1 + r)))
    noise = seeded * np.exp(2 * (eta[1] + eta[2] * covariate))
    factor, info = lapack.dpotrf(kernel + base + np.diag(noise + site + _JITTER), lower=1, clean=1)
    if info:
        return 1e10, np.zeros_like(eta)
    inverse = lapack.dpotri(factor, lower=1)[0]  # its lower triangle; the upper one is 0
    inverse += inverse.T
    np.fill_diagonal(inverse, np.diag(inverse) / 2)
    alpha = inverse @ y
    value = 0.5 * y @ alpha + np.log(np.diag(factor)).sum() + 0.5 * deviation @ deviation
    # d value / d eta = tr((inverse - alpha alpha') dK / d eta) / 2
    inner = inverse - np.outer(alpha, alpha)
    on_diagonal = np.diag(inner) * noise
    slope *= inner  # d kernel / d log_length_i = 5/3 amplitude^2 exp(-r) (1 + r) s_i / length_i^2
    gradient = np.concatenate(
        [
            [np.vdot(inner, kernel), on_diagonal.sum(), on_diagonal @ covariate],
            5 / 6 * inverse_squares * np.tensordot(squares, slope, 2),
        ]
    )
    return float(value), gradient + deviation / prior.sd


def tune(
    X: Array,
    y: Array,
    base: Array,
    covariate: Array,
    seeded: Array,
    site: Array,
    prior: Prior,
    start: Array,
    iterations: int,
) -> Hyperparameters:
    """Hyperparameters at the maximum of marginal likelihood times prior, by L-BFGS from `start`."""
    squares = (X.T[:, :, None] - X.T[:, None, :]) ** 2
    bounds = [(m - 5 * s, m + 5 * s) for m, s in zip(prior.mean, prior.sd, strict=True)]
    arguments = (squares, y, base, covariate, seeded, site, prior)
    options = {"maxiter": iterations}
    found = minimize(objective, start, arguments, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Hyperparameters.unpack(found.x)


@dataclass(frozen=True)
class Posterior:
    """A conditioned Gaussian process, ready to predict and to take further observations.

    Attributes:
        factor: Lower Cholesky factor of the covariance of the observations, (n, n).
        white: The residuals solved through it, (n,).
    """

    factor: Array
    white: Array

    @classmethod
    def of(cls, residual: Array, covariance: Array) -> Posterior:
        factor = cholesky(covariance)
        return cls(factor, solve_triangular(factor, residual, lower=True))

    def extend(self, residual: Array, projected: Array, covariance: Array) -> Posterior:
        """Further observations: residuals (k,), `project` of their covariance with the old ones (n, k), and their
        own (k, k).
        """
        n, k = projected.shape
        tip = cholesky(covariance - projected.T @ projected)
        factor = np.zeros((n + k, n + k))
        factor[:n, :n], factor[n:, :n], factor[n:, n:] = self.factor, projected.T, tip
        fresh = solve_triangular(tip, residual - projected.T @ self.white, lower=True)
        return Posterior(factor, np.concatenate([self.white, fresh]))

    def project(self, cross: Array) -> Array:
        """Covariances with the observations (n, m) in whitened form, as `extend` takes them."""
        return np.asarray(solve_triangular(self.factor, cross, lower=True, check_finite=False))

    def leave_one_out(self) -> tuple[Array, Array]:
        """Residual of each observation from its prediction by all others, and that prediction's sd, both (n,)
        (Rasmussen and Williams, eq. 5.12)."""
        inverse = cho_solve((self.factor, True), np.eye(len(self.white)))
        alpha = solve_triangular(self.factor, self.white, lower=True, trans=1)
        variance = 1 / np.diag(inverse)
        return alpha * variance, np.sqrt(variance)


def censored_sites(
    residual: Array, covariance: Array, noise: Array, censored: NDArray[np.bool_], sweeps: int = 8
) -> tuple[Array, Array]:
    """Normal sites for observations of which only a lower bound is known, by expectation propagation.

    A site stands for ``P(f + noise > bound) = Phi((f - bound) / sd)``, the Tobit likelihood of a censored run (Minka
    2001; Rasmussen and Williams, section 3.6).

    Args:
        residual: Residuals (n,); a censored one is its bound.
        covariance: Prior covariance of f (n, n).
        noise: Noise variance (n,).

    Returns:
        Targets (n,) and noise variances (n,) with the sites in place of the censored observations.
    """
    target, variance = residual.copy(), noise.copy()
    index = np.flatnonzero(censored)
    if not len(index):
        return target, variance
    wide = 1e4 * (np.diag(covariance)[index] + noise[index])
    precision, shift = 1 / wide, residual[index] / wide
    for _ in range(sweeps):
        target[index], variance[index] = shift / precision, 1 / precision
        factor = cholesky(covariance + np.diag(variance))
        cross = solve_triangular(factor, covariance[:, index], lower=True)
        mean = cross.T @ solve_triangular(factor, target, lower=True)
        spread = np.diag(covariance)[index] - (cross * cross).sum(0)
        cavity_precision = np.maximum(1 / spread - precision, 1e-3 / spread)
        cavity_mean = (mean / spread - shift) / cavity_precision
        cavity = 1 / cavity_precision
        scale = np.sqrt(cavity + noise[index])
        z = (cavity_mean - residual[index]) / scale
        ratio = np.exp(-0.5 * z * z - 0.5 * np.log(2 * np.pi) - log_ndtr(z))  # phi(z) / Phi(z)
        tilted_mean = cavity_mean + cavity * ratio / scale
        tilted = cavity - cavity**2 * ratio * (z + ratio) / scale**2
        site = np.maximum(1 / tilted - cavity_precision, 1 / wide)
        step = site * tilted_mean + cavity_precision * (tilted_mean - cavity_mean)
        moved = float(np.max(np.abs(site - precision) / (site + precision)))
        precision, shift = 0.5 * (precision + site), 0.5 * (shift + step)
        if moved < 1e-2:
            break
    target[index], variance[index] = shift / precision, 1 / precision
    return target, variance
