"""One way in for every file that holds an architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
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
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or "cannot be read", where=path) from None
    except ValueError:
        raise InputError("not JSON, expected an architecture or a Hugging Face configuration", where=path) from None
    if isinstance(data, dict) and "architecture" in data:
        architecture = MoEArchitecture.load(path)
    elif isinstance(data, dict) and "model_type" in data:
        architecture = from_hf(data, where=path)
    else:
        raise InputError("no key 'architecture' (our own files) nor 'model_type' (Hugging Face)", where=path)
    return architecture if context_length is None else replace(architecture, context_length=context_length)
