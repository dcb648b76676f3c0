"""`LanguageModelling`: the LightningModule that trains a `MoELanguageModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from moe_optuna.training._recipe import Recipe
from moe_optuna.training.capture import CapturedStep, CudaGraphs, Pace, Recorder
from moe_optuna.training.compiling import uncompiled
from moe_optuna.training.direct import DirectStep
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import FlatAdamW
from moe_optuna.training.parameters import parameter_groups
from moe_optuna.training.router import balance, take_loads
from moe_optuna.training.rules import Hyperparameters

__all__ = ["LanguageModelling"]

_KEEP = 0.98  # of the recent load, a step
_PART = 2**22  # numbers


def recorder_for(module: LanguageModelling) -> Recorder | None:
    """What records the module's steps: on one GPU, in bfloat16, in which its experts' products do not ask for a number
    of rows; elsewhere nothing does, nor before torch 2.13, where a recording that fails leaves the allocator broken."""
    on_one_gpu = module.device.type == "cuda" and module.trainer.world_size == 1
    fits = on_one_gpu and module.trainer.precision == "bf16-mixed" and torch.__version__ >= "2.13"
    return CudaGraphs() if fits and module.recipe.graph and module.model.is_grouped() else None


class LanguageModelling(pl.LightningModule):
    """Next-token cross-entropy with AdamW; balances the routers once an optimizer step.

    The trainer hands over the batches of several optimizer steps at once, so that what it does around a batch is not
    paid for every step.

    Args:
        model: An initialised model.
        recipe, hyper: The trial's settings.
        micro_batches: Forward passes of an optimizer step.
    """

    interrupted: Callable[[], bool] | None = None
    """Asked after each step but the last of a batch: whether to leave the rest."""

    def __init__(self, model: MoELanguageModel, recipe: Recipe, hyper: Hyperparameters, micro_batches: int = 1) -> None:
        super().__init__()
        self.automatic_optimization, self.micro_batches = False, micro_batches
        self.model, self.recipe, self.hyper = model, recipe, hyper
        self.step = 0
        self.average: list[Tensor] = []  # of the optimizer's values
        self._routers = tuple(router for _, router in model.routers())
        a = model.architecture
        self.load_total, self.load_recent = torch.zeros(2, len(self._routers), a.n_experts, dtype=torch.float64)
        self.captured: CapturedStep | None = None
        self.direct: DirectStep | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def sharded(self) -> bool:
        """Whether each device of the trial keeps a part of the parameters."""
        return self.recipe.strategy == "fsdp" and self.trainer.world_size > 1

    def configure_model(self) -> None:
        if self.sharded:
            from moe_optuna.training.sharded import shard

            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.model, self.hyper)
        optimizer: torch.optim.Optimizer
        if self.sharded:
            from moe_optuna.training.sharded import ShardedAdamW

            optimizer = ShardedAdamW(groups, beta2=self.hyper.beta2)
        else:
            optimizer = FlatAdamW(groups, beta2=self.hyper.beta2)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None  # as large as all that the optimizer holds
        return optimizer

    def on_fit_start(self) -> None:
        self.load_total, self.load_recent = self.load_total.to(self.device), self.load_recent.to(self.device)
        self.average = [values.to(self.device) for values in self.average]
        if self.sharded and self.average:
            from moe_optuna.training.sharded import split

            self.average = split(self.average[0], self._values())

    def on_train_start(self) -> None:
        recorder = recorder_for(self)
        if recorder is not None:
            paces = [self._pace(number) for number in range(self.hyper.steps)]
            self.captured = CapturedStep(self._one_step, paces, self.device, recorder, self._forget)
        alone = self.trainer.world_size == 1  # several devices add up the gradients of parameters
        is_direct = alone and self.trainer.precision == "32-true" and self.model.path() == "native"
        self.direct = DirectStep(self.model, self._optimizer) if is_direct else None

    def training_step(self, windows: list[Tensor], batch_index: int) -> None:
        for first in range(0, len(windows), self.micro_batches):
            own = windows[first : first + self.micro_batches]
            if self.captured is not None:
                self.captured(own, self.step)
            else:
                self._one_step(own, self._pace(self.step))
            self.step += 1
            if first + self.micro_batches < len(windows) and self.interrupted is not None and self.interrupted():
                break

    def _pace(self, number: int) -> Pace:
        """Of step `number`, from 0."""
        factor = self.hyper.schedule(number, self.recipe.schedule)
        renewed = 1 / max(1.0, self.recipe.average * (number + 1))
        return Pace(rate=factor, bias=self.recipe.bias_rate * factor, renewed=renewed)

    def _one_step(self, windows: Sequence[Tensor], pace: Pace) -> None:
        """An optimizer step and all that goes with it; nothing in it may depend on a number that the device computes,
        nor on one of Python's that is another in the next step, so that it can be recorded (`capture`)."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * pace.rate
        if self.direct is not None:
            self.direct(*windows)
        else:
            self._descend(windows)
        self._balance(pace.bias)
        if self.recipe.average:
            self._average(pace.renewed)

    def _descend(self, windows: Sequence[Tensor]) -> None:
        for window_BS1 in windows:
            loss, router_loss = self.model.loss(window_BS1[:, :-1], window_BS1[:, 1:])
            self._backward((loss + router_loss) / self.micro_batches)
        self._optimizer.step()
        self._forget()

    def _backward(self, loss: Tensor) -> None:
        """Outside the trainer's autocast, in which the router's products would go back in bfloat16."""
        device = self.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            self.manual_backward(loss)

    def _forget(self) -> None:
        """What is of this step alone: gradients, and of autocast the weights of before it."""
        self._optimizer.zero_grad()
        torch.clear_autocast_cache()

    def _balance(self, rate: float | Tensor) -> None:
        if not self._routers:
            return
        load_LE = take_loads(self._routers)
        if self.trainer.world_size > 1:
            load_LE = self.trainer.strategy.reduce(load_LE, reduce_op="sum")
        self.load_total += load_LE
        self.load_recent.mul_(_KEEP).add_(load_LE)
        balance(self._routers, load_LE, rate)

    @property
    def _optimizer(self) -> Any:
        """As it is, without what Lightning puts around a step."""
        return self.trainer.optimizers[0]

    def _values(self) -> list[Tensor]:
        """What the optimizer changes."""
        return cast(list[Tensor], self._optimizer.values)

    @torch.no_grad()
    def _average(self, renewed: float | Tensor) -> None:
        values = self._values()
        if not self.average:
            self.average = [value.clone() for value in values]
        if isinstance(renewed, Tensor):  # of a recorded step, whose values lie side by side in one tensor
            self.average[0].lerp_(values[0], renewed)
        else:
            torch._foreach_lerp_(self.average, values, renewed)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the averaged weights, where there are any."""
        if not self.average:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Values for averages and back, a part at a time: a copy of all would be the most that a training holds."""
        for pair in zip(self._values(), self.average, strict=True):
            parts: Any = [[one] if self.sharded else one.split(_PART) for one in pair]  # type: ignore[no-untyped-call]
            for own, other in zip(*parts, strict=True):
                kept = own.clone()
                own.copy_(other)
                other.copy_(kept)

    def held_out_loss(self, windows: Tensor, sequences: int) -> float:
        """Mean loss [nats per token] on held-out windows (n, context_length + 1), `sequences` at a time, shared among
        the devices of the trial."""
        try:
            return self._held_out_loss(windows, sequences)
        except torch.OutOfMemoryError as error:  # a recorded step keeps its memory for itself
            reason, *_ = str(error).splitlines()
            if self.captured is None or not self.captured.give_up(reason):
                raise
        torch.cuda.empty_cache()
        return self._held_out_loss(windows, sequences)

    @torch.no_grad()
    def _held_out_loss(self, windows: Tensor, sequences: int) -> float:
        self.model.eval()
        rank, world = self.trainer.global_rank, self.trainer.world_size
        total = torch.zeros(2, device=self.device, dtype=torch.float64)
        with uncompiled(self.model), self.averaged(), self.trainer.precision_plugin.forward_context():
            own = windows[rank::world].to(self.device)
            for first in range(0, len(windows[::world]), sequences):
                batch = own[first : first + sequences]
                # Where shards are gathered, every device makes as many forward passes as the others.
                weight, batch = len(batch), batch if len(batch) else windows[:1].to(self.device)
                loss, _ = self.model.loss(batch[:, :-1], batch[:, 1:])
                total[0] += loss * weight
                total[1] += weight
        self.model.train()
        if world > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return float(total[0] / total[1])

    def load_diagnostics(self) -> dict[str, float]:
        """How evenly the experts were loaded.

        For each layer with a router the coefficient of variation of the load over the whole training, and the visits
        that no expert took (none is ever dropped: this counts, rather than trusts); the greatest of the former; and
        how many routers have collapsed: over the last fifty steps or so the effective number of experts, which is the
        exponential of the load's entropy, is at most half of their number.
        """
        found: dict[str, float] = {}
        visits = self.step * self.hyper.sequences * self.model.architecture.context_length
        collapsed = 0
        layers = [index for index, _ in self.model.routers()]
        for index, load, recent in zip(layers, self.load_total, self.load_recent, strict=True):
            found[f"load_cv_layer_{index}"] = float(load.std(correction=0) / load.mean().clamp(min=1e-9))
            found[f"dropped_layer_{index}"] = visits * self.model.architecture.top_k - float(load.sum())
            effective = torch.special.entr(recent / recent.sum().clamp(min=1e-9)).sum().exp()
            collapsed += bool(self.step and effective <= 0.501 * len(recent))
        if found:
            found["load_cv"] = max(value for name, value in found.items() if name.startswith("load_cv"))
            found["collapsed_routers"] = collapsed
        return found

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs, whole: where parameters are sharded, every device is to ask."""
        model, average = self.model.state_dict(), self.average
        if self.sharded:
            from moe_optuna.training.sharded import flat, whole

            model = {name: whole(weight) for name, weight in model.items()}
            average = [flat(average)] if average else []
        return {
            "step": self.step,
            "model": model,
            "average": average,
            "load_total": self.load_total,
            "load_recent": self.load_recent,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; before the trainer starts."""
        self.step, self.average = state["step"], state["average"]
        self.load_total, self.load_recent = state["load_total"], state["load_recent"]
        self.model.load_state_dict(state["model"])
        self._optimizer_state = state["optimizer"]
