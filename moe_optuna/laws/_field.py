"""`Field`: what a surrogate believes of fixed candidates, ready to take in a run without a look at earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

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

    def observe(self, place: int, loss: float, *, vague: float = 0.0) -> Field:
        """With a further run at a candidate, everything learned held fixed: O(k m^2), whatever the number of runs.

        Args:
            loss: Nats per token.
            vague: Relative sd of what `loss` is off beside seed noise.
        """
        columns = self.covariances[:, :, place]
        mean, variance = self.means[:, place], columns[:, place]
        missed, surprise = np.log(loss) - mean, np.maximum(variance, 0) + self.noise + vague**2
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
