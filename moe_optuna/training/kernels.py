"""Operations with a backward pass of their own, where autograd's composition reads memory more often than it must.

Each is a plain function on tensors, right on any device and in float64 (`torch.autograd.gradcheck`).

Shapes: T tokens, D features, R rows (token and expert pairs, sorted by expert), K experts a token, F hidden features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

__all__ = ["collect", "dispatch", "rms_norm", "swiglu"]


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, gain)
        return normed * gain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, gain = ctx.saved_tensors
        product = grad * normed
        grad_gain = product.reshape(-1, *gain.shape).sum(0)
        # d/dx of x / rms(x): take away the part along x, then scale.
        along = (product * gain).sum(-1, keepdim=True).div_(normed.shape[-1])
        return (grad * gain).sub_(normed * along).mul_(scale), grad_gain, None


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * gain`` over the last dimension (arXiv:1910.07467); `gain` has the shape of the
    last dimensions of `x`."""
    if x.device.type == "cuda" and gain.ndim == 1:
        return F.rms_norm(x, gain.shape, gain, eps)
    return _RMSNorm.apply(x, gain, eps)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor | None) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        hidden = F.silu(gate).mul_(up)
        ctx.save_for_backward(gate_up, weight, hidden)
        return hidden if weight is None else hidden * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_up, weight, hidden = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_weight = None
        if weight is not None:
            grad_weight = torch.linalg.vecdot(grad, hidden).unsqueeze(-1)
            grad = grad * weight
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return grad_gate_up, grad_weight


def swiglu(gate_up: Tensor, weight: Tensor | None = None) -> Tensor:
    """``silu(gate) * up``, times a weight a row where given: (..., 2F), (..., 1) -> (..., F) (arXiv:2002.05202)."""
    return _SwiGLU.apply(gate_up, weight)


class _Dispatch(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return _sum_rows(grad_RD, place_TK), None, None


class _Collect(Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        return _sum_rows(y_RD, place_TK)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        (token_R,) = ctx.saved_tensors
        return grad_TD.index_select(0, token_R), None, None


def _sum_rows(y_RD: Tensor, place_TK: Tensor) -> Tensor:
    T, K = place_TK.shape
    return y_RD.index_select(0, place_TK.flatten()).view(T, K, -1).sum(1)


def dispatch(x_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
    """A row for each pair of a token and an expert: ``x_TD[token_R]``. Its backward gathers too, since `place_TK` says
    in which rows a token went: no atomic additions, the same bits every time."""
    return _Dispatch.apply(x_TD, token_R, place_TK)


def collect(y_RD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
    """The transpose of `dispatch`: the sum of each token's rows."""
    return _Collect.apply(y_RD, token_R, place_TK)
