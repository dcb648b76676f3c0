"""`Field`: what a surrogate believes of fixed candidates, ready to take in a run without a look at earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moe_optuna.laws import _gp
from moe_optuna.laws._gp import Array

__all__ = ["Field"]


@dataclass(frozen=True)
class Field:
    """Log losses without seed noise at m candidates: a mixture of k normals, one a mean of the surrogate.

    Attributes:
        shares: Weights of the normals, (k,).
        means, covariances: Of log losses, (k, m) and (k, m, m).
        noise: Variance of a run's log loss over seeds under each, (k,).
    """

    shares: Array
    means: Array
    covariances: Array
    noise: Array

    def observe(self, place: int, loss: float, *, censored: bool = False) -> Field:
        """With a further run at a candidate, everything learned held fixed: O(k m^2), whatever the number of runs.

        Args:
            loss: Nats per token.
            censored: Whether `loss` is only a lower bound.
        """
        columns = self.covariances[:, :, place]
        mean, variance = self.means[:, place], columns[:, place]
        missed, noise = np.log(loss) - mean, self.noise
        if censored:
            sites = [
                _gp.censored_sites(np.array([bound]), np.array([[own]]), np.array([seed]), np.array([True]))
                for bound, own, seed in zip(missed, variance, noise, strict=True)
            ]
            missed, noise = (np.array([site[part][0] for site in sites]) for part in (0, 1))
        surprise = np.maximum(variance, 0) + noise
        return replace(
            self,
            means=self.means + (missed / surprise)[:, None] * columns,
            covariances=self.covariances - columns[:, :, None] * columns[:, None, :] / surprise[:, None, None],
        )

    def joint(self) -> tuple[Array, Array]:
        """Mean (m,) and covariance (m, m) of the losses, nats per token."""
        mean = self.shares @ self.means
        apart = np.sqrt(self.shares)[:, None] * (self.means - mean)
        covariance = np.tensordot(self.shares, self.covariances, 1) + apart.T @ apart
        loss = np.exp(mean)
        return loss, covariance * np.outer(loss, loss)
