"""How well the surrogate predicts a budget that it has not seen: leave the largest budget out, predict it, compare.

Simulated ladders from the published holistic laws (arXiv:2603.21862) at 1e18 ... 3e19 FLOPs with seed noise from
0.05 to 1 %; the held-out budget is 1e20. Worlds:

- `law`: the forms of the paper, optima and curvatures power laws of compute;
- `bent`: the same forms, but the optima's exponents change with compute;
- `odd`: other shapes (|t|^1.5, an interaction, ripples) around power-law optima;
- `foreign`: the smaller budgets' optimum lies elsewhere; the held-out budget has eight runs of its own.

Peers: the surrogate with each of its means alone, and scikit-learn's Gaussian process over (log C, coordinates).
Scores at the held-out budget, medians over seeds: `loss`, mean relative error over the plane; `position`, error of
the optimum in widths of the 0.1 % band (worse of the two axes); `regret`, true loss of the recommended point over
the least; `coverage` of the 95 % intervals; `inside`, the relative error of the loss over the plane at the largest
budget that was seen.

    python benchmarks/surrogate.py [--seeds 20]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from record import record
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from threadpoolctl import threadpool_limits

from moe_optuna.laws import Observations, Surrogate

POLE = 289 / 9
SMALLER = (1e18, 3e18, 1e19, 3e19)
LARGEST = 1e20
SIDE = 31
GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
BAND = 0.001


@dataclass(frozen=True)
class Axis:
    """An axis as a phase has it: uniform in t between two values."""

    name: str
    low: float
    high: float

    def t(self, x: np.ndarray) -> np.ndarray:
        return np.log(x - 6) if self.name == "compute_density" else np.log((x - 1) / (POLE - x))

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        if self.name == "compute_density":
            return 6 + (self.low - 6) * ((self.high - 6) / (self.low - 6)) ** np.asarray(unit)
        return self.low + (self.high - self.low) * np.asarray(unit)


AXES = (Axis("compute_density", 7.0, 17.0), Axis("expansion_ratio", 12.0, 30.0))


def world(kind: str) -> Callable[[float, np.ndarray], np.ndarray]:
    """The noise-free loss of (compute, unit coordinates (m, 2))."""

    def loss(compute: float, unit: np.ndarray) -> np.ndarray:
        decades = np.log10(compute / 1e18)
        bend = 0.25 * decades if kind == "bent" else 0.0
        density = 6 + 4.65 * 10 ** ((-0.142 - 0.142 * bend) * decades)
        ratio = 19.15 * 10 ** ((0.0245 + 0.03 * bend) * decades)
        if kind == "foreign" and compute < 0.9 * LARGEST:
            density, ratio = 14.0, 14.0
        t, u = (
            axis.t(axis.from_unit(column)) - axis.t(np.array(best))
            for axis, column, best in zip(AXES, unit.T, (density, ratio), strict=True)
        )
        flatter = 10 ** (-0.05 * decades)
        if kind == "odd":
            shape = 0.012 * np.abs(t) ** 1.5 + 0.012 * u**2 + 0.008 * t * u + 0.0008 * np.sin(7 * t) * np.cos(5 * u)
        else:
            shape = 0.016 * (np.cosh(t) - 1) + 0.03 * (np.cosh(u) - 1)
        return (1.7 + 1.5 * 10 ** (-0.1 * decades)) * (1 + flatter * shape)

    return loss


class PlainGaussianProcess:
    """scikit-learn's, over (log C, coordinates), with the answers that the surrogate gives."""

    def fit(self, observations: Observations) -> PlainGaussianProcess:
        kernel = ConstantKernel(1.0) * Matern([3.0, 0.5, 0.5], nu=2.5) + WhiteKernel(0.1, (1e-6, 1e1))
        self.model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=0)
        X = np.column_stack([np.log(observations.compute), observations.coordinates])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(X, np.log(observations.loss))
        self.noise = float(np.sqrt(self.model.kernel_.k2.noise_level)) * float(self.model._y_train_std)
        return self

    def predict(self, compute: float, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, sd = self.model.predict(np.column_stack([np.full(len(unit), np.log(compute)), unit]), return_std=True)
        return np.exp(mean), np.exp(mean) * np.sqrt(np.maximum(sd**2 - self.noise**2, 1e-14))


MODELS: dict[str, Callable[[], Surrogate | PlainGaussianProcess]] = {
    "surrogate": lambda: Surrogate(AXES),
    "law": lambda: Surrogate(AXES, means=("law",)),
    "quadratic": lambda: Surrogate(AXES, means=("quadratic",)),
    "constant": lambda: Surrogate(AXES, means=("constant",)),
    "plain gp": PlainGaussianProcess,
}


def observe(
    loss: Callable[[float, np.ndarray], np.ndarray], kind: str, each: int, noise: float, seed: int
) -> Observations:
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(SMALLER, each) | ({LARGEST: 8} if kind == "foreign" else {})
    units = [(compute, rng.random((count, 2))) for compute, count in counts.items()]
    clean = np.concatenate([loss(compute, unit) for compute, unit in units])
    return Observations(
        np.concatenate([np.full(len(unit), compute) for compute, unit in units]),
        np.vstack([unit for _, unit in units]),
        clean * np.exp(noise * rng.standard_normal(len(clean))),
    )


def score(model: Surrogate | PlainGaussianProcess, loss: Callable[[float, np.ndarray], np.ndarray]) -> dict[str, float]:
    truth = loss(LARGEST, GRID)
    mean, sd = model.predict(LARGEST, GRID)
    inside = np.abs(model.predict(SMALLER[-1], GRID)[0] / loss(SMALLER[-1], GRID) - 1).mean()
    near = GRID[truth <= truth.min() * (1 + BAND)]
    widths = np.maximum(np.ptp(near, axis=0), 1 / (SIDE - 1))
    found = GRID[mean.argmin()]
    return {
        "loss": float(np.abs(mean / truth - 1).mean()),
        "position": float((np.abs(found - GRID[truth.argmin()]) / widths).max()),
        "regret": float(truth[mean.argmin()] / truth.min() - 1),
        "coverage": float((np.abs(mean - truth) <= 1.96 * sd).mean()),
        "inside": float(inside),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    rows = []
    for kind in ("law", "bent", "odd", "foreign"):
        loss = world(kind)
        for each in (10, 36):
            for noise in (0.0005, 0.003, 0.01):
                scores: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS}
                for seed in range(seeds):
                    observations = observe(loss, kind, each, noise, seed)
                    for name, build in MODELS.items():
                        begin = time.perf_counter()
                        model = build().fit(observations)
                        scores[name].append(score(model, loss) | {"seconds": time.perf_counter() - begin})
                for name, each_seed in scores.items():
                    row = {"world": kind, "runs": each, "noise": noise, "model": name}
                    medians = {key: float(np.median([s[key] for s in each_seed])) for key in each_seed[0]}
                    medians["coverage"] = float(np.mean([s["coverage"] for s in each_seed]))
                    rows.append(row | medians)
                    print(
                        f"{kind:8} {each:3} runs  noise {noise:.2%}  {name:10} loss {medians['loss']:.3%}  position "
                        f"{medians['position']:.2f}  regret {medians['regret']:.3%}  "
                        f"coverage {medians['coverage']:.2f}  inside {medians['inside']:.3%}",
                        flush=True,
                    )
    print(record("surrogate", rows))


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
