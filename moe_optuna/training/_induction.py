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

    In the first layer the first head attends to the token before, by place alone: queries and keys map the direction
    that all embeddings share to one vector of the fast rotary pairs, the queries' turned back by a position; the others
    of its group, by two positions and more. The first writes its values into C directions, or half of all where there
    are no more. In the layers above the keys of the last group read there, so they are those of the token before
    theirs; the last query is the key that its own token has one position on, with more weight on the slow pairs, since
    it may be far. Its values read all but those directions, so they are the token's own, and are written to others than
    those, in every layer the same ones, where the head reads each token by what would be written of it. No two heads of
    a group share queries and outputs: with the same gradients they would stay one head for good.

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
    key = torch.polar((frequency > _FAST).float(), angle)
    for head, positions in (H, 0), *enumerate(range(1, R + 1)):  # the group's key, then its queries
        turned = torch.view_as_real(key * torch.polar(torch.ones(C // 2), -positions * frequency))
        first.rows(head).copy_(as_large_as_others(turned.reshape(C, 1) * shared_D1.T))
    value_CD = without(shared_D1, first.rows(H + G).float())
    first.rows(H + G).copy_(value_CD)
    rank = min(C, D // 2)
    before_Dr = orthogonal(D, rank)
    before_DC = before_Dr @ orthogonal(rank, C) * (_WRITTEN * math.sqrt(C / rank))
    first.output.weight.view(D, H, C)[:, 0] = before_DC

    copied_CD = as_large_as_others(without(shared_D1, without(before_Dr, orthogonal(C, D))))
    written_DC = without(before_Dr, orthogonal(C, D)).T * math.sqrt(max(1, D / C))  # unit variance a feature
    read_VD = embedding_VD.float() @ copied_CD.T @ written_DC.T
    read_VD -= read_VD.mean(0)
    head_VD.copy_(read_VD / torch.linalg.vector_norm(read_VD, dim=1, keepdim=True) * _READ)

    far = (1 / (1 + frequency * context_length / 8)).repeat_interleave(2)[:, None]
    for attention in above:
        key_CD = as_large_as_others(without(shared_D1, orthogonal(C, C) * far @ before_DC.T))
        attention.rows(H + G - 1).copy_(key_CD)
        attention.rows(slice(H - R, H - 1)).copy_(key_CD)
        attention.rows(H - 1).copy_(as_large_as_others(key_CD @ before_DC @ value_CD))
        attention.rows(H + 2 * G - 1).copy_(copied_CD)
        attention.output.weight.view(D, H, C)[:, H - 1] = written_DC
