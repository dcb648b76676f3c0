"""The sublayers in one piece each: norm, block and residual, with the backward pass written out.

The modules of `moe_optuna.training.model` say the same to autograd, operation by operation; there a step of a small
model is bound by a thousand calls rather than by arithmetic. Here each sublayer is one autograd node that chains pairs
of forward and backward functions, those of `moe_optuna.training.plain`. Taken on CPUs in full precision where
`moe_optuna.training.native` is not; tests hold all three to each other.

Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features,
E experts, F hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from moe_optuna.training import plain
from moe_optuna.training.router import RoutingRule

__all__ = ["AttentionSublayer", "DenseSublayer", "HeadLoss", "MoESublayer"]


def _save(ctx: Any, *groups: Sequence[Tensor]) -> None:
    ctx.sizes = [len(group) for group in groups]
    ctx.save_for_backward(*(tensor for group in groups for tensor in group))


def _saved(ctx: Any) -> list[tuple[Tensor, ...]]:
    tensors = iter(ctx.saved_tensors)
    return [tuple(next(tensors) for _ in range(size)) for size in ctx.sizes]


class AttentionSublayer(Function):
    """``x + output(attention(rotate(norm(qk)), v))``, with qkv of ``rms_norm(x)``.

    Arguments: x_TD, gain_D, qkv weight ((H + 2G) C, D), gains of queries and keys (C,) or ``None`` for no QK norm,
    output weight (D, H C), rotary table (S, (H + G) C/2), and the shape (B, H, G, C).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gain_D: Tensor,
        qkv_weight: Tensor,
        query_gain: Tensor | None,
        key_gain: Tensor | None,
        output_weight: Tensor,
        table: Tensor,
        shape: tuple[int, int, int, int],
    ) -> Tensor:
        ctx.shape = shape
        gains = None if query_gain is None or key_gain is None else (query_gain, key_gain)
        normed_TD, norm_saved = plain.rms_norm_forward(x_TD, gain_D)
        qkv = torch.mm(normed_TD, qkv_weight.t())
        train = any(ctx.needs_input_grad)
        y_TH, saved, ctx.graph = plain.attention_forward(qkv, gains, table, shape, train)
        _save(ctx, (normed_TD, qkv_weight, output_weight, y_TH), norm_saved, saved)
        return torch.addmm(x_TD, y_TH, output_weight.t())

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        grad_TD = grad_TD.contiguous()
        (normed_TD, qkv_weight, output_weight, y_TH), norm_saved, saved = _saved(ctx)
        grad_output_weight = torch.mm(grad_TD.t(), y_TH)
        grad_y_TH = torch.mm(grad_TD, output_weight)
        grad_qkv, grad_query_gain, grad_key_gain = plain.attention_backward(saved, ctx.graph, grad_y_TH, ctx.shape)
        del ctx.graph
        grad_qkv_weight = torch.mm(grad_qkv.t(), normed_TD)
        grad_x_TD, grad_gain_D = plain.rms_norm_backward(norm_saved, torch.mm(grad_qkv, qkv_weight), grad_TD)
        gains = (grad_gain_D, grad_qkv_weight, grad_query_gain, grad_key_gain)
        return grad_x_TD, *gains, grad_output_weight, None, None


class DenseSublayer(Function):
    """``x + down(swiglu(gate_up(rms_norm(x))))``. Arguments: x_TD, gain_D, gate_up (2F, D), down (D, F)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gain_D: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        normed_TD, norm_saved = plain.rms_norm_forward(x_TD, gain_D)
        hidden_TF, swiglu_saved = plain.swiglu_forward(torch.mm(normed_TD, gate_up.t()))
        _save(ctx, (normed_TD, hidden_TF, gate_up, down), norm_saved, swiglu_saved)
        return torch.addmm(x_TD, hidden_TF, down.t())

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        grad_TD = grad_TD.contiguous()
        (normed_TD, hidden_TF, gate_up, down), norm_saved, swiglu_saved = _saved(ctx)
        grad_gate_up_TG = plain.swiglu_backward(swiglu_saved, torch.mm(grad_TD, down))
        grad_down, grad_gate_up = torch.mm(grad_TD.t(), hidden_TF), torch.mm(grad_gate_up_TG.t(), normed_TD)
        grad_normed_TD = torch.mm(grad_gate_up_TG, gate_up)
        return *plain.rms_norm_backward(norm_saved, grad_normed_TD, grad_TD), grad_gate_up, grad_down


class MoESublayer(Function):
    """``x + experts(rms_norm(x)) + shared(rms_norm(x))``, beside it the router's loss and the experts' counts.

    Arguments: x_TD, gain_D, router weight (E, D), gate_up (E, 2F, D), down (E, D, F), the shared experts' gate_up and
    down or ``None``, the selection bias (E,), the rule and the number of sequences.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gain_D: Tensor,
        router_weight: Tensor,
        gate_up_EGD: Tensor,
        down_EDF: Tensor,
        shared_gate_up: Tensor | None,
        shared_down: Tensor | None,
        bias_E: Tensor,
        rule: RoutingRule,
        n_sequences: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.rule = rule
        normed_TD, norm_saved = plain.rms_norm_forward(x_TD, gain_D)
        logits_TE = torch.mm(normed_TD, router_weight.t())
        weight_TK, loss, count_E, places, route_saved = plain.route_forward(rule, logits_TE, bias_E, n_sequences)
        y_TD, saved = plain.experts_forward(normed_TD, weight_TK, places, gate_up_EGD, down_EDF, x_TD)
        shared: tuple[Tensor, ...] = ()
        if shared_gate_up is not None and shared_down is not None:
            shared_TF, shared_swiglu = plain.swiglu_forward(torch.mm(normed_TD, shared_gate_up.t()))
            y_TD.addmm_(shared_TF, shared_down.t())
            shared = (shared_TF, shared_gate_up, shared_down, *shared_swiglu)
        own = (normed_TD, router_weight, gate_up_EGD, down_EDF)
        _save(ctx, own, norm_saved, route_saved, places, saved, shared)
        ctx.mark_non_differentiable(count_E)
        return y_TD, loss, count_E

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor, grad_loss: Tensor, _: Any) -> Any:
        grad_TD = grad_TD.contiguous()
        own, norm_saved, route_saved, places, saved, shared = _saved(ctx)
        normed_TD, router_weight, gate_up_EGD, down_EDF = own
        grad_normed_TD, grad_gate_up, grad_down, grad_weight_TK = plain.experts_backward(
            saved, places, gate_up_EGD, down_EDF, grad_TD
        )
        grad_logits_TE = plain.route_backward(ctx.rule, route_saved, grad_weight_TK, grad_loss)
        grad_normed_TD.addmm_(grad_logits_TE, router_weight)
        grad_router = torch.mm(grad_logits_TE.t(), normed_TD)
        grad_shared_gate_up = grad_shared_down = None
        if shared:
            shared_TF, shared_gate_up, shared_down, *shared_swiglu = shared
            grad_shared_down = torch.mm(grad_TD.t(), shared_TF)
            grad_shared_TG = plain.swiglu_backward(tuple(shared_swiglu), torch.mm(grad_TD, shared_down))
            grad_shared_gate_up = torch.mm(grad_shared_TG.t(), normed_TD)
            grad_normed_TD.addmm_(grad_shared_TG, shared_gate_up)
        grad_x_TD, grad_gain_D = plain.rms_norm_backward(norm_saved, grad_normed_TD, grad_TD)
        experts = (grad_router, grad_gate_up, grad_down, grad_shared_gate_up, grad_shared_down)
        return grad_x_TD, grad_gain_D, *experts, None, None, None


class HeadLoss(Function):
    """Mean cross-entropy of ``head(rms_norm(x))``. Arguments: x_TD, gain_D, head weight (V, D), targets (T,)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gain_D: Tensor, weight: Tensor, target_T: Tensor) -> Tensor:
        normed_TD, norm_saved = plain.rms_norm_forward(x_TD, gain_D)
        loss: Tensor
        loss, saved = plain.entropy_forward(torch.mm(normed_TD, weight.t()), target_T.contiguous())
        _save(ctx, (normed_TD, weight), norm_saved, saved)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        (normed_TD, weight), norm_saved, saved = _saved(ctx)
        grad_TV = plain.entropy_backward(saved, grad_loss)
        grad_TD = torch.mm(grad_TV, weight)
        grad_x_TD, grad_gain_D = plain.rms_norm_backward(norm_saved, grad_TD, torch.zeros_like(grad_TD))
        return grad_x_TD, grad_gain_D, torch.mm(grad_TV.t(), normed_TD), None
