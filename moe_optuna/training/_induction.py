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
_WRITTEN = 2.5  # size of what the first layer writes, of an embedding's feature
_READ = 0.3  # deviation of the logits that the head reads from what is copied


@torch.no_grad()
def start_as_induction_heads(
    attentions: Sequence[Attention],
    embedding_VD: Tensor,
    head_VD: Tensor,
    shared_D: Tensor,
    context_length: int,
    generator: torch.Generator,
) -> None:
    """Predict what came after the query's own token before: two layers or more, with QK norm by head, untied head.

    In the first layer the heads of the first group attend to the token before, by place alone: queries and keys map the
    direction that all embeddings share to one vector of the fast rotary pairs, the queries' turned back by a position.
    They write its values into C directions, or half of all where there are no more. In the layers above the keys of the
    last group read there, so they are those of the token before theirs; its queries (only the last, where there is but
    one group) are the keys that their own token has one position on, with more weight on the slow pairs, since it may
    be far. Their values read all but those directions, so they are the token's own, and are written to others than
    those, in every layer the same ones, where the head reads each token by what would be written of it.

    Args:
        attentions: One a layer.
        embedding_VD, head_VD: The embedding, drawn, and the head, which is set.
        shared_D: What all embeddings have in common.
        context_length: S.
        generator: Of the random numbers.
    """
    first, *above = attentions
    H, G, C = first.shape
    R, D = H // G, len(shared_D)
    if not above or first.norm_over != "head" or D == 1:
        return
    shared_D1 = shared_D[:, None] / shared_D.norm()
    frequency = rotary_frequencies(context_length, C).float()

    def orthogonal(rows: int, columns: int) -> Tensor:
        drawn: Tensor = torch.nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
        return drawn

    def without(directions_DN: Tensor, matrix_CD: Tensor) -> Tensor:
        return matrix_CD - matrix_CD @ directions_DN @ directions_DN.T

    def as_large_as_others(matrix_CD: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(matrix_CD)
        return matrix_CD / norm * math.sqrt(C)

    angle = 2 * torch.pi * torch.rand(C // 2, generator=generator)
    place = torch.polar((frequency > _FAST).float(), angle)
    before = place * torch.polar(torch.ones(C // 2), -frequency)
    key_CD, query_CD = (
        as_large_as_others(torch.view_as_real(vector).reshape(C, 1) * shared_D1.T) for vector in (place, before)
    )
    first.rows(slice(0, R)).copy_(query_CD)
    first.rows(H).copy_(key_CD)
    value_CD = without(shared_D1, first.rows(H + G).float())
    first.rows(H + G).copy_(value_CD)
    rank = min(C, D // 2)
    before_Dr = orthogonal(D, rank)
    before_DC = before_Dr @ orthogonal(rank, C) * (_WRITTEN * math.sqrt(C / rank))
    first.output.weight.view(D, H, C)[:, :R] = before_DC[:, None] / R

    copied_CD = as_large_as_others(without(shared_D1, without(before_Dr, orthogonal(C, D))))
    written_DC = without(before_Dr, orthogonal(C, D)).T * math.sqrt(max(1, D / C))  # unit variance a feature
    read_VD = embedding_VD.float() @ copied_CD.T @ written_DC.T
    read_VD -= read_VD.mean(0)
    head_VD.copy_(read_VD / torch.linalg.vector_norm(read_VD, dim=1, keepdim=True) * _READ)

    far = (1 / (1 + frequency * context_length / 8)).repeat_interleave(2)[:, None]
    heads = slice(H - R if G > 1 else H - 1, H)
    for attention in above:
        key_CD = as_large_as_others(without(shared_D1, orthogonal(C, C) * far @ before_DC.T))
        attention.rows(H + G - 1).copy_(key_CD)
        query_CD = as_large_as_others(key_CD @ before_DC @ value_CD)
        attention.rows(slice(H - R, H)).copy_(key_CD)
        attention.rows(heads).copy_(query_CD)
        attention.rows(H + 2 * G - 1).copy_(copied_CD)
        attention.output.weight.view(D, H, C)[:, heads] = written_DC[:, None] / (heads.stop - heads.start)
