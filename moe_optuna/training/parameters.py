"""What each parameter is: its fan-in, its initial standard deviation, and the group that it is optimized in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.rules import Hyperparameters, rate_factor

__all__ = ["initialise", "parameter_groups"]


def fan_ins(model: MoELanguageModel) -> Iterator[tuple[str, nn.Parameter, int | None]]:
    """Name, parameter and fan-in, ``None`` for embeddings, gains and biases."""
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and name != "embedding.weight"
        yield name, parameter, parameter.shape[-1] if is_matrix else None


@torch.no_grad()
def initialise(model: MoELanguageModel, seed: int) -> None:
    """Draw all matrices, on the CPU and parameter by parameter, so that a seed means the same on every device.

    Gains stay 1 and biases 0.
    """
    a = model.architecture
    generator = torch.Generator().manual_seed(seed)
    for name, parameter, fan_in in fan_ins(model):
        if parameter.ndim < 2:
            continue
        if fan_in is None:  # the embedding: unit variance a feature once normalised; small, so that layers matter
            std = 0.5 if not a.tied_embeddings else a.d_model**-0.5
        else:
            std = fan_in**-0.5
            if name.endswith(("attention.output.weight", "down_EDF", "down.weight")):
                std /= (2 * a.n_layers) ** 0.5
            elif name.endswith("router.weight") or name == "head.weight":
                std *= 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))


def parameter_groups(model: MoELanguageModel, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """AdamW's groups: parameters with one learning rate and one weight decay; ``rate`` is the peak of the schedule."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for _, parameter, fan_in in fan_ins(model):
        decay = hyper.weight_decay if fan_in is not None else 0.0
        groups[hyper.learning_rate * rate_factor(fan_in), decay].append(parameter)
    return [
        {"params": parameters, "lr": rate, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
