"""What each parameter is: its fan-in, its initial value, and the group that it is optimized in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from moe_optuna.training._induction import start_as_induction_heads
from moe_optuna.training.attention import Attention
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.rules import EMBEDDING_FACTOR, Hyperparameters, rate_factor

__all__ = ["initialise", "parameter_groups"]


def fan_ins(model: MoELanguageModel) -> Iterator[tuple[str, nn.Parameter, int | None]]:
    """Name, parameter and fan-in, ``None`` for embeddings, gains and biases."""
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and name != "embedding.weight"
        yield name, parameter, parameter.shape[-1] if is_matrix else None


@torch.no_grad()
def initialise(model: MoELanguageModel, seed: int) -> None:
    """Draw all matrices, on the CPU and parameter by parameter, so that a seed means the same on every device.

    Embeddings share a direction, by which attention can also go by place alone (`_alike`); queries start as keys
    (`_match`), but for those of induction heads, whose circuit also sets the head. Other gains stay 1, and biases 0.
    """
    a = model.architecture
    generator = torch.Generator().manual_seed(seed)
    for name, parameter, fan_in in fan_ins(model):
        if parameter.ndim < 2:
            if name.endswith("bias"):  # which torch draws
                parameter.zero_()
            continue
        if fan_in is None:  # the embedding: unit variance a feature, as after the norms
            std = 1.0 if not a.tied_embeddings else a.d_model**-0.5
        else:
            std = fan_in**-0.5
            if name.endswith(("attention.output.weight", "down_EDF", "down.weight")):
                std /= (2 * a.n_layers) ** 0.5
            elif name.endswith("router.weight") or name == "head.weight":
                std *= 0.1
        drawn = torch.randn(parameter.shape, generator=generator)
        if name.endswith("attention.qkv.weight"):  # a map a head
            drawn = _orthogonal(drawn.view(-1, a.d_head, a.d_model)).reshape_as(drawn)
        elif fan_in is None:
            drawn, shared_D = _alike(drawn, torch.randn(a.d_model, generator=generator))
        elif name.startswith("layers."):
            drawn = _orthogonal(drawn)
        parameter.copy_(drawn.mul_(std))
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in attentions:
        _match(attention, a.context_length)
    if not a.tied_embeddings:  # those are small beside what a layer writes
        start_as_induction_heads(
            attentions, model.embedding.weight, model.head.weight, shared_D, a.context_length, generator
        )


def _orthogonal(drawn: Tensor) -> Tensor:
    """Matrices (..., m, n) of unit variance, the rows or columns of the shorter side orthogonal and of one length.

    With fan-ins of some ten, matrices drawn at random differ so much in how they pass signals on that it shows in the
    losses of seeds.
    """
    is_wide = drawn.shape[-2] < drawn.shape[-1]
    tall = drawn.mT if is_wide else drawn
    basis, triangle = torch.linalg.qr(tall)
    sign = triangle.diagonal(dim1=-2, dim2=-1).sign()  # so that all directions are as likely
    found: Tensor = basis * sign.unsqueeze(-2) * math.sqrt(tall.shape[-2])
    return found.mT if is_wide else found


def _alike(drawn_VD: Tensor, shared_D: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings with the same variance in all directions but one, of which all have a half; and that one's vector.

    Drawn at random, a thousand embeddings of a hundred features have almost four times the variance in some directions
    that they have in others; and a token which by chance has little of what all share, or less than none, has next to
    no key by place alone, with gradients as large as that is small, or one turned round.
    """
    D = len(shared_D)
    shared_D = shared_D * (D**0.5 / shared_D.norm())
    own_VD = _orthogonal(drawn_VD)
    share_V = own_VD @ shared_D / D * (D > 1)  # a single feature is all that tokens differ by
    return own_VD + torch.outer(0.5 - share_V, shared_D), shared_D


def _match(attention: Attention, context_length: int) -> None:
    """Queries start as their keys' map, so that a token first attends to its like, and heads of a group start as one.

    From there a model learns to copy early and at much the same time with every seed. Gains of the QK norm start where
    the largest score is ``2 log S``: enough to single out one of S keys.
    """
    H, G, C = attention.shape
    attention.rows(slice(0, H)).copy_(attention.rows(slice(H, H + G)).repeat_interleave(H // G, 0))
    if attention.norm_over is not None:
        gain = (2 * math.log(context_length) / C**0.5) ** 0.5
        attention.query_gain.fill_(gain)
        attention.key_gain.fill_(gain)


def parameter_groups(model: MoELanguageModel, hyper: Hyperparameters) -> list[dict[str, Any]]:
    """AdamW's groups: parameters with one learning rate and one weight decay; ``rate`` is the peak of the schedule."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter, fan_in in fan_ins(model):
        decay = hyper.weight_decay if fan_in is not None else 0.0
        untied = name == "embedding.weight" and not model.architecture.tied_embeddings
        factor = EMBEDDING_FACTOR if untied else rate_factor(fan_in)
        groups[hyper.learning_rate * factor, decay].append(parameter)
    return [
        {"params": parameters, "lr": rate, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
