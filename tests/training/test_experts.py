"""The grouped path against a loop that follows the definition token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from moe_optuna.training.experts import (
    Experts,
    grouped_linear,
    grouped_outer,
    product_path,
    sort_by_expert,
)
from moe_optuna.training.router import Routing


def routing_of(expert_TK: Tensor, weight_TK: Tensor, n_experts: int) -> Routing:
    count = torch.bincount(expert_TK.flatten(), minlength=n_experts)
    return Routing(expert_TK, weight_TK, count, torch.zeros(()))


def by_definition(experts: Experts, x: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
    outputs = []
    for token, chosen, weights in zip(x, expert_TK.tolist(), weight_TK, strict=True):
        visits = []
        for e, weight in zip(chosen, weights, strict=True):
            gate, up = (experts.gate_up_EGD[e] @ token).chunk(2)
            visits.append(weight * (experts.down_EDF[e] @ (F.silu(gate) * up)))
        outputs.append(torch.stack(visits).sum(0))
    return torch.stack(outputs)


CASES = {
    "plain": (24, 8, 8, 4, 2),
    "one expert": (9, 8, 8, 1, 1),
    "every expert": (12, 8, 16, 5, 5),
    "odd widths": (13, 7, 5, 3, 2),
    "one token": (1, 8, 8, 6, 3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("empty", [False, True])
def test_grouped_path_is_the_definition(case: tuple[int, int, int, int, int], empty: bool) -> None:
    """In float64 to 1e-10, forward and backward; `empty` sends nothing to the experts that top_k can spare."""
    T, D, width, E, K = case
    torch.manual_seed(1)
    experts = Experts(D, width, E).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    usable = K if empty else E
    expert_TK = torch.stack([torch.randperm(usable)[:K] for _ in range(T)]) + (E - usable)
    x = torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(T, K, dtype=torch.float64, requires_grad=True)
    inputs = [x, weight, *experts.parameters()]
    upstream = torch.randn(T, D, dtype=torch.float64)

    got = experts(x, routing_of(expert_TK, weight, E))
    expected = by_definition(experts, x, expert_TK, weight)
    assert (got - expected).abs().max() < 1e-10
    for one, other in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_and_loop_agree(dtype: torch.dtype) -> None:
    """The same products by `grouped_mm` and by the loop, an empty expert among them."""
    torch.manual_seed(2)
    x, w = torch.randn(40, 16).to(dtype), torch.randn(5, 24, 16).to(dtype)
    end = torch.tensor([10, 10, 25, 39, 40], dtype=torch.int32)
    assert product_path(x, w) == "grouped_mm"
    assert product_path(x.double(), w.double()) == "loop"
    error = 1e-5 if dtype is torch.float32 else 1e-2
    y = torch.randn(40, 24).to(dtype)
    for got, expected in (
        (grouped_linear(x, w.transpose(1, 2), end), grouped_linear(x.double(), w.double().transpose(1, 2), end)),
        (grouped_outer(y, x, end), grouped_outer(y.double(), x.double(), end)),
    ):
        assert (got.double() - expected).abs().max() < error * expected.abs().max()


def test_paths_by_shape_and_type() -> None:
    x = torch.zeros(4, 8)
    assert product_path(x, torch.zeros(2, 12, 8)) == "grouped_mm"
    assert product_path(x[:, :6], torch.zeros(2, 12, 6)) == "loop"  # rows of 24 bytes, not a multiple of 16
    assert product_path(x.to("meta"), torch.zeros(2, 12, 8, device="meta")) == "loop"


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(3)
    experts = Experts(4, 3, 3).double()
    expert_TK = torch.tensor([[0, 2], [2, 0], [2, 1], [0, 1], [1, 2]])
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    stacks = [torch.randn_like(p, requires_grad=True) for p in experts.parameters()]

    def output(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        values = {"gate_up_EGD": gate_up, "down_EDF": down}
        return torch.func.functional_call(experts, values, (x, routing_of(expert_TK, weight, 3)))

    assert gradcheck(output, (x, weight, *stacks))


def test_sort_is_a_permutation_grouped_by_expert() -> None:
    torch.manual_seed(4)
    expert_TK = torch.stack([torch.randperm(6)[:3] for _ in range(50)])
    count = torch.bincount(expert_TK.flatten(), minlength=6)
    places = sort_by_expert(expert_TK, count)
    flat = expert_TK.flatten()
    assert torch.equal(flat[places.visit_R], flat.sort().values)
    assert torch.equal(places.visit_R[places.place_TK.flatten()], torch.arange(150))
    assert torch.equal(places.end_E, count.cumsum(0).to(torch.int32))


def test_what_a_gpu_has_a_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than 1024 experts in bfloat16, on a Hopper."""
    with FakeTensorMode():
        x = torch.empty(8, 16, dtype=torch.bfloat16, device="cuda")
        weights = {n: torch.empty(n, 16, 8, dtype=torch.bfloat16, device="cuda") for n in (1023, 1024)}
        for major in (8, 9, 10, 12):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=(major, 0): found)
            kernel = "grouped_mm" if major == 9 else "loop"
            assert [product_path(x, w) for w in weights.values()] == [kernel, "loop"]
            assert product_path(torch.empty(8, 16, device="cuda"), weights[1023]) == "loop"
