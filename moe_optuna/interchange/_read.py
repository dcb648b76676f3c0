"""One way in for every file that holds an architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.files import read_object
from moe_optuna.interchange._huggingface import from_hf

__all__ = ["read"]


def read(path: str | Path, context_length: int | None = None) -> MoEArchitecture:
    """The architecture in a file: one of our own, a blueprint, or a Hugging Face `config.json`.

    Args:
        path: The file.
        context_length: Tokens of a training sequence, where not the file's.

    Raises:
        InputError: Where the file is missing or none of these, or its content does not fit.
    """
    data = read_object(path, expected="an architecture or a Hugging Face configuration")
    if "architecture" in data:
        architecture = MoEArchitecture.load(path)
    elif "model_type" in data:
        architecture = from_hf(data, where=path)
    else:
        raise InputError("no key 'architecture' (our own files) nor 'model_type' (Hugging Face)", where=path)
    return architecture if context_length is None else replace(architecture, context_length=context_length)
