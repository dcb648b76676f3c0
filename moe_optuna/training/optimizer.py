"""AdamW over flat memory, with clipping in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from moe_optuna.training import native

__all__ = ["BETA1", "CLIP", "EPS", "FlatAdamW"]

BETA1, EPS = 0.9, 1e-8
CLIP = 1.0  # greatest norm of the gradient


class FlatAdamW(Optimizer):
    """AdamW (arXiv:1711.05101) after clipping the norm of the whole gradient.

    ``torch.optim.AdamW(fused=True)`` after ``clip_grad_norm_`` does the same arithmetic; here parameters and moments of
    a group lie in one piece of memory each, so that a step is a handful of calls, and clipping is a factor inside the
    fused update. Parameters stay what they were: views into the group's memory.

    Args:
        groups: Parameter groups, each with ``lr`` and ``weight_decay``.
        beta2: Of AdamW's second moment.
        beta1, eps: As in AdamW.
        clip: Greatest norm of the gradient.

    Attributes:
        values: All parameters, side by side in one tensor.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        beta2: float = 0.95,
        beta1: float = BETA1,
        eps: float = EPS,
        clip: float = CLIP,
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self.betas, self.eps, self.clip = (beta1, beta2), eps, clip
        self.sizes = [sum(p.numel() for p in group["params"]) for group in self.param_groups]
        example = self.param_groups[0]["params"][0]
        # Rows: values, first and second moments.
        self.memory = torch.zeros(3, sum(self.sizes), dtype=example.dtype, device=example.device)
        self.flat = [part.unbind(0) for part in self.memory.split(self.sizes, dim=1)]  # type: ignore[no-untyped-call]
        self.steps = torch.zeros((), dtype=torch.float32, device=example.device)
        self.norm = torch.zeros((), device=example.device)
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.values = [self.memory[0]]
        with torch.no_grad():
            start = 0
            for parameter in self.parameters:
                value = self.memory[0, start : (start := start + parameter.numel())]
                parameter.data = value.copy_(parameter.flatten()).view(parameter.shape)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(torch.cat([parameter.grad.flatten() for parameter in self.parameters]))
        return loss

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """The step of a gradient that lies as `values`, whatever those of the parameters are."""
        self.steps += 1
        if native.takes([gradient, self.memory]) and gradient.is_contiguous():
            self._compiled(gradient)
        else:
            self._fused(gradient)

    def _compiled(self, gradient: Tensor) -> None:
        loaded: Any = native.library()
        n, values = self.memory.shape[1] * self.memory.element_size(), self.memory.data_ptr()
        rates = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        norm = loaded.adamw(
            len(rates), native.groups(self.sizes, rates), int(self.steps), *self.betas, self.eps, self.clip,
            gradient.data_ptr(), values, values + n, values + 2 * n, torch.get_num_threads(),
        )  # fmt: skip
        self.norm = torch.tensor(norm)

    def _fused(self, gradient: Tensor) -> None:
        self.norm = torch.linalg.vector_norm(gradient)
        shrink = (self.norm / self.clip).clamp_(min=1.0).float()  # the fused update divides gradients by it
        parts: Any = gradient.split(self.sizes)  # type: ignore[no-untyped-call]
        for group, part, (value, first, second) in zip(self.param_groups, parts, self.flat, strict=True):
            torch._fused_adamw_(
                [value],
                [part],
                [first],
                [second],
                [],
                [self.steps],
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=shrink,
                found_inf=None,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; torch's own looks for more than there is here, and takes as long as a small layer."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and step count; parameters are the model's to save."""
        return {"moments": self.memory[1:], "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.memory[1:] = state_dict["moments"]
        self.steps.copy_(state_dict["steps"])
