"""A training's state as a file: what is in it, what it must agree with, and how it is written and read."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.files import remove_unfinished, replacing
from moe_optuna.training._corpus import Corpus
from moe_optuna.training._recipe import Recipe
from moe_optuna.training.rules import Hyperparameters

__all__ = ["identity", "of_stem", "read", "write"]

FORMAT = 11


def identity(
    architecture: MoEArchitecture, recipe: Recipe, hyper: Hyperparameters, seed: int, corpus: Corpus
) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    shared = {"recipe": recipe.to_dict(), "text": corpus.origin["content"]}
    return {"architecture": architecture.to_dict(), **shared, "seed": seed, **asdict(hyper)}


def of_stem(whole: dict[str, Any]) -> dict[str, Any]:
    """What a stable part must agree with: all but where it ends."""
    return {key: value for key, value in whole.items() if key not in ("steps", "decay_steps")}


def write(file: Path, state: dict[str, Any]) -> None:
    """Write the state so that a reader sees the old file or the new one, never a part.

    Raises:
        OSError: Where it could not be written, the disk being full above all; the old file is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(file.parent, f".{file.name}." + "[0-9a-f]" * 32)
    try:
        with replacing(file) as unfinished, unfinished.open("wb") as stream:
            torch.save({"format": FORMAT, **state}, stream)
    except RuntimeError as error:  # torch's own about the position in the file, while the disk is the reason
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read(file: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """A state that `write` wrote; ``None``, with a warning, where the file is damaged: a disk may keep less of it
    than was written, and a training that begins anew is better than a search that cannot go on.

    Raises:
        InputError: Where it is something else, or of another training.
        OSError: Where the disk does not give it.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many kinds on a file that is not its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"{file}: not a checkpoint, the training begins without it: {reason}", stacklevel=2)
        return None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"format {found!r}, expected {FORMAT}", where=file)
    if state["identity"] != wanted:
        differing = [key for key, value in wanted.items() if state["identity"].get(key) != value]
        raise InputError(f"another trial's checkpoint, which differs in {', '.join(differing)}", where=file)
    return state
