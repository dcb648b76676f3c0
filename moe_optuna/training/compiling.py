"""`torch.compile` for a model's layers and head on a GPU, where a training is long enough to earn the minute it takes.

Nothing of the compiler is imported where nothing is compiled: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training._recipe import Recipe
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.rules import Hyperparameters

__all__ = ["compiled", "is_worth_it", "uncompiled"]

WORTH = 1e17
"""FLOPs of a training that takes minutes of a GPU."""


def is_worth_it(recipe: Recipe, architecture: MoEArchitecture, hyper: Hyperparameters, accelerator: str) -> bool:
    """Whether a training is to have its model compiled."""
    tokens = hyper.steps * hyper.sequences * architecture.context_length
    is_long = architecture.non_embedding.flops_per_token * tokens >= WORTH
    return accelerator == "cuda" and (recipe.compile == "always" or (recipe.compile == "auto" and is_long))


@contextmanager
def compiled(model: MoELanguageModel, *, must: bool, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Within it layers and head are compiled when they are first called, layers of one kind once; where the compiler
    fails they run as they are, unless they `must` be compiled."""
    from torch._functorch import config as functorch

    # Devices exchange gradients from layer to layer, for which none needs to be cut. Backward runs outside autocast, as
    # it does where nothing is compiled.
    dynamo = torch._dynamo.config.patch(suppress_errors=not must, optimize_ddp=False)
    with dynamo, functorch.patch(backward_pass_autocast="off"):
        model.compile_parts(dynamic=False, backend=backend)
        try:
            yield
        finally:
            torch._dynamo.reset()  # a worker's next model has other shapes, of which one function may have but a few


@contextmanager
def uncompiled(model: MoELanguageModel) -> Iterator[None]:
    """Within it layers and head run as they are, on inputs of other shapes than those that they were compiled for."""
    if not model.is_compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
