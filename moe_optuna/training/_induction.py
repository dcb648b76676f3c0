"""Heads that copy from the first step: the circuit of induction heads (arXiv:2209.11895) as initial values.

Small trainings find it late and with some seeds better than with others, and until then rank architectures by that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_optuna.training.attention import Attention, rotary_frequencies

__all__ = ["start_as_induction_heads"]

_FAST = 0.25  # radians a position: pairs that turn faster tell the token before from its neighbours
_WRITTEN = 1.5  # size of what the first layer writes, of an embedding's feature


@torch.no_grad()
def start_as_induction_heads(
    attentions: Sequence[Attention], shared_D: Tensor, context_length: int, generator: torch.Generator
) -> None:
    """Let a query attend to what came after its own token before: two layers or more, with QK norm by head.

    In the first layer the heads of the first group attend to the token before, by place alone: queries and keys map the
    direction that all embeddings share to one vector of the fast rotary pairs, the queries' turned back by a position.
    They write its values into C orthogonal directions. In the layers above the keys of the last group read there, so
    they are those of the token before theirs; its queries (only the last, where there is but one group) are the keys
    that their own token has one position on, with more weight on the slow pairs, since it may be far.

    Args:
        attentions: One a layer.
        shared_D: What all embeddings have in common.
        context_length: S.
        generator: Of the random numbers.
    """
    first, *above = attentions
    if not above or first.norm_over != "head":
        return
    H, G, C = first.shape
    R, D = H // G, len(shared_D)
    shared_D = shared_D / shared_D.norm()
    frequency = rotary_frequencies(context_length, C).float()

    def without_shared(matrix_CD: Tensor) -> Tensor:
        return matrix_CD - (matrix_CD @ shared_D)[:, None] * shared_D

    def as_large_as_others(matrix_CD: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(matrix_CD)
        return matrix_CD / norm * math.sqrt(C)

    angle = 2 * torch.pi * torch.rand(C // 2, generator=generator)
    place = torch.polar((frequency > _FAST).float(), angle)
    before = place * torch.polar(torch.ones(C // 2), -frequency)
    key_CD, query_CD = (
        as_large_as_others(torch.view_as_real(vector).reshape(C, 1) * shared_D) for vector in (place, before)
    )
    first.rows(slice(0, R)).copy_(query_CD)
    first.rows(H).copy_(key_CD)
    value_CD = without_shared(first.rows(H + G).float())
    first.rows(H + G).copy_(value_CD)
    directions_DC = torch.nn.init.orthogonal_(torch.empty(D, C), gain=_WRITTEN, generator=generator)
    first.output.weight.view(D, H, C)[:, :R] = directions_DC[:, None] / R

    far = (1 / (1 + frequency * context_length / 8)).repeat_interleave(2)[:, None]
    for attention in above:
        mixed_CC = torch.nn.init.orthogonal_(torch.empty(C, C), generator=generator) * far
        key_CD = as_large_as_others(without_shared(mixed_CC @ directions_DC.T))
        attention.rows(H + G - 1).copy_(key_CD)
        query_CD = as_large_as_others(key_CD @ directions_DC @ value_CD)
        attention.rows(slice(H - R, H)).copy_(key_CD)
        attention.rows(slice(H - R if G > 1 else H - 1, H)).copy_(query_CD)
