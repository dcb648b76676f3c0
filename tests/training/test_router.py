"""Routing: selection, weights, losses and balance, against definitions."""

import pytest
import torch
from torch.autograd import gradcheck

from moe_optuna.training import native
from moe_optuna.training.router import RoutingRule, TopKRouter, balance, take_loads


def router_of(rule: RoutingRule, experts: int = 5, width: int = 6) -> TopKRouter:
    torch.manual_seed(0)
    router = TopKRouter(width, experts, rule).double()
    torch.nn.init.normal_(router.weight)
    return router


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_losses_and_weights_are_their_formulas(scores: str, top_k: int) -> None:
    router = router_of(RoutingRule(top_k, scores, balance_loss=0.7, z_loss=0.3))
    x = torch.randn(8, 6, dtype=torch.float64)
    routing = router(x, 2)
    logits = x @ router.weight.T
    score = logits.sigmoid() if scores == "sigmoid" else logits.softmax(-1)
    chosen = score.gather(1, routing.expert_TK)
    assert torch.equal(routing.expert_TK.sort(-1).values, score.topk(top_k).indices.sort(-1).values)
    torch.testing.assert_close(routing.weight_TK, chosen / chosen.sum(-1, keepdim=True))
    balance = torch.zeros((), dtype=torch.float64)
    for sequence in (slice(0, 4), slice(4, 8)):
        count = torch.bincount(routing.expert_TK[sequence].flatten(), minlength=5)
        share = (score / score.sum(-1, keepdim=True))[sequence].mean(0)
        balance += (5 / (top_k * 4) * count * share).sum() / 2
    expected = 0.7 * balance + 0.3 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(routing.loss, expected)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_gradients_by_finite_differences(scores: str) -> None:
    router = router_of(RoutingRule(2, scores, balance_loss=0.7, z_loss=0.3))
    x = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    weight = router.weight.detach().clone().requires_grad_()

    def outputs(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routing = torch.func.functional_call(router, {"weight": weight}, (x, 2))
        return routing.weight_TK, routing.loss

    assert gradcheck(outputs, (x, weight))


def test_bias_selects_but_does_not_weigh() -> None:
    router = router_of(RoutingRule(1))
    router.selection_bias[3] = 10.0
    routing = router(torch.randn(7, 6, dtype=torch.float64), 1)
    assert (routing.expert_TK == 3).all()
    assert torch.equal(routing.weight_TK, torch.ones(7, 1, dtype=torch.float64))


def test_bias_evens_out_a_load_that_is_all_on_one_expert() -> None:
    """A router whose weights send everything to expert 0 is balanced by the bias alone."""
    router = router_of(RoutingRule(1), experts=4)
    with torch.no_grad():
        router.weight.mul_(0.2)[0].add_(1.0)
    x = torch.randn(400, 6, dtype=torch.float64).abs()
    first = router(x, 1).count_E
    assert first[0] > 300
    for _ in range(300):
        router(x, 1)
        balance([router], take_loads([router]), 0.01)
    balanced = router(x, 1).count_E
    assert balanced.std(correction=0) / balanced.mean() < 0.25
    assert router.selection_bias.sum().abs() < 1e-9


def test_each_router_is_balanced_by_its_own_load() -> None:
    """Two at once as one after the other; the loads are taken, and start again at 0."""
    loads = torch.tensor([[4.0, 0, 1, 1], [0, 3, 3, 0]], dtype=torch.float64)
    together, alone = ([router_of(RoutingRule(1), experts=4) for _ in loads] for _ in range(2))
    for routers in (together, alone):
        for router, load in zip(routers, loads, strict=True):
            router.load.copy_(load)
    taken = take_loads(together)
    assert torch.equal(taken, loads)
    assert all(router.load.sum() == 0 for router in together)
    balance(together, taken, 0.1)
    for one, other, load in zip(together, alone, loads, strict=True):
        balance([other], take_loads([other]), 0.1)
        assert torch.equal(one.selection_bias, other.selection_bias)
        raised = one.selection_bias > one.selection_bias.mean()
        assert torch.equal(raised, load < load.mean())


def test_bias_moves_by_the_sign_of_what_is_missing(operations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition in float64; odd numbers of experts, loads at the mean; and by whose operations."""
    torch.manual_seed(0)
    calls = []
    original = native.balance
    monkeypatch.setattr(native, "balance", lambda *a: calls.append("native") or original(*a))
    for experts in (1, 4, 37):
        load = torch.randint(0, 5, (3, experts)).float()
        load[0] = 2
        routers = [TopKRouter(6, experts, RoutingRule(1)) for _ in load]
        for router in routers:
            torch.nn.init.normal_(router.selection_bias)
        before = torch.stack([router.selection_bias for router in routers]).double()
        balance(routers, load, 0.1)
        lean = (load.double().mean(1, keepdim=True) - load).sign()
        expected = before + 0.1 * (lean - lean.mean(1, keepdim=True))
        found = torch.stack([router.selection_bias for router in routers])
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-6)
    assert calls == (["native"] * 3 if operations == "native" else [])
    with pytest.raises(RuntimeError):
        balance(routers, load[:, :-1].contiguous(), 0.1)


def test_load_is_counted_in_training_only() -> None:
    router = router_of(RoutingRule(2))
    router(torch.randn(3, 6, dtype=torch.float64), 1)
    router.eval()
    router(torch.randn(3, 6, dtype=torch.float64), 1)
    assert router.load.sum() == 6
