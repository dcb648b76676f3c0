"""The router: which experts a token visits, and with what weight.

Scores in float32; experts are *selected* by score plus a balancing bias and *weighted* by the score alone, renormalised
to add up to one, so that neither the bias nor the number of experts scales the output (DeepSeek-V3, arXiv:2412.19437).

Shapes: B sequences, S context, T = B S tokens, D model width, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from moe_optuna.training import native
from moe_optuna.training.kernels import Saved, apply

__all__ = ["Routing", "RoutingRule", "TopKRouter", "balance", "route_backward", "route_forward", "take_loads"]


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How logits become a routing.

    Attributes:
        top_k: K.
        scores: ``"sigmoid"`` or ``"softmax"`` of the logits.
        balance_loss: Coefficient of the sequence-wise balance loss, ``E / (K S) sum_e count_e mean_t(share_te)`` with
            the shares that the scores have of their sum (arXiv:2412.19437, eqs. 17-20), the mean over sequences.
        z_loss: Coefficient of ``mean(logsumexp(logits)^2)`` (arXiv:2202.08906, eq. 5).
    """

    top_k: int
    scores: str = "sigmoid"
    balance_loss: float = 0.0
    z_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Routing:
    """Where tokens go.

    Attributes:
        expert_TK: Experts of each token.
        weight_TK: Their weights, which add up to one for each token.
        count_E: Tokens that visit each expert.
        loss: Balance loss and z-loss, each times its coefficient; a scalar.
    """

    expert_TK: Tensor
    weight_TK: Tensor
    count_E: Tensor
    loss: Tensor


def route_forward(rule: RoutingRule, logits_TE: Tensor, bias_E: Tensor, n_sequences: int) -> tuple[Routing, Saved]:
    """Logits to routing.

    Args:
        rule: How.
        logits_TE: Of the tokens of `n_sequences` sequences, one after the other.
        bias_E: Added to the scores where experts are selected, and nowhere else.
        n_sequences: B.
    """
    T, E = logits_TE.shape
    score_TE = logits_TE.sigmoid() if rule.scores == "sigmoid" else logits_TE.softmax(-1)
    expert_TK = (score_TE + bias_E).topk(rule.top_k, dim=-1, sorted=False).indices
    chosen_TK = score_TE.gather(1, expert_TK)
    sum_T1 = chosen_TK.sum(-1, keepdim=True).add_(1e-20)
    weight_TK = chosen_TK.div_(sum_T1)

    expert_BS = expert_TK.view(n_sequences, -1)
    one = logits_TE.new_ones(()).expand_as(expert_BS)
    count_BE = logits_TE.new_zeros(n_sequences, E).scatter_add_(1, expert_BS, one)

    total_T1 = score_TE.sum(-1, keepdim=True)
    share_TE = score_TE / total_T1
    weigh_BE = count_BE * (rule.balance_loss * E * n_sequences / (rule.top_k * T * T))
    lse_T = logits_TE.logsumexp(-1)
    loss = torch.dot(weigh_BE.flatten(), share_TE.view(n_sequences, -1, E).sum(1).flatten())
    loss = loss.add_(torch.dot(lse_T, lse_T), alpha=rule.z_loss / T)
    saved = (logits_TE, score_TE, expert_TK, weight_TK, sum_T1, share_TE, total_T1, weigh_BE, lse_T)
    return Routing(expert_TK, weight_TK, count_BE.sum(0), loss), saved


def route_backward(rule: RoutingRule, saved: Saved, grad_weight_TK: Tensor, grad_loss: Tensor) -> Tensor:
    """Gradient of the logits, of the gradients of weights and loss."""
    logits_TE, score_TE, expert_TK, weight_TK, sum_T1, share_TE, total_T1, weigh_BE, lse_T = saved
    T, E = logits_TE.shape
    along_T1 = (grad_weight_TK * weight_TK).sum(-1, keepdim=True)
    grad_chosen_TK = (grad_weight_TK - along_T1).div_(sum_T1)
    # Shares are scores over their sum: the part of the balance loss' gradient along the shares drops out.
    weigh_BSE = weigh_BE.unsqueeze(1).mul(grad_loss).expand(-1, T // len(weigh_BE), -1)
    share_BSE = share_TE.view(weigh_BSE.shape)
    along_BS1 = (weigh_BSE * share_BSE).sum(-1, keepdim=True)
    grad_TE = (weigh_BSE - along_BS1).view(T, E).div_(total_T1)
    grad_TE.scatter_add_(1, expert_TK, grad_chosen_TK)
    grad_TE.mul_(score_TE)
    if rule.scores == "sigmoid":
        grad_TE.addcmul_(grad_TE, score_TE, value=-1)
    else:
        grad_TE.addcmul_(score_TE, grad_TE.sum(-1, keepdim=True), value=-1)
    if rule.z_loss:
        softmax_TE = (logits_TE - lse_T.unsqueeze(-1)).exp_()
        grad_TE.addcmul_(softmax_TE, (lse_T * (2 * rule.z_loss / T)).mul_(grad_loss).unsqueeze(-1))
    return grad_TE


class _Route(Function):
    @staticmethod
    def forward(ctx: Any, rule: RoutingRule, logits_TE: Tensor, bias_E: Tensor, n_sequences: int) -> Any:
        routing, saved = route_forward(rule, logits_TE, bias_E, n_sequences)
        ctx.rule = rule
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(routing.expert_TK, routing.count_E)
        return routing.expert_TK, routing.weight_TK, routing.count_E, routing.loss

    @staticmethod
    def backward(ctx: Any, _: Any, grad_weight_TK: Tensor, __: Any, grad_loss: Tensor) -> Any:
        return None, route_backward(ctx.rule, ctx.saved_tensors, grad_weight_TK, grad_loss), None, None


class TopKRouter(nn.Module):
    """A linear router, whose bias on the selection keeps its experts' load even (`balance`).

    Args:
        d_model, n_experts: Dimensions.
        rule: How logits become a routing.
        bias: A learned bias on the logits.
    """

    def __init__(self, d_model: int, n_experts: int, rule: RoutingRule, *, bias: bool = False) -> None:
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        self.bias = nn.Parameter(torch.zeros(n_experts)) if bias else None
        self.selection_bias: Tensor
        self.load: Tensor
        self.register_buffer("selection_bias", torch.zeros(n_experts))
        self.register_buffer("load", torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, n_sequences: int) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            weight_ED = self.weight
            logits_TE = F.linear(x_TD.to(weight_ED.dtype), weight_ED, self.bias)
            routing = Routing(*apply(_Route, self.rule, logits_TE, self.selection_bias, n_sequences))
        self.count(routing.count_E)
        return routing

    def count(self, count_E: Tensor) -> None:
        """Add to the load that the next `take_loads` gives, in training only."""
        if self.training:
            self.load += count_E


@torch.no_grad()
def take_loads(routers: Sequence[TopKRouter]) -> Tensor:
    """Tokens that each expert of each router was given since the last call: (number of routers, E)."""
    loads = [router.load for router in routers]
    load_LE = torch.stack(loads)
    torch._foreach_zero_(loads)
    return load_LE


@torch.no_grad()
def balance(routers: Sequence[TopKRouter], load_LE: Tensor, rate: float | Tensor) -> None:
    """Raise the bias of experts that were visited less than the mean, lower the others' (arXiv:2408.15664); once an
    optimizer step, on loads summed over everything that the step saw."""
    biases = [router.selection_bias for router in routers]
    fits = load_LE.is_contiguous() and all(bias.shape == load_LE.shape[1:] for bias in biases)
    if isinstance(rate, float) and fits and len(biases) == len(load_LE) and native.takes([load_LE, *biases]):
        native.balance(load_LE, biases, rate)
        return
    delta_LE = torch.sign(load_LE.mean(1, keepdim=True) - load_LE)
    delta_LE -= delta_LE.mean(1, keepdim=True)
    torch._foreach_add_(biases, list((delta_LE * rate).unbind()))
