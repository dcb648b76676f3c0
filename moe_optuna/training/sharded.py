"""Fully sharded data parallelism (FSDP2, arXiv:2304.11277): each device of a trial keeps a part of every parameter.

What the rest of the engine sees stays whole: a checkpoint holds whole tensors, in the order of the unsharded optimizer,
so that a training may go on with another number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import BETAS, CLIP, EPS

__all__ = ["ShardedAdamW", "shard", "sharded_strategy", "split_as", "whole"]


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


def split_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor sharded as a sharded parameter is, on its device."""
    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


class ShardedAdamW(torch.optim.AdamW):
    """What `FlatAdamW` does, for parameters of which this device has a shard.

    Args:
        groups: Parameter groups, each with ``lr`` and ``weight_decay``.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, betas=BETAS, eps=EPS, fused=True)
        self.parameters: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Whole moments and step count, as `FlatAdamW` gives them."""
        if not self.state:
            return {"moments": torch.zeros(2, sum(p.numel() for p in self.parameters)), "steps": torch.zeros(())}
        first, second = (self._flat(self.state[p][name] for p in self.parameters) for name in ("exp_avg", "exp_avg_sq"))
        return {"moments": torch.stack([first, second]), "steps": self.state[self.parameters[0]]["step"]}

    @staticmethod
    def _flat(moments: Iterable[Tensor]) -> Tensor:
        return torch.cat([whole(moment).flatten() for moment in moments])

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        start = 0
        for p in self.parameters:
            first, second = state_dict["moments"][:, start : start + p.numel()]
            start += p.numel()
            self.state[p] = {
                "step": state_dict["steps"].clone().to(p.device),
                "exp_avg": split_as(first.view(p.shape), p),
                "exp_avg_sq": split_as(second.view(p.shape), p),
            }
