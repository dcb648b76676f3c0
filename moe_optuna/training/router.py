"""The router: which experts a token visits, and with what weight.

Scores in float32; experts are *selected* by score plus a balancing bias and *weighted* by the score alone, renormalised
to add up to one, so that neither the bias nor the number of experts scales the output (DeepSeek-V3, arXiv:2412.19437).

Shapes: B sequences, S context, T = B S tokens, D model width, E experts, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Router", "Routing"]


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


class Router(nn.Module):
    """A linear router.

    Args:
        d_model, n_experts, top_k: Dimensions.
        scores: ``"sigmoid"`` or ``"softmax"``.
        balance_loss, z_loss: Coefficients.
        bias: A learned bias on the logits.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        *,
        scores: str = "sigmoid",
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.top_k, self.scores = top_k, scores
        self.balance_coefficient, self.z_coefficient = balance_loss, z_loss
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        self.bias = nn.Parameter(torch.zeros(n_experts)) if bias else None
        self.selection_bias: Tensor
        self.load: Tensor
        self.register_buffer("selection_bias", torch.zeros(n_experts))
        self.register_buffer("load", torch.zeros(n_experts))

    def forward(self, x_TD: Tensor, n_sequences: int) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            logits_TE = F.linear(x_TD.float(), self.weight.float(), bias)
        score_TE = logits_TE.sigmoid() if self.scores == "sigmoid" else logits_TE.softmax(-1)
        expert_TK = (score_TE.detach() + self.selection_bias).topk(self.top_k, dim=-1, sorted=False).indices
        weight_TK = score_TE.gather(1, expert_TK)
        weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)

        T, E = score_TE.shape
        expert_BS = expert_TK.view(n_sequences, -1)
        count_BE = score_TE.new_zeros(n_sequences, E)
        count_BE.scatter_add_(1, expert_BS, count_BE.new_ones(1, 1).expand_as(expert_BS))
        count_E = count_BE.sum(0)
        loss = score_TE.new_zeros(())
        if self.training:
            self.load += count_E
            if self.balance_coefficient:
                share_TE = score_TE / score_TE.sum(-1, keepdim=True) if self.scores == "sigmoid" else score_TE
                share_BE = share_TE.view(n_sequences, -1, E).sum(1)
                # arXiv:2412.19437, eqs. 17-20: E / (K S) counts times mean shares, the mean over sequences.
                scale = E * n_sequences / (self.top_k * T * T)
                loss = loss + self.balance_coefficient * scale * (count_BE * share_BE).sum()
            if self.z_coefficient:
                loss = loss + self.z_coefficient * logits_TE.logsumexp(-1).square().mean()
        return Routing(expert_TK, weight_TK, count_E, loss)

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Raise the bias of experts that were visited less than the mean since the last call, lower the others'
        (arXiv:2408.15664); once an optimizer step, on counts summed over everything that the step saw."""
        delta = torch.sign(self.load.mean() - self.load).mul_(rate)
        self.selection_bias += delta - delta.mean()
        self.load.zero_()
