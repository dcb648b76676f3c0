"""What each parameter is: its fan-in, its initial value, and the group that it is optimized in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from moe_optuna.training.attention import Attention
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

    Attention starts by looking at the tokens just before (`_look_back`). Other gains stay 1, and biases 0.
    """
    a = model.architecture
    generator = torch.Generator().manual_seed(seed)
    for name, parameter, fan_in in fan_ins(model):
        if parameter.ndim < 2:
            continue
        if fan_in is None:  # the embedding: unit variance a feature, as after the norms
            std = 1.0 if not a.tied_embeddings else a.d_model**-0.5
        else:
            std = fan_in**-0.5
            if name.endswith(("attention.output.weight", "down_EDF", "down.weight")):
                std /= (2 * a.n_layers) ** 0.5
            elif name.endswith("router.weight") or name == "head.weight":
                std *= 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))
    for module in model.modules():
        if isinstance(module, Attention):
            _look_back(module, a.context_length)


def _look_back(attention: Attention, context_length: int) -> None:
    """Queries that find the token 1, 2, ... places back, whatever it is, by the same map as the keys turned by so many
    places; heads that share keys look at different places.

    At random, attention takes most of a small budget to learn to look at the token before, and when it does is chance.
    Gains of the QK norm start where the largest score is ``2 log S``: enough to single out one of S keys.
    """
    H, G, C = attention.shape
    weight_HCD = attention.qkv.weight[: (H + G) * C].view(H + G, C, -1)
    angle = context_length ** (-torch.arange(0, C, 2) / C)
    for head in range(H):
        key, back = weight_HCD[H + head * G // H], 1 + head % (H // G)
        cos, sin = (back * angle).cos()[:, None], (back * angle).sin()[:, None]
        weight_HCD[head, 0::2] = key[0::2] * cos + key[1::2] * sin
        weight_HCD[head, 1::2] = key[1::2] * cos - key[0::2] * sin
    if attention.norm_over is not None:
        gain = (2 * math.log(context_length) / C**0.5) ** 0.5
        attention.query_gain.fill_(gain)
        attention.key_gain.fill_(gain)


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
