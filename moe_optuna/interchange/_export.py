"""One way out: the text of an architecture's configuration for a training framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.interchange._huggingface import to_hf
from moe_optuna.interchange._megatron import megatron_script
from moe_optuna.interchange._torchtitan import to_torchtitan

__all__ = ["EXPORTS", "export"]

EXPORTS: Mapping[str, Callable[[MoEArchitecture], str]] = {
    "hf": lambda architecture: json.dumps(to_hf(architecture), indent=2) + "\n",
    "megatron": megatron_script,
    "torchtitan": to_torchtitan,
}
"""What `export` writes: a `config.json`, a bash array of arguments, a Python module."""


def export(architecture: MoEArchitecture, to: str) -> str:
    """The configuration of an architecture for the framework `to`, a name of `EXPORTS`.

    Raises:
        InputError: Where the framework is unknown or cannot express the architecture.
    """
    if to not in EXPORTS:
        raise InputError(f"unknown {to!r}, expected {', '.join(EXPORTS)}{did_you_mean(to, EXPORTS)}", where="to")
    return EXPORTS[to](architecture)
