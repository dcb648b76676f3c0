"""Losses with known optima on real lattices, for tests and benchmarks of samplers, pruners and laws.

::

    problem = problems.make("holistic", "cpu")
    phase = problem.space.phase_one(problem.space.budgets[-1])
    study = optuna.create_study(sampler=TriadSampler(phase))
    study.optimize(problem.objective(phase), n_trials=40)
    problem.in_band(study.sampler.recommend(study).architecture, phase)
"""

from moe_optuna.problems._families import FAMILIES, make
from moe_optuna.problems._problem import Optimum, Problem

__all__ = ["FAMILIES", "Optimum", "Problem", "make"]
