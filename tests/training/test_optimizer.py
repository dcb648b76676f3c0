"""The flat optimizer against torch's AdamW after torch's clipping."""

import pytest
import torch

from moe_optuna.training.optimizer import FlatAdamW

SHAPES = [(4, 3), (5,), (2, 2, 2)]
MANY = [(70, 90), (1,), (123, 41)]
"""More than the compiled step takes at once, and no whole number of that."""


def groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [
        {"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": parameters[2:], "lr": 3e-3, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("shapes", "beta2"), [(SHAPES, 0.95), (MANY, 0.995)])
def test_same_steps_as_torch(
    shapes: list[tuple[int, ...]],
    beta2: float,
    threads: int,
    dtype: torch.dtype,
    operations: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two groups, gradients above and below the clip, ten steps; compiled where the type is float32."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    flat = FlatAdamW(groups(mine), beta2=beta2)
    adamw = torch.optim.AdamW(groups(theirs), betas=(0.9, beta2))
    other = "_fused" if operations == "native" and dtype is torch.float32 else "_compiled"
    monkeypatch.setattr(flat, other, lambda gradient: pytest.fail(other))
    for step in range(10):
        flat.zero_grad()
        adamw.zero_grad()
        scale = 10.0 ** (step % 3 - 1)
        target = [torch.randn(p.shape, dtype=dtype) for p in mine]
        for parameters in (mine, theirs):
            sum((scale * t * p).sum() for t, p in zip(target, parameters, strict=True)).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        flat.step()
        adamw.step()
        torch.testing.assert_close(flat.norm.to(dtype), norm, atol=0, rtol=1e-5)
    for one, other_one in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other_one)


def test_threads_change_no_bit(operations: str) -> None:
    """Of the compiled step; and what is not a number stays none."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        mine = [torch.nn.Parameter(torch.randn(shape)) for shape in MANY]
        flat = FlatAdamW(groups(mine))
        for _ in range(3):
            flat.update(torch.randn(flat.values[0].shape))
        found.append(flat.memory.clone())
    if operations == "native":
        assert torch.equal(*found)
    torch.testing.assert_close(*found)
    gradient = torch.full(flat.values[0].shape, 1e-3)
    gradient[0] = float("nan")
    flat.update(gradient)
    assert flat.norm.isnan()
    assert flat.values[0].isnan().all()
