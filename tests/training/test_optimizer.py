"""The flat optimizer against torch's AdamW after torch's clipping."""

import torch

from moe_optuna.training.optimizer import FlatAdamW


def test_same_steps_as_torch() -> None:
    """Two groups, gradients above and below the clip, ten steps."""
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2, 2)]
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]

    def groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
        return [
            {"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.1},
            {"params": parameters[2:], "lr": 3e-3, "weight_decay": 0.0},
        ]

    flat = FlatAdamW(groups(mine))
    adamw = torch.optim.AdamW(groups(theirs), betas=(0.9, 0.95))
    for step in range(10):
        flat.zero_grad()
        adamw.zero_grad()
        scale = 10.0 ** (step % 3 - 1)
        target = [torch.randn(p.shape) for p in mine]
        for parameters in (mine, theirs):
            sum((scale * t * p).sum() for t, p in zip(target, parameters, strict=True)).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        flat.step()
        adamw.step()
        torch.testing.assert_close(flat.norm, norm)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
