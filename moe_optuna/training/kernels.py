"""The small operations of the model, each as a pair of plain functions: forward, and backward written out.

At the sizes of a search on CPUs a step is some hundred small operations, each bound by memory or by its own call.
Writing the backward passes out halves their number; `moe_optuna.training.sublayers` chains the pairs, and the functions
without an underscore wrap one pair each for autograd. All are right on any device and in float64 (gradcheck). On a GPU,
and where `torch.compile` reads them, norm, rotation and SwiGLU are torch's own operations: it has a kernel for each, or
makes one.

Shapes: T tokens, D features, H heads, C features of a head, S context, R rows (visits of a token to an expert,
sorted by expert), K experts a token, F hidden features.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

__all__ = [
    "apply",
    "collect",
    "dispatch",
    "norm_rotate",
    "norm_rotate_backward",
    "norm_rotate_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotate",
    "sum_rows",
    "swiglu",
    "swiglu_backward",
    "swiglu_forward",
    "turn",
]

Saved = tuple[Tensor, ...]


def apply(function: type[Function], *arguments: Any) -> Any:
    """``function.apply``, which torch does not type."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def written_out(x: Tensor) -> bool:
    """Whether the passes written out here run, rather than torch's own operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


# ---------------------------------------------------------------------------------------------------- norm


def _normalise(x_ND: Tensor) -> tuple[Tensor, Saved]:
    """``x / rms(x)`` of each row, by the one kernel on a CPU that does it in one pass: weight normalisation's, which
    scales rows to given lengths, here ``sqrt(D)``. A row of zeros gives NaN; none occurs behind a product."""
    length_N1 = x_ND.new_full((len(x_ND), 1), x_ND.shape[1] ** 0.5)
    normed_ND, norm_N1 = torch._weight_norm_interface(x_ND, length_N1, 0)
    return normed_ND, (x_ND, length_N1, norm_N1)


def _normalise_backward(saved: Saved, grad_ND: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.aten._weight_norm_interface_backward(grad_ND, *saved, 0)[0])


def rms_norm_forward(x_TD: Tensor, gain_D: Tensor) -> tuple[Tensor, Saved]:
    """``x / sqrt(mean(x^2)) * gain`` (arXiv:1910.07467)."""
    normed_TD, saved = _normalise(x_TD)
    return normed_TD * gain_D, (normed_TD, gain_D, *saved)


def rms_norm_backward(saved: Saved, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the gain."""
    normed_TD, gain_D, *rest = saved
    grad_gain_D = (grad_TD * normed_TD).sum(0)
    return _normalise_backward(tuple(rest), grad_TD * gain_D), grad_gain_D


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gain_D: Tensor) -> Tensor:
        y_TD, saved = rms_norm_forward(x_TD, gain_D)
        ctx.save_for_backward(*saved)
        return y_TD

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm_backward(ctx.saved_tensors, grad_TD)


def rms_norm(x_TD: Tensor, gain_D: Tensor) -> Tensor:
    """`rms_norm_forward` for autograd."""
    if not written_out(x_TD):
        return F.rms_norm(x_TD, gain_D.shape, gain_D.to(x_TD.dtype), 0.0)
    return cast(Tensor, apply(_RMSNorm, x_TD, gain_D))


# -------------------------------------------------------------------------------------- rotary positions


def turn(x_THC: Tensor, table: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864): pairs of features as complex numbers, each times ``exp(i angle)``.

    Args:
        x_THC: Queries or keys of whole sequences, contiguous.
        table: The factor of each position and pair, the same for each head: complex, (S, H C/2).
    """
    pairs = x_THC.view(-1, *table.shape, 2)
    if torch.compiler.is_compiling():  # which makes kernels of real numbers alone
        (a, b), (cos, sin) = pairs.unbind(-1), torch.view_as_real(table).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).view(x_THC.shape)
    return torch.view_as_real(torch.view_as_complex(pairs) * table).view(x_THC.shape)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return turn(x_THC.contiguous(), table)

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return turn(grad_THC.contiguous(), table.conj()), None


def rotate(x_THC: Tensor, table: Tensor) -> Tensor:
    """`turn` for autograd: its backward turns back. In the table's precision, whatever that of x."""
    precise = x_THC.to(torch.view_as_real(table).dtype)
    if torch.compiler.is_compiling():
        return turn(precise.contiguous(), table).to(x_THC.dtype)
    return cast(Tensor, apply(_Rotate, precise, table)).to(x_THC.dtype)


def norm_rotate_forward(x_THC: Tensor, gain_HC: Tensor, table: Tensor) -> tuple[Tensor, Saved]:
    """RMSNorm of each head's features, with gains, and then `turn`; of contiguous `x_THC`."""
    normed, saved = _normalise(x_THC.view(-1, x_THC.shape[-1]))
    normed_THC = normed.view(x_THC.shape)
    return turn(normed_THC * gain_HC, table), (normed_THC, gain_HC, table, *saved)


def norm_rotate_backward(saved: Saved, grad_THC: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the gains, of a contiguous gradient."""
    normed_THC, gain_HC, table, *rest = saved
    grad_THC = turn(grad_THC, table.conj())
    grad_gain_HC = (grad_THC * normed_THC).sum(0)
    grad_x = _normalise_backward(tuple(rest), grad_THC.mul_(gain_HC).view(-1, gain_HC.shape[-1]))
    return grad_x.view(grad_THC.shape), grad_gain_HC


class _NormRotate(Function):
    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, gain_HC: Tensor, table: Tensor) -> Tensor:
        y_THC, saved = norm_rotate_forward(x_THC.contiguous(), gain_HC, table)
        ctx.save_for_backward(*saved)
        return y_THC

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Tensor, Tensor, None]:
        return *norm_rotate_backward(ctx.saved_tensors, grad_THC.contiguous()), None


def norm_rotate(x_THC: Tensor, gain_HC: Tensor, table: Tensor) -> Tensor:
    """`norm_rotate_forward` for autograd, in the table's precision."""
    precise = x_THC.to(torch.view_as_real(table).dtype)
    if not written_out(x_THC):
        return rotate(F.rms_norm(precise, x_THC.shape[-1:], None, 0.0) * gain_HC, table).to(x_THC.dtype)
    return cast(Tensor, apply(_NormRotate, precise, gain_HC, table)).to(x_THC.dtype)


# -------------------------------------------------------------------------------------------------- SwiGLU


def swiglu_forward(gate_up: Tensor) -> tuple[Tensor, Saved]:
    """``silu(gate) * up``: (..., 2F) -> (..., F) (arXiv:2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    sigmoid = gate.sigmoid()  # kept, since the exponential is what costs
    silu = gate * sigmoid
    return silu * up, (up, sigmoid, silu)


def swiglu_backward(saved: Saved, grad: Tensor) -> Tensor:
    """Gradient of gate and up together."""
    up, sigmoid, silu = saved
    grad_gate_up = grad.new_empty(*grad.shape[:-1], 2 * grad.shape[-1])
    grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
    torch.mul(grad, silu, out=grad_up)
    slope = torch.addcmul(silu, sigmoid, 1 - silu)  # silu' = s + x s (1 - s) = silu + s (1 - silu)
    torch.mul(slope.mul_(up), grad, out=grad_gate)
    return grad_gate_up


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        hidden, saved = swiglu_forward(gate_up)
        ctx.save_for_backward(*saved)
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return swiglu_backward(ctx.saved_tensors, grad)


def swiglu(gate_up: Tensor) -> Tensor:
    """`swiglu_forward` for autograd."""
    if not written_out(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return cast(Tensor, apply(_SwiGLU, gate_up))


# ------------------------------------------------------------------------------- between tokens and rows


def sum_rows(y_RD: Tensor, place_TK: Tensor) -> Tensor:
    """The sum of each token's rows: (R, D) -> (T, D)."""
    T, K = place_TK.shape
    rows = y_RD.index_select(0, place_TK.flatten())
    return rows if K == 1 else rows.view(T, K, -1).sum(1)


class _Dispatch(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        (place_TK,) = ctx.saved_tensors
        return sum_rows(grad_RD, place_TK), None, None


class _Collect(Function):
    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        ctx.dtype = y_RD.dtype  # on a GPU autocast makes sums float32
        return sum_rows(y_RD, place_TK)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        (token_R,) = ctx.saved_tensors
        return grad_TD.to(ctx.dtype).index_select(0, token_R), None, None


def dispatch(x_TD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
    """A row for each visit: ``x_TD[token_R]``. Its backward gathers too, since `place_TK` says in which rows a token
    went: no atomic additions, the same bits every time."""
    return cast(Tensor, apply(_Dispatch, x_TD, token_R, place_TK))


def collect(y_RD: Tensor, token_R: Tensor, place_TK: Tensor) -> Tensor:
    """The transpose of `dispatch`: the sum of each token's rows."""
    return cast(Tensor, apply(_Collect, y_RD, token_R, place_TK))
