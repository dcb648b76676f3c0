"""The OptunaHub package: `TriadSampler` of moe-optuna, unchanged."""

from moe_optuna.samplers import Recommendation, TriadSampler

__all__ = ["Recommendation", "TriadSampler"]
