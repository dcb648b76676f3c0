"""Fully sharded data parallelism (FSDP2, arXiv:2304.11277): each device of a trial keeps a part of every parameter.

What the rest of the engine sees stays whole: a checkpoint holds whole tensors, in the order of the unsharded optimizer,
so that a training may go on with another number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import BETA1, CLIP, EPS

__all__ = ["ShardedAdamW", "flat", "shard", "sharded_strategy", "split", "whole"]


def sharded_strategy(devices: int) -> ModelParallelStrategy:
    """Lightning's strategy, with every device in one group."""
    return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)


def shard(model: MoELanguageModel, mesh: DeviceMesh) -> None:
    """Shard a model in place, each layer and then the rest: each is gathered where it is used, and freed after."""
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Also the root: between training and evaluation its weights change without a step.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "loss")


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what its shards are together; asked of all devices at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Whole tensors, side by side in one as `FlatAdamW` has them."""
    return torch.cat([whole(tensor).flatten() for tensor in tensors])


def split(numbers: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What `flat` gave, as shards of the parameters' kind on their devices."""
    parts = numbers.split([parameter.numel() for parameter in parameters])  # type: ignore[no-untyped-call]
    return [_split_as(part.view(p.shape), p) for part, p in zip(parts, parameters, strict=True)]


def _split_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


class ShardedAdamW(torch.optim.AdamW):
    """What `FlatAdamW` does, for parameters of which this device has a shard.

    Args:
        groups: Parameter groups, each with ``lr`` and ``weight_decay``.
        beta2: Of AdamW's second moment.
    """

    def __init__(self, groups: list[dict[str, Any]], *, beta2: float = 0.95) -> None:
        super().__init__(groups, betas=(BETA1, beta2), eps=EPS, fused=True)
        self.parameters: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]
        self.values: list[Tensor] = [parameter.detach() for parameter in self.parameters]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Whole moments and step count, as `FlatAdamW` gives them."""
        if not self.state:
            return {"moments": torch.zeros(2, sum(p.numel() for p in self.parameters)), "steps": torch.zeros(())}
        first, second = (flat(self.state[p][name] for p in self.parameters) for name in ("exp_avg", "exp_avg_sq"))
        return {"moments": torch.stack([first, second]), "steps": self.state[self.parameters[0]]["step"]}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        first, second = (split(moment, self.parameters) for moment in state_dict["moments"])
        for p, *moments in zip(self.parameters, first, second, strict=True):
            step = state_dict["steps"].clone().to(p.device)
            self.state[p] = {"step": step, **dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))}
