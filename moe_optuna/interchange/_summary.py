"""What `moe-optuna count --json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.memory import training_memory

__all__ = ["count_payload"]


def count_payload(architecture: MoEArchitecture) -> dict[str, Any]:
    """The architecture and its counts as plain data.

    `roles` divides the `full` counts among embedding, attention, dense_ffn, moe, router, norm and head. `shares` and
    the ratios are of the `non_embedding` convention. `memory` is in bytes, for training on one device with one sequence
    in a micro-batch, by the rule of `moe_optuna.memory`.
    """
    return {
        "architecture": architecture.to_dict(),
        "non_embedding": asdict(architecture.non_embedding),
        "full": asdict(architecture.full),
        "roles": {role: asdict(counts) for role, counts in architecture.roles.items()},
        "shares": architecture.shares,
        "compute_density": architecture.compute_density,
        "expansion_ratio": architecture.expansion_ratio,
        "granularity": architecture.granularity,
        "activation_ratio": architecture.activation_ratio,
        "shared_ratio": architecture.shared_ratio,
        "memory": training_memory(architecture, tokens=architecture.context_length).to_dict(),
    }
