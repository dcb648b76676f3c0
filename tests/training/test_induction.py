"""Where heads attend before the first step, taken from queries and keys themselves, on tokens drawn at random."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.training import MoELanguageModel
from moe_optuna.training.attention import Attention
from moe_optuna.training.model import Layer
from moe_optuna.training.parameters import initialise

Build = Callable[..., MoEArchitecture]
KINDS = {
    "one group": {"n_heads": 2, "n_kv_heads": 1, "d_head": 16, "context_length": 128, "d_model": 48},
    "two groups": {"n_heads": 4, "n_kv_heads": 2, "d_head": 32, "context_length": 512, "d_model": 64},
    "own keys": {"n_heads": 2, "n_kv_heads": 2, "d_head": 64, "context_length": 256, "d_model": 96},
}


def patterns(a: MoEArchitecture, token_BS: Tensor, monkeypatch: pytest.MonkeyPatch, seed: int) -> list[Tensor]:
    """Attention of each layer of an initialised model: (B, H, S, S)."""
    model, found = MoELanguageModel(a), []
    initialise(model, seed)
    monkeypatch.setattr(Layer, "can_fuse", lambda self, x: False)

    def keep(attention: Attention, inputs: tuple[Any, ...], _: Tensor) -> None:
        (H, G, C), (x_TD, B, table) = attention.shape, inputs[:3]
        qk = attention.qkv(x_TD)[:, : (H + G) * C]
        qk_BHSC = attention._normed_and_rotated(qk, table).view(B, -1, H + G, C).transpose(1, 2)
        q, k = qk_BHSC[:, :H], qk_BHSC[:, H:].repeat_interleave(H // G, 1)
        scores = (q @ k.transpose(2, 3)) / C**0.5
        S = scores.shape[-1]
        found.append(scores.masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf).softmax(-1))

    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(keep)
    with torch.no_grad():
        model(token_BS)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_heads_copy_before_the_first_step(
    architecture: Build, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer attends to the token before; above, the last head attends to what came after the query's own
    token, at least twice as much as chance has it, in every layer."""
    a = architecture(n_dense_layers=1, n_moe_layers=2, **KINDS[kind])
    torch.manual_seed(seed)
    token_BS = torch.randint(0, a.vocab_size, (8, a.context_length))
    first, *above = patterns(a, token_BS, monkeypatch, seed)
    assert first[:, 0].diagonal(-1, 1, 2).mean() > 0.5
    S = a.context_length
    after_BSS = torch.zeros(8, S, S, dtype=torch.bool)
    after_BSS[:, :, 1:] = token_BS[:, :, None] == token_BS[:, None, :-1]
    after_BSS &= torch.ones(S, S).tril().bool()
    copies = after_BSS.any(-1)
    chance = (after_BSS.sum(-1) / torch.arange(1, S + 1))[copies].mean()
    for pattern in above:
        assert (pattern[:, -1] * after_BSS).sum(-1)[copies].mean() > 2 * chance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_they_copy_is_read(architecture: Build, kind: str, seed: int) -> None:
    """Of a text that comes twice, the token to come has the larger logit by a fifth of their deviation and more, by a
    twentieth where heads of 16 features tell but few tokens apart; by chance none."""
    a = architecture(n_dense_layers=1, n_moe_layers=2, **KINDS[kind])
    model = MoELanguageModel(a)
    initialise(model, seed)
    T = a.context_length // 2
    torch.manual_seed(seed)
    token_BT = torch.stack([torch.randperm(a.vocab_size)[:T] for _ in range(32)])
    with torch.no_grad():
        logit_BTV = model(token_BT.repeat(1, 2))[0].view(32, 2 * T, -1)[:, T:-1]
    deviation_BTV = (logit_BTV - logit_BTV.mean(2, keepdim=True)) / logit_BTV.std(2, keepdim=True)
    found = deviation_BTV.gather(2, token_BT[:, 1:, None]).mean()
    assert found > (0.05 if a.d_head == 16 else 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_a_group_part(architecture: Build, kind: str) -> None:
    """Heads with the same gradients would stay one head however long they are trained."""
    a = architecture(n_dense_layers=1, n_moe_layers=2, **KINDS[kind])
    model = MoELanguageModel(a)
    initialise(model, 0)
    torch.manual_seed(0)
    token_BS = torch.randint(0, a.vocab_size, (4, a.context_length + 1))
    logit_BSV = model(token_BS[:, :-1])[0]
    torch.nn.functional.cross_entropy(logit_BSV.flatten(0, -2), token_BS[:, 1:].flatten()).backward()
    H, C = a.n_heads, a.d_head
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            assert parameter.grad is not None
            gradients = parameter.grad[: H * C].view(H, -1)
            likeness = torch.corrcoef(gradients) - torch.eye(H)
            assert likeness.max() < 0.99


ONE_LAYER = {"n_moe_layers": 0, "d_expert": 0, "n_experts": 0, "top_k": 0, "n_shared_experts": 0}


@pytest.mark.parametrize("changes", [ONE_LAYER, {"qk_norm": False}, {"tied_embeddings": True}])
def test_what_has_no_place_for_them_starts_with_queries_as_keys(architecture: Build, changes: dict[str, Any]) -> None:
    model = MoELanguageModel(architecture(**changes))
    initialise(model, 0)
    for module in model.modules():
        if isinstance(module, Attention):
            assert torch.equal(module.rows(slice(0, 2)), module.rows(2).expand(2, -1, -1))
