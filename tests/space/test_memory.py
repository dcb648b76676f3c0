"""Training memory and traffic, against counted architectures and figures worked out by hand."""

import pytest

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.memory import all_to_all_bytes, training_memory
from moe_optuna.parts import LatentAttention
from moe_optuna.space import Infrastructure, SearchSpace

SMALL = MoEArchitecture(
    d_model=64, n_dense_layers=1, n_moe_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
    n_experts=8, top_k=2, n_shared_experts=1, context_length=128, vocab_size=256,
)  # fmt: skip


def test_states_of_one_device_are_every_parameter_s() -> None:
    memory = training_memory(SMALL, tokens=128)
    parameters = SMALL.full.total_params
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    assert memory.total == sum(value for name, value in memory.to_dict().items() if name != "total")


def test_activations_by_hand() -> None:
    """One dense layer and three with experts, bfloat16, 128 tokens."""
    mixer = 4 * 64 + 2 * 16 * (4 + 2)
    dense = 2 * (mixer + 3 * 192)
    moe = 2 * (mixer + 3 * (2 + 1) * 32 + 2 * 2 * 64) + 2 * 4 * 8
    memory = training_memory(SMALL, tokens=128)
    assert memory.activations == 128 * (dense + 3 * moe)
    assert memory.logits == 128 * 256 * (2 + 4)
    assert training_memory(SMALL, tokens=128, recompute=True).activations == 128 * (2 * 64 * 4 + max(dense, moe))


def test_devices_divide_what_the_rule_says() -> None:
    experts = 3 * 8 * 3 * 64 * 32
    others = SMALL.full.total_params - experts
    ends = 2 * 256 * 64
    plain = training_memory(SMALL, tokens=128, zero=0, data_parallel=4)
    assert plain == training_memory(SMALL, tokens=128, zero=0)
    expert_parallel = training_memory(SMALL, tokens=128, zero=0, expert_parallel=4)
    assert expert_parallel.weights == 2 * (others + experts / 4)
    stages = training_memory(SMALL, tokens=128, zero=0, pipeline_stages=2)
    assert stages.weights == 2 * ((SMALL.full.total_params - ends) / 2 + ends / 2)
    assert stages.activations == plain.activations
    assert training_memory(SMALL, tokens=128, tensor_parallel=2).total == training_memory(SMALL, tokens=128).total / 2
    for stage, part in ((1, "optimizer"), (2, "gradients"), (3, "weights")):
        below, above = (training_memory(SMALL, tokens=128, data_parallel=4, zero=zero) for zero in (stage - 1, stage))
        assert getattr(above, part) == getattr(below, part) / 4
        assert getattr(above, part) * 4 == getattr(training_memory(SMALL, tokens=128), part)


def test_traffic_by_hand() -> None:
    """Dispatch and combine, forward and backward, two experts in three layers, half of them on the other device."""
    assert all_to_all_bytes(2, 64, 3, expert_parallel=2) == 4 * 2 * 2 * 64 * 3 / 2
    assert all_to_all_bytes(2, 64, 3, expert_parallel=1) == 0
    assert all_to_all_bytes(2, 64, 3) == 4 * 2 * 2 * 64 * 3


def test_other_kinds_of_attention_have_memory_too() -> None:
    kind = LatentAttention(kv_rank=32, q_rank=None, d_nope=16, d_rope=8, d_value=16)
    latent = MoEArchitecture(**{**SMALL.to_dict(), "attention": kind, "n_kv_heads": 4, "d_head": 24})
    memory = training_memory(latent, tokens=128)
    assert memory.weights == 2 * latent.full.total_params
    # Queries and keys of 24, values and outputs of 16, in each of four heads.
    moe = 2 * (4 * 64 + 4 * (2 * 24 + 2 * 16) + 3 * 3 * 32 + 2 * 2 * 64) + 64
    dense = 2 * (4 * 64 + 4 * (2 * 24 + 2 * 16) + 3 * 192)
    assert memory.activations == 128 * (dense + 3 * moe)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": 128, "zero": 4}, {"tokens": 128, "data_parallel": 0}])
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        training_memory(SMALL, **wrong)


def test_arrays_of_a_lattice_are_counted_as_its_architectures() -> None:
    space = SearchSpace.load("lab")
    lattice = space.lattice(space.triad(space.allocation(1e14).flops_per_token, 9.0, 5.0))
    cluster = Infrastructure(data_parallel=4, expert_parallel=2, pipeline_stages=2, zero=2, recompute=True)
    memory = cluster.memory(lattice.arrays, space.dimensions)
    traffic = cluster.traffic(lattice.arrays, space.dimensions)
    for row in range(0, len(lattice), 37):
        used = cluster.of(lattice[row], space.dimensions)
        assert memory.total[row] == pytest.approx(used["memory_per_device"], rel=1e-12)
        assert traffic[row] == pytest.approx(used["all_to_all_bytes"], rel=1e-12)
