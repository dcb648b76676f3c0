"""What `moe-optuna count --json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moe_optuna.architecture import MoEArchitecture

__all__ = ["count_payload"]


def count_payload(architecture: MoEArchitecture) -> dict[str, Any]:
    """The architecture and its counts as plain data: both conventions, shares and ratios of the `non_embedding` one."""
    return {
        "architecture": architecture.to_dict(),
        "non_embedding": asdict(architecture.non_embedding),
        "full": asdict(architecture.full),
        "shares": architecture.shares,
        "compute_density": architecture.compute_density,
        "expansion_ratio": architecture.expansion_ratio,
        "granularity": architecture.granularity,
        "activation_ratio": architecture.activation_ratio,
        "shared_ratio": architecture.shared_ratio,
    }
