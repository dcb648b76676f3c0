"""`Problem`: a loss over the architectures of a search space whose optimum is known, with seed noise, curves and
failures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import COUNTS, DIMENSIONS, MoEArchitecture
from moe_optuna.laws import BAND
from moe_optuna.problems._terms import Array, Features, Term
from moe_optuna.space import Phase, SearchSpace

if TYPE_CHECKING:
    import optuna

__all__ = ["Optimum", "Problem"]


@dataclass(frozen=True)
class Optimum:
    """The best architecture that a phase may propose and that does not fail.

    Attributes:
        index: Its place in the phase's lattice.
        architecture: The architecture.
        loss: Its loss without noise, in nats per token.
    """

    index: int
    architecture: MoEArchitecture
    loss: float


@dataclass(frozen=True)
class Problem:
    """A known loss on a real lattice::

        log L(architecture, C) = log(floor + scale C^-slope) + sum of terms(architecture, C)

    The loss of a run adds seed noise, relative, whose standard deviation shrinks with the budget and grows with the sum
    of the terms, to three times as much at most::

        sd = noise (C / smallest budget)^-0.1 (1 + 10 min(max(sum of terms, 0), 0.2))

    Where the terms' least sum is above 0, the noise at the optimum is above `noise`: on `cpu` 1.3 to 1.4 times on
    `leverage` and, by variant, 1 to 1.9 times on `edge`.

    Attributes:
        name: Family and variant, such as ``holistic/0``; the random numbers depend on it.
        space: The search space whose lattices it lives on.
        terms: What the loss depends on.
        noise: Relative standard deviation of the loss over seeds at the smallest budget where the terms add up to 0.
        floor, scale, slope: The loss against compute; defaults are the dense law of arXiv:2507.17702, figure 1a.
        fails: Shares of a budget's Phase-1 lattice, as (memory, divergence): an architecture with more total parameters
            than all but the highest `memory` of it runs out of memory; one whose depth over width is above that of all
            but the highest `divergence` gives NaN with three seeds of four.
    """

    name: str
    space: SearchSpace
    terms: tuple[Term, ...]
    noise: float = 0.001
    floor: float = 0.0
    scale: float = 50.43
    slope: float = 0.0663
    fails: tuple[float, float] = (0.0, 0.0)
    _limits: dict[float, tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)

    def true_losses(self, phase: Phase) -> Array:
        """Losses without noise over `phase.lattice`, shape (len(lattice),), nats per token."""
        return self._losses(self._features(phase.lattice.arrays, phase.compute), phase.compute)

    def true_loss(self, architecture: MoEArchitecture, compute: float) -> float:
        """The loss of one architecture without noise, nats per token."""
        return float(self._losses(self._features(_arrays(architecture), compute), compute)[0])

    def failing(self, phase: Phase) -> NDArray[np.bool_]:
        """Which architectures of the lattice can fail, shape (len(lattice),)."""
        memory, divergence = self._limits_of(phase.compute)
        strain = _strain(phase.lattice.arrays)
        return (strain[0] > memory) | (strain[1] > divergence)

    def optimum(self, phase: Phase) -> Optimum:
        """The best architecture of the lattice that never fails."""
        losses = np.where(self.failing(phase), np.inf, self.true_losses(phase))
        index = int(np.argmin(losses))
        return Optimum(index, phase.lattice[index], float(losses[index]))

    def band(self, phase: Phase, width: float = BAND) -> NDArray[np.bool_]:
        """Which architectures of the lattice have a noise-free loss within `width` of the optimum's."""
        return ~self.failing(phase) & (self.true_losses(phase) <= self.optimum(phase).loss * (1 + width))

    def in_band(self, architecture: MoEArchitecture, phase: Phase, width: float = BAND) -> bool:
        """Whether an architecture's noise-free loss is within `width` of the optimum's, also where its runs can fail
        (`band` leaves those out)."""
        return self.true_loss(architecture, phase.compute) <= self.optimum(phase).loss * (1 + width)

    def loss(self, architecture: MoEArchitecture, compute: float, seed: int = 0) -> float:
        """The loss of a run, nats per token; NaN where it diverges.

        Raises:
            MemoryError: Where the architecture does not fit.
        """
        arrays = _arrays(architecture)
        random = self._random(architecture, compute, seed)
        memory, divergence = self._limits_of(compute)
        strain = _strain(arrays)
        if strain[0][0] > memory:
            raise MemoryError(f"{architecture.non_embedding.total_params:.3g} parameters do not fit")
        if strain[1][0] > divergence and random.random() < 0.75:
            return float("nan")
        true = self.true_loss(architecture, compute)
        return float(true * np.exp(self._noise(true, compute) * random.standard_normal()))

    def curve(
        self, architecture: MoEArchitecture, compute: float, seed: int = 0, points: int = 20
    ) -> tuple[tuple[float, float], ...]:
        """Held-out losses at ``i / points`` of the tokens, as (fraction, loss); the last is `loss`.

        A power law in the tokens while the learning rate is constant, a fall over the last fifth (warmup-stable-decay),
        and noise that fades towards the end. How fast an architecture learns differs, so curves cross.
        """
        final = self.loss(architecture, compute, seed)
        random = self._random(architecture, compute, seed + 1_000_003)
        own = self._random(architecture, 0.0, 0)
        fraction = np.arange(1, points + 1) / points
        climb = 0.10 * np.exp(0.08 * own.standard_normal())
        fall = 0.03 * np.exp(0.12 * own.standard_normal())
        decay = np.clip((1 - fraction) / 0.2, 0, 1)
        jitter = 2 * self._noise(final, compute) * random.standard_normal(points) * np.sqrt(1 - fraction)
        losses = final * np.exp(climb * (fraction**-0.5 - 1) + fall * decay + jitter)
        return tuple((float(f), float(loss)) for f, loss in zip(fraction, losses, strict=True))

    def objective(self, phase: Phase, *, seed: int = 0, points: int = 0) -> Callable[[optuna.Trial], float]:
        """An objective for `study.optimize`: suggests, reports `points` losses, prunes, returns the loss.

        A repeat carries its seed in the trial's user attribute `seed`.
        """

        def objective(trial: optuna.Trial) -> float:
            import optuna

            architecture = phase.suggest(trial)
            run = trial.user_attrs.get("seed", seed)
            if not points:
                return self.loss(architecture, phase.compute, run)
            losses = [loss for _, loss in self.curve(architecture, phase.compute, run, points)]
            for step, loss in enumerate(losses, start=1):
                trial.report(loss, step)
                if step < points and trial.should_prune():
                    raise optuna.TrialPruned
            return losses[-1]

        return objective

    def _losses(self, features: Features, compute: float) -> Array:
        base = self.floor + self.scale * compute**-self.slope
        total: Array = base * np.exp(sum(term(features, compute) for term in self.terms))
        return total

    def _noise(self, loss: float, compute: float) -> float:
        base = self.floor + self.scale * compute**-self.slope
        excess = max(0.0, float(np.log(loss / base)))
        return self.noise * float((compute / self.space.budgets[0]) ** -0.1) * (1 + 10 * min(excess, 0.2))

    def _features(self, arrays: Mapping[str, NDArray[np.int64]], compute: float) -> Features:
        features = {name: np.asarray(arrays[name], dtype=float) for name in DIMENSIONS}
        flops, active, total = (np.asarray(arrays[name], dtype=float) for name in COUNTS)
        return features | {
            "compute_density": flops / active,
            "expansion_ratio": total / active,
            "n_layers": features["n_dense_layers"] + features["n_moe_layers"],
            "granularity": 2 * features["d_model"] / np.maximum(features["d_expert"], 1),
            "activation_ratio": features["top_k"] / np.maximum(features["n_experts"], 1),
            "allocation": flops / self.space.allocation(compute).flops_per_token,
        }

    def _limits_of(self, compute: float) -> tuple[float, float]:
        """The strains above which runs of a budget fail: quantiles over the budget's Phase-1 lattice."""
        if not any(self.fails):
            return np.inf, np.inf
        if compute not in self._limits:
            memory, divergence = _strain(self.space.phase_one(compute).lattice.arrays)
            self._limits[compute] = (
                float(np.quantile(memory, 1 - self.fails[0])),
                float(np.quantile(divergence, 1 - self.fails[1])),
            )
        return self._limits[compute]

    def _random(self, architecture: MoEArchitecture, compute: float, seed: int) -> np.random.Generator:
        key = ",".join(str(getattr(architecture, name)) for name in DIMENSIONS) + f"@{compute:.6g}:{self.name}"
        return np.random.default_rng([zlib.crc32(key.encode()), seed])


def _arrays(architecture: MoEArchitecture) -> dict[str, NDArray[np.int64]]:
    counts = architecture.non_embedding
    return {name: np.array([getattr(architecture, name)]) for name in DIMENSIONS} | {
        name: np.array([getattr(counts, name)]) for name in COUNTS
    }


def _strain(arrays: Mapping[str, NDArray[np.int64]]) -> tuple[Array, Array]:
    """What memory grows with, and what makes a training unstable: parameters, and depth over width."""
    layers = np.asarray(arrays["n_dense_layers"] + arrays["n_moe_layers"], dtype=float)
    return np.asarray(arrays["total_params"], dtype=float), layers / np.asarray(arrays["d_model"], dtype=float)
