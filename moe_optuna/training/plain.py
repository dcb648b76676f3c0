"""What a fused sublayer is made of, in torch's operations: pairs of forward and backward, on any device and in float64.

`moe_optuna.training.native` does the same for a whole model in C, in float32 on a CPU; this is its fallback, and what
tests hold it to. ``saved`` is what a backward pass reads, known to its own function only.

Shapes: B sequences, S context, T = B S tokens, D model width, H query heads, G key and value heads, C head features, R
rows sorted by expert, E experts, K experts a token, F hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_optuna.training import kernels, router
from moe_optuna.training.experts import grouped_linear, grouped_outer, sort_by_expert
from moe_optuna.training.kernels import (
    Saved,
    norm_rotate_backward,
    norm_rotate_forward,
    rms_norm_forward,
    sum_rows,
    swiglu_backward,
    swiglu_forward,
    turn,
)
from moe_optuna.training.router import RoutingRule, route_backward

__all__ = [
    "attention_backward",
    "attention_forward",
    "entropy_backward",
    "entropy_forward",
    "experts_backward",
    "experts_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "route_backward",
    "route_forward",
    "swiglu_backward",
    "swiglu_forward",
]


def rms_norm_backward(saved: Saved, grad_TD: Tensor, rest_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, to which `rest_TD` is added (the residual's), and of the gain."""
    grad_x_TD, grad_gain_D = kernels.rms_norm_backward(saved, grad_TD)
    return grad_x_TD.add_(rest_TD), grad_gain_D


def attention_forward(
    qkv: Tensor, gains: tuple[Tensor, Tensor] | None, table: Tensor, shape: tuple[int, int, int, int], train: bool
) -> tuple[Tensor, Saved, Any]:
    """Causal attention after norm (with gains of queries and keys, (C,) each) and rotation.

    Args:
        qkv: (T, (H + 2G) C).
        gains: ``None`` for no norm.
        table: Rotary factors, (S, (H + G) C/2).
        shape: B, H, G, C.
        train: Whether there will be a backward pass.

    Returns:
        Output (T, H C), what the backward pass reads, and the graph that it runs.
    """
    B, H, G, C = shape
    qk_THC = qkv[:, : (H + G) * C].contiguous().view(-1, H + G, C)
    saved: Saved
    if gains is None:
        qk_THC, saved = turn(qk_THC, table), (table,)
    else:
        gain_HC = torch.cat([gains[0].expand(H, C), gains[1].expand(G, C)])
        qk_THC, saved = norm_rotate_forward(qk_THC, gain_HC, table)
    qk = qk_THC.view(B, -1, H + G, C).transpose(1, 2)
    leaves = qk[:, :H], qk[:, H:], qkv[:, (H + G) * C :].view(B, -1, G, C).transpose(1, 2)
    # Autograd knows the backward of whichever attention kernel runs: a graph of this one operation is kept.
    with torch.set_grad_enabled(train):
        leaves = tuple(leaf.detach().requires_grad_(train) for leaf in leaves)  # type: ignore[assignment]
        y_BHSC = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=H != G)
    return y_BHSC.detach().transpose(1, 2).reshape(len(qkv), H * C), saved, (y_BHSC, leaves)


def attention_backward(
    saved: Saved, graph: Any, grad_TH: Tensor, shape: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of qkv and of the two gains."""
    (B, H, G, C), T = shape, len(grad_TH)
    y_BHSC, leaves = graph
    grad_q, grad_k, grad_v = torch.autograd.grad(y_BHSC, leaves, grad_TH.view(B, -1, H, C).transpose(1, 2))
    # Into place by hand: `cat` of four dimensions may choose a channels-last order.
    grad_qk_BSHC = grad_TH.new_empty(B, T // B, H + G, C)
    grad_qk_BSHC[:, :, :H] = grad_q.transpose(1, 2)
    grad_qk_BSHC[:, :, H:] = grad_k.transpose(1, 2)
    grad_qk_THC = grad_qk_BSHC.view(T, H + G, C)
    grad_query_gain = grad_key_gain = None
    if len(saved) == 1:
        grad_qk_THC = turn(grad_qk_THC, saved[0].conj())
    else:
        grad_qk_THC, grad_gain_HC = norm_rotate_backward(saved, grad_qk_THC)
        grad_query_gain, grad_key_gain = grad_gain_HC[:H].sum(0), grad_gain_HC[H:].sum(0)
    grad_qkv = torch.cat([grad_qk_THC.view(T, -1), grad_v.transpose(1, 2).reshape(T, G * C)], dim=1)
    return grad_qkv, grad_query_gain, grad_key_gain


def route_forward(
    rule: RoutingRule, logits_TE: Tensor, bias_E: Tensor, n_sequences: int
) -> tuple[Tensor, Tensor, Tensor, Saved, Saved]:
    """Weights (T, K), the routers' loss, tokens of each expert (E,), the places of the experts' rows, and saved."""
    routing, saved = router.route_forward(rule, logits_TE, bias_E, n_sequences)
    places = sort_by_expert(routing.expert_TK, routing.count_E)
    order = (places.visit_R, places.token_R, places.place_TK, places.end_E)
    return routing.weight_TK, routing.loss, routing.count_E, order, saved


def experts_forward(
    x_TD: Tensor, weight_TK: Tensor, places: Saved, gate_up_EGD: Tensor, down_EDF: Tensor, rest_TD: Tensor
) -> tuple[Tensor, Saved]:
    """``rest_TD`` plus the experts' weighted outputs."""
    visit_R, token_R, place_TK, end_E = places
    x_RD = x_TD.index_select(0, token_R)
    hidden_RF, swiglu_saved = swiglu_forward(grouped_linear(x_RD, gate_up_EGD.transpose(-2, -1), end_E))
    weight_R1 = weight_TK.view(-1, 1).index_select(0, visit_R)
    weighted_RF = hidden_RF * weight_R1
    y_RD = grouped_linear(weighted_RF, down_EDF.transpose(-2, -1), end_E)
    return sum_rows(y_RD, place_TK).add_(rest_TD), (x_RD, hidden_RF, weight_R1, weighted_RF, *swiglu_saved)


def experts_backward(
    saved: Saved, places: Saved, gate_up_EGD: Tensor, down_EDF: Tensor, grad_TD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gate_up, down and the weights."""
    x_RD, hidden_RF, weight_R1, weighted_RF, *swiglu_saved = saved
    _, token_R, place_TK, end_E = places
    grad_RD = grad_TD.index_select(0, token_R)
    grad_down = grouped_outer(grad_RD, weighted_RF, end_E)
    grad_weighted_RF = grouped_linear(grad_RD, down_EDF, end_E)
    grad_weight_R = torch.linalg.vecdot(grad_weighted_RF, hidden_RF)
    grad_gate_up_RG = swiglu_backward(tuple(swiglu_saved), grad_weighted_RF.mul_(weight_R1))
    grad_gate_up = grouped_outer(grad_gate_up_RG, x_RD, end_E)
    grad_x_TD = sum_rows(grouped_linear(grad_gate_up_RG, gate_up_EGD, end_E), place_TK)
    grad_weight_TK = grad_weight_R.index_select(0, place_TK.flatten()).view(place_TK.shape)
    return grad_x_TD, grad_gate_up, grad_down, grad_weight_TK


def entropy_forward(logits_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Saved]:
    """Mean cross-entropy [nats per token]."""
    log_TV = logits_TV.log_softmax(-1)
    return F.nll_loss(log_TV, target_T), (log_TV, target_T)


def entropy_backward(saved: Saved, grad_loss: Tensor) -> Tensor:
    """Gradient of the logits."""
    log_TV, target_T = saved
    scale = grad_loss / len(log_TV)
    grad_TV = log_TV.exp().mul_(scale)
    return grad_TV.scatter_add_(1, target_T.unsqueeze(1), -scale.expand(len(log_TV), 1))
