"""Sharding on processes that are only imagined; real ones train in tests/search/test_training_trials.py."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import FlatAdamW
from moe_optuna.training.parameters import initialise
from moe_optuna.training.sharded import ShardedAdamW, shard, split, whole


def model(a: MoEArchitecture) -> MoELanguageModel:
    built = MoELanguageModel(a)
    initialise(built, 0)
    return built


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    """A mesh of so many processes, of which this is the first and no other runs."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    yield init_device_mesh("cpu", (request.param,))
    dist.destroy_process_group()


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_a_device_keeps_its_part_of_parameters_and_moments(mesh, architecture) -> None:
    network = model(architecture())
    total = sum(p.numel() for p in network.parameters())
    shard(network, mesh)
    own = sum(p.to_local().numel() for p in network.parameters())
    # Rows are shared out whole: the first device has at most one row of each parameter more than its quarter.
    assert total / 4 <= own <= total / 4 + sum(p.numel() // p.shape[0] for p in network.parameters())
    optimizer = ShardedAdamW([{"params": list(network.parameters()), "lr": 1e-3, "weight_decay": 0.1}])
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        assert sum(state[name].to_local().numel() for state in optimizer.state.values()) == own


@pytest.mark.parametrize("mesh", [1], indirect=True)
def test_the_flat_optimizer_s_steps_and_state(mesh, architecture) -> None:
    """Ten steps, with what the flat one saved after five."""
    flat_network, network = model(architecture()), model(architecture())
    flat = FlatAdamW([{"params": list(flat_network.parameters()), "lr": 1e-2, "weight_decay": 0.1}], beta2=0.99)
    shard(network, mesh)

    def sharded() -> ShardedAdamW:
        return ShardedAdamW([{"params": list(network.parameters()), "lr": 1e-2, "weight_decay": 0.1}], beta2=0.99)

    optimizer, generator = sharded(), torch.Generator().manual_seed(0)
    for step in range(10):
        if step == 5:
            optimizer = sharded()
            optimizer.load_state_dict(flat.state_dict())
        for one, other in zip(flat_network.parameters(), network.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator) * 10.0 ** (step % 3 - 1)
            (other.grad,) = split(one.grad.flatten(), [other])
        flat.step()
        optimizer.step()
        for name, value in flat.state_dict().items():
            torch.testing.assert_close(optimizer.state_dict()[name], value)
    for one, other in zip(flat_network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(whole(other), one)
