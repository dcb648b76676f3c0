"""Experts: tokens sorted by expert, two grouped products, and back.

Dropless: no expert has a capacity, so a token's output never depends on the others' choices (with a capacity it does,
on later tokens' too).

Shapes: T tokens, D model width, E experts, F expert width, K experts a token, R = T K rows sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_optuna.training.kernels import collect, dispatch, swiglu
from moe_optuna.training.router import Routing

__all__ = ["Experts", "Places", "grouped_linear", "grouped_outer", "product_path", "sort_by_expert"]


@dataclass(frozen=True, slots=True)
class Places:
    """The permutation between tokens and rows.

    Attributes:
        visit_R: The visit (a token's number times K, plus k) that each row holds.
        token_R: The token of each row.
        place_TK: The row of each token's k-th visit; the inverse of `visit_R`.
        end_E: Row after the last one of each expert, int32.
    """

    visit_R: Tensor
    token_R: Tensor
    place_TK: Tensor
    end_E: Tensor


def sort_by_expert(expert_TK: Tensor, count_E: Tensor) -> Places:
    """One stable sort gives the rows; its inverse gives the way back."""
    T, K = expert_TK.shape
    visit_R = expert_TK.flatten().int().argsort(stable=True)  # a radix sort takes a pass for each byte
    place_R = torch.empty_like(visit_R).scatter_(0, visit_R, torch.arange(T * K, device=visit_R.device))
    return Places(visit_R, visit_R // K, place_R.view(T, K), count_E.cumsum(0, dtype=torch.int32))


def product_path(x: Tensor, weight: Tensor) -> str:
    """Which path the grouped products take: ``"grouped_mm"`` (one kernel) or ``"loop"`` (a product an expert).

    The kernel wants float32, bfloat16 or float16, and strides that are multiples of 16 bytes; on CUDA bfloat16, fewer
    than 1024 experts and a Hopper. On older GPUs torch has none (pytorch #169970), and on Blackwell's experts without
    tokens are reported to get garbage for gradients (pytorch #172439).
    """
    step = 16 // x.element_size()
    aligned = weight.shape[-1] % step == 0 and weight.shape[-2] % step == 0
    dtypes = (torch.bfloat16,) if x.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    fits = aligned and x.dtype in dtypes and not x.is_meta
    if x.is_cuda:
        fits = fits and len(weight) < 1024 and torch.cuda.get_device_capability(x.device)[0] == 9
    return "grouped_mm" if fits else "loop"


def grouped_linear(x_RI: Tensor, weight_EIO: Tensor, end_E: Tensor) -> Tensor:
    """``x_RI[rows of e] @ weight_EIO[e]`` for every expert e: (R, I), (E, I, O) -> (R, O)."""
    if product_path(x_RI, weight_EIO) == "grouped_mm":
        return F.grouped_mm(x_RI, weight_EIO, offs=end_E)
    # unbind, not indexing: the backward of w[e] would build a gradient of the whole stack for every expert.
    return torch.cat([x @ w for x, w in zip(_rows(x_RI, end_E), weight_EIO.unbind(0), strict=True)])


def grouped_outer(y_RO: Tensor, x_RI: Tensor, end_E: Tensor) -> Tensor:
    """``y_RO[rows of e].T @ x_RI[rows of e]``, the gradient of the weights (E, O, I)."""
    if product_path(x_RI, torch.empty(0, y_RO.shape[1], x_RI.shape[1])) == "grouped_mm":
        return F.grouped_mm(y_RO.t(), x_RI, offs=end_E)
    return torch.stack([y.t() @ x for y, x in zip(_rows(y_RO, end_E), _rows(x_RI, end_E), strict=True)])


def _rows(x_RI: Tensor, end_E: Tensor) -> tuple[Tensor, ...]:
    """Each expert's rows."""
    ends = end_E.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return x_RI.split_with_sizes(sizes)


class Experts(nn.Module):
    """SwiGLU experts with their weights in two stacks."""

    def __init__(self, d_model: int, d_expert: int, n_experts: int) -> None:
        super().__init__()
        self.gate_up_EGD = nn.Parameter(torch.empty(n_experts, 2 * d_expert, d_model))
        self.down_EDF = nn.Parameter(torch.empty(n_experts, d_model, d_expert))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        places = sort_by_expert(routing.expert_TK, routing.count_E)
        gate_up_EDG, down_EFD = self.gate_up_EGD.transpose(-2, -1), self.down_EDF.transpose(-2, -1)
        if torch.is_autocast_enabled(x_TD.device.type):  # autocast does not reach the grouped product
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD, gate_up_EDG, down_EFD = x_TD.to(dtype), gate_up_EDG.to(dtype), down_EFD.to(dtype)
        x_RD = dispatch(x_TD, places.token_R, places.place_TK)
        weight_R1 = dispatch(routing.weight_TK.reshape(-1, 1), places.visit_R, places.place_TK.view(-1, 1))
        hidden_RF = swiglu(grouped_linear(x_RD, gate_up_EDG, places.end_E)) * weight_R1.to(x_RD.dtype)
        return collect(grouped_linear(hidden_RF, down_EFD, places.end_E), places.token_R, places.place_TK)
