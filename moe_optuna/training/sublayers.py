"""The three sublayers in one piece each: norm, block and residual, with the backward pass written out.

The modules of `moe_optuna.training.model` say the same to autograd, operation by operation; there a step of a small
model is bound by a thousand calls rather than by arithmetic. Here each sublayer is one autograd node that chains the
pairs of `moe_optuna.training.kernels`. Taken on CPUs in full precision; tests hold both to each other in float64.

Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features, R
rows sorted by expert, E experts, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from moe_optuna.training.experts import grouped_linear, grouped_outer, sort_by_expert
from moe_optuna.training.kernels import (
    norm_rotate_backward,
    norm_rotate_forward,
    rms_norm_backward,
    rms_norm_forward,
    sum_rows,
    swiglu_backward,
    swiglu_forward,
    turn,
)
from moe_optuna.training.router import RoutingRule, route_backward, route_forward

__all__ = ["AttentionSublayer", "DenseSublayer", "MoESublayer"]


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
        B, H, G, C = shape
        normed_TD, norm_saved = rms_norm_forward(x_TD, gain_D)
        qkv = torch.mm(normed_TD, qkv_weight.t())
        qk_THC = qkv[:, : (H + G) * C].contiguous().view(-1, H + G, C)
        rotary_saved: tuple[Tensor, ...]
        if query_gain is None or key_gain is None:
            qk_THC, rotary_saved = turn(qk_THC, table), (table,)
        else:
            gain_HC = torch.cat([query_gain.expand(H, C), key_gain.expand(G, C)])
            qk_THC, rotary_saved = norm_rotate_forward(qk_THC, gain_HC, table)
        qk = qk_THC.view(B, -1, H + G, C).transpose(1, 2)
        leaves = qk[:, :H], qk[:, H:], qkv[:, (H + G) * C :].view(B, -1, G, C).transpose(1, 2)
        # Autograd knows the backward of whichever attention kernel runs: a graph of this one operation is kept.
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            leaves = tuple(leaf.detach().requires_grad_(torch.is_grad_enabled()) for leaf in leaves)  # type: ignore[assignment]
            y_BHSC = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=H != G)
        y_TH = y_BHSC.detach().transpose(1, 2).reshape(len(x_TD), H * C)
        ctx.shape, ctx.graph, ctx.n_norm = shape, (y_BHSC, leaves), len(norm_saved)
        ctx.save_for_backward(normed_TD, qkv_weight, output_weight, y_TH, *norm_saved, *rotary_saved)
        return torch.addmm(x_TD, y_TH, output_weight.t())

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        B, H, G, C = ctx.shape
        normed_TD, qkv_weight, output_weight, y_TH, *saved = ctx.saved_tensors
        norm_saved, rotary_saved = saved[: ctx.n_norm], saved[ctx.n_norm :]
        T = len(grad_TD)
        grad_output_weight = torch.mm(grad_TD.t(), y_TH)
        grad_y_BHSC = torch.mm(grad_TD, output_weight).view(B, -1, H, C).transpose(1, 2)
        y_BHSC, leaves = ctx.graph
        del ctx.graph
        grad_q, grad_k, grad_v = torch.autograd.grad(y_BHSC, leaves, grad_y_BHSC)
        # Into place by hand: `cat` of four dimensions may choose a channels-last order.
        grad_qk_BSHC = grad_TD.new_empty(B, T // B, H + G, C)
        grad_qk_BSHC[:, :, :H] = grad_q.transpose(1, 2)
        grad_qk_BSHC[:, :, H:] = grad_k.transpose(1, 2)
        grad_qk_THC = grad_qk_BSHC.view(T, H + G, C)
        grad_query_gain = grad_key_gain = None
        if len(rotary_saved) == 1:
            grad_qk_THC = turn(grad_qk_THC, rotary_saved[0].conj())
        else:
            grad_qk_THC, grad_gain_HC = norm_rotate_backward(tuple(rotary_saved), grad_qk_THC)
            grad_query_gain, grad_key_gain = grad_gain_HC[:H].sum(0), grad_gain_HC[H:].sum(0)
        grad_qkv = torch.cat([grad_qk_THC.view(T, -1), grad_v.transpose(1, 2).reshape(T, G * C)], dim=1)
        grad_qkv_weight = torch.mm(grad_qkv.t(), normed_TD)
        grad_x_TD, grad_gain_D = rms_norm_backward(tuple(norm_saved), torch.mm(grad_qkv, qkv_weight))
        return (
            grad_x_TD.add_(grad_TD),
            grad_gain_D,
            grad_qkv_weight,
            grad_query_gain,
            grad_key_gain,
            grad_output_weight,
            None,
            None,
        )


class DenseSublayer(Function):
    """``x + down(swiglu(gate_up(rms_norm(x))))``. Arguments: x_TD, gain_D, gate_up (2F, D), down (D, F)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gain_D: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        normed_TD, norm_saved = rms_norm_forward(x_TD, gain_D)
        hidden_TF, swiglu_saved = swiglu_forward(torch.mm(normed_TD, gate_up.t()))
        ctx.n_norm = len(norm_saved)
        ctx.save_for_backward(normed_TD, hidden_TF, gate_up, down, *norm_saved, *swiglu_saved)
        return torch.addmm(x_TD, hidden_TF, down.t())

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> Any:
        normed_TD, hidden_TF, gate_up, down, *saved = ctx.saved_tensors
        norm_saved, swiglu_saved = tuple(saved[: ctx.n_norm]), tuple(saved[ctx.n_norm :])
        grad_gate_up_TG = swiglu_backward(swiglu_saved, torch.mm(grad_TD, down))
        grad_x_TD, grad_gain_D = rms_norm_backward(norm_saved, torch.mm(grad_gate_up_TG, gate_up))
        grad_down = torch.mm(grad_TD.t(), hidden_TF)
        return grad_x_TD.add_(grad_TD), grad_gain_D, torch.mm(grad_gate_up_TG.t(), normed_TD), grad_down


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
        normed_TD, norm_saved = rms_norm_forward(x_TD, gain_D)
        routing, route_saved = route_forward(rule, torch.mm(normed_TD, router_weight.t()), bias_E, n_sequences)
        places = sort_by_expert(routing.expert_TK, routing.count_E)
        x_RD = normed_TD.index_select(0, places.token_R)
        hidden_RF, swiglu_saved = swiglu_forward(grouped_linear(x_RD, gate_up_EGD.transpose(-2, -1), places.end_E))
        weight_R1 = routing.weight_TK.view(-1, 1).index_select(0, places.visit_R)
        weighted_RF = hidden_RF * weight_R1
        y_RD = grouped_linear(weighted_RF, down_EDF.transpose(-2, -1), places.end_E)
        y_TD = sum_rows(y_RD, places.place_TK).add_(x_TD)
        shared_saved: tuple[Tensor, ...] = ()
        if shared_gate_up is not None and shared_down is not None:
            shared_TF, shared_swiglu = swiglu_forward(torch.mm(normed_TD, shared_gate_up.t()))
            y_TD.addmm_(shared_TF, shared_down.t())
            shared_saved = (shared_TF, shared_gate_up, shared_down, *shared_swiglu)
        groups = (
            (normed_TD, x_RD, hidden_RF, weight_R1, weighted_RF, router_weight, gate_up_EGD, down_EDF),
            (places.token_R, places.place_TK, places.end_E),
            norm_saved,
            route_saved,
            swiglu_saved,
            shared_saved,
        )
        ctx.rule, ctx.sizes = rule, [len(group) for group in groups]
        ctx.save_for_backward(*(tensor for group in groups for tensor in group))
        ctx.mark_non_differentiable(routing.count_E)
        return y_TD, routing.loss, routing.count_E

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor, grad_loss: Tensor, _: Any) -> Any:
        saved = iter(ctx.saved_tensors)
        own, places, norm_saved, route_saved, swiglu_saved, shared_saved = (
            tuple(next(saved) for _ in range(size)) for size in ctx.sizes
        )
        normed_TD, x_RD, hidden_RF, weight_R1, weighted_RF, router_weight, gate_up_EGD, down_EDF = own
        token_R, place_TK, end_E = places

        grad_RD = grad_TD.index_select(0, token_R)
        grad_down = grouped_outer(grad_RD, weighted_RF, end_E)
        grad_weighted_RF = grouped_linear(grad_RD, down_EDF, end_E)
        grad_weight_R = torch.linalg.vecdot(grad_weighted_RF, hidden_RF)
        grad_gate_up_RG = swiglu_backward(swiglu_saved, grad_weighted_RF.mul_(weight_R1))
        grad_gate_up = grouped_outer(grad_gate_up_RG, x_RD, end_E)
        grad_normed_TD = sum_rows(grouped_linear(grad_gate_up_RG, gate_up_EGD, end_E), place_TK)

        grad_weight_TK = grad_weight_R.index_select(0, place_TK.flatten()).view(place_TK.shape)
        grad_logits_TE = route_backward(ctx.rule, route_saved, grad_weight_TK, grad_loss)
        grad_normed_TD.addmm_(grad_logits_TE, router_weight)
        grad_router = torch.mm(grad_logits_TE.t(), normed_TD)

        grad_shared_gate_up = grad_shared_down = None
        if shared_saved:
            shared_TF, shared_gate_up, shared_down, *shared_swiglu = shared_saved
            grad_shared_down = torch.mm(grad_TD.t(), shared_TF)
            grad_shared_TG = swiglu_backward(tuple(shared_swiglu), torch.mm(grad_TD, shared_down))
            grad_shared_gate_up = torch.mm(grad_shared_TG.t(), normed_TD)
            grad_normed_TD.addmm_(grad_shared_TG, shared_gate_up)
        grad_x_TD, grad_gain_D = rms_norm_backward(norm_saved, grad_normed_TD)
        return (
            grad_x_TD.add_(grad_TD),
            grad_gain_D,
            grad_router,
            grad_gate_up,
            grad_down,
            grad_shared_gate_up,
            grad_shared_down,
            None,
            None,
            None,
        )
