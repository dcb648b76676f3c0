"""Grouped-query attention with rotary positions and optional QK norm.

Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.parts import GroupedQueryAttention
from moe_optuna.training.kernels import norm_rotate, rms_norm, rotate

__all__ = ["Attention", "rotary_frequencies", "rotary_table"]


_SLOWEST = 0.04  # radians a position: a turn in 157 positions


def rotary_frequencies(context_length: int, d_head: int) -> Tensor:
    """Radians that each pair of a head's features turns by from a position to the next, the fastest first: (C/2,).

    ``S^(-2 j / C)``, but that pairs slower than `_SLOWEST` do not turn: with some pairs that have no position a token
    finds its like at any distance, and turning them would tell places that far apart no more than roughly.
    """
    frequency = float(context_length) ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    return torch.where(frequency < _SLOWEST, 0.0, frequency)


def rotary_table(context_length: int, n_heads: int, d_head: int) -> Tensor:
    """``exp(i t f_j)`` for position t and the frequency of pair j, repeated for each head: complex, (S, H C/2)."""
    angle = torch.outer(torch.arange(context_length, dtype=torch.float64), rotary_frequencies(context_length, d_head))
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).repeat(1, n_heads)


class Attention(nn.Module):
    """One layer; queries, keys and values come from one product."""

    def __init__(self, a: MoEArchitecture, kind: GroupedQueryAttention) -> None:
        super().__init__()
        self.shape = (a.n_heads, a.n_kv_heads, a.d_head)
        self.window = kind.window if kind.window is not None and kind.window < a.context_length else None
        self.norm_over = kind.norm_over if a.qk_norm else None
        query, key = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
        self.qkv = nn.Linear(a.d_model, query + 2 * key, bias=kind.qkv_bias)
        self.output = nn.Linear(query, a.d_model, bias=kind.output_bias)
        if self.norm_over is not None:
            self.query_gain = nn.Parameter(torch.ones(a.d_head if self.norm_over == "head" else query))
            self.key_gain = nn.Parameter(torch.ones(a.d_head if self.norm_over == "head" else key))

    def rows(self, heads: int | slice) -> Tensor:
        """Weights of heads: first H of queries, then G of keys and G of values; (C, D) of one, (n, C, D) of n."""
        H, G, C = self.shape
        return self.qkv.weight.view(H + 2 * G, C, -1)[heads]

    def forward(self, x_TD: Tensor, n_sequences: int, table: Tensor, seen: Tensor | None = None) -> Tensor:
        """(T, D) -> (T, D); of the keys up to its own a query attends to those that `seen` (B, 1, S, S) allows."""
        H, G, C = self.shape
        qk, v = self.qkv(x_TD).split_with_sizes(((H + G) * C, G * C), dim=-1)
        S = len(x_TD) // n_sequences
        qk_BSHC = self._normed_and_rotated(qk, table[:S]).view(n_sequences, S, H + G, C)
        q, k = qk_BSHC.transpose(1, 2).split_with_sizes((H, G), dim=1)
        v = v.view(n_sequences, S, G, C).transpose(1, 2)
        mask = None
        if self.window is not None or seen is not None:
            mask = _window_mask(S, self.window or S, x_TD.device)
            mask = mask if seen is None else mask & seen
            k, v = (part.repeat_interleave(H // G, 1) for part in (k, v))  # no kernel with a mask knows groups
        grouped = q.shape[1] != k.shape[1]
        y_BHSC = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return cast(Tensor, self.output(y_BHSC.transpose(1, 2).reshape(-1, H * C)))

    def _normed_and_rotated(self, qk: Tensor, table: Tensor) -> Tensor:
        """Queries and keys together: (T, (H + G) C) -> (T, H + G, C)."""
        H, G, C = self.shape
        if self.norm_over == "head":
            gain_HC = torch.cat([self.query_gain.expand(H, C), self.key_gain.expand(G, C)])
            return norm_rotate(qk.reshape(-1, H + G, C), gain_HC, table)
        if self.norm_over == "width":
            q, k = (part.contiguous() for part in qk.split_with_sizes((H * C, G * C), dim=-1))
            qk = torch.cat([rms_norm(q, self.query_gain), rms_norm(k, self.key_gain)], dim=-1)
        return rotate(qk.reshape(-1, H + G, C), table)


def _window_mask(S: int, window: int, device: torch.device) -> Tensor:
    """Which keys a query sees: itself and the ``window - 1`` before it; (S, S)."""
    position = torch.arange(S, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)
