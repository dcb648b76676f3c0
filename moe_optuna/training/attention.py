"""Grouped-query attention with rotary positions and optional QK norm.

Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.parts import GroupedQueryAttention
from moe_optuna.training.kernels import rms_norm

__all__ = ["Attention", "rotary_table", "rotate"]


def rotary_table(context_length: int, d_head: int, base: float = 10_000.0) -> Tensor:
    """``exp(i t base^(-2 j / d_head))`` for position t and pair j: complex, (S, C/2) (arXiv:2104.09864)."""
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(context_length, dtype=torch.float64), frequency)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x_BSHC: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of features by its position's angle; one complex product is faster than four real ones."""
    x = x_BSHC.float() if x_BSHC.dtype in (torch.bfloat16, torch.float16) else x_BSHC
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table[: x.shape[1], None].to(x.dtype.to_complex())
    return torch.view_as_real(turned).flatten(-2).to(x_BSHC.dtype)


class Attention(nn.Module):
    """One layer; queries, keys and values come from one product."""

    def __init__(self, a: MoEArchitecture, kind: GroupedQueryAttention) -> None:
        super().__init__()
        self.shape = (a.n_heads, a.n_kv_heads, a.d_head)
        self.window = kind.window if kind.window is not None and kind.window < a.context_length else None
        self.per_head_norm = kind.norm_over == "head"
        query, key = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
        self.qkv = nn.Linear(a.d_model, query + 2 * key, bias=kind.qkv_bias)
        self.output = nn.Linear(query, a.d_model, bias=kind.output_bias)
        self.query_gain = self.key_gain = None
        if a.qk_norm:
            self.query_gain = nn.Parameter(torch.ones(a.d_head if self.per_head_norm else query))
            self.key_gain = nn.Parameter(torch.ones(a.d_head if self.per_head_norm else key))

    def forward(self, x_TD: Tensor, n_sequences: int, table: Tensor) -> Tensor:
        H, G, C = self.shape
        qkv = self.qkv(x_TD)
        qk, v = qkv.split(((H + G) * C, G * C), dim=-1)
        q, k = self._normed(qk)
        S = x_TD.shape[0] // n_sequences
        qk_BSHC = rotate(torch.cat([q, k], -1).view(n_sequences, S, H + G, C), table)
        q, k = qk_BSHC.transpose(1, 2).split((H, G), dim=1)
        v = v.view(n_sequences, S, G, C).transpose(1, 2)
        mask = None
        if self.window is not None:
            position = torch.arange(S, device=x_TD.device)
            distance = position[:, None] - position
            mask = (distance >= 0) & (distance < self.window)
        y_BHSC = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=H != G)
        return self.output(y_BHSC.transpose(1, 2).reshape(-1, H * C))

    def _normed(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        H, G, C = self.shape
        q, k = qk.split((H * C, G * C), dim=-1)
        if self.query_gain is None or self.key_gain is None:
            return q, k
        if self.per_head_norm:
            q, k = q.reshape(-1, H, C), k.reshape(-1, G, C)
        q, k = rms_norm(q, self.query_gain), rms_norm(k, self.key_gain)
        return q.flatten(1), k.flatten(1)
