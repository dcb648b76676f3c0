"""Optuna samplers over the lattice of a phase."""

from moe_optuna.samplers._triad import Recommendation, TriadSampler

__all__ = ["Recommendation", "TriadSampler"]
