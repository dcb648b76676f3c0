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
    """Start heads so that together they foretell what followed the query's own token when it last came up.

    Only with two layers or more, QK norm by head and an untied head; else nothing is set.

    First layer, first group of heads: look back. All embeddings share one direction, and the group's queries and keys
    read nothing else, so that they attend by place alone. The key is one vector on the fast rotary pairs; the first
    head's query is that vector turned back by one position, so that it attends to the token before; each further
    head's by one more, so that no two heads are alike. The first head writes its values, which say what the token
    before was, into C directions of the residual stream, or half of all where there are no more.

    Layers above, last group of heads: match and copy. Keys read those directions: each is that of the token before its
    own. The last head's query is the key that a token after the query's own would have, so that it attends to what
    followed its token earlier, with more weight on slow rotary pairs, since that may be far. The group's other heads
    have their key as query and attend to their like. Values read everything but the shared direction and those
    directions, which is the token itself, and the last head writes them to directions that are the same in every layer
    and none of the first layer's. There the head reads each token by what would be written of it.

    No two heads of a group may share queries and outputs: with the same gradients they would stay one head for good.

    Args:
        attentions: One a layer.
        embedding_VD, head_VD: The embedding, drawn, and the head, which is set.
        shared_D: The direction that all embeddings share, of any length.
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
