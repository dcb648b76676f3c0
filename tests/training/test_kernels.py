"""The operations with a backward of their own, against autograd's composition and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from moe_optuna.training.attention import rotary_table
from moe_optuna.training.kernels import collect, dispatch, norm_rotate, rms_norm, rotate, swiglu


def test_rms_norm_is_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, gain), F.rms_norm(x, gain.shape, gain, 0.0))
    assert gradcheck(rms_norm, (x, gain))


def test_rotation_turns_pairs_by_their_position() -> None:
    """Against sines and cosines written out; scores depend on the distance of positions only."""
    torch.manual_seed(0)
    S, H, C = 6, 3, 4
    x = torch.randn(2 * S, H, C, dtype=torch.float64, requires_grad=True)
    table = rotary_table(S, H, C).to(torch.complex128)
    turned = rotate(x, table)
    for position, pair in ((0, 0), (5, 1), (3, 0)):
        angle = position * S ** (-2 * pair / C)
        a, b = x[position + S, 1, 2 * pair : 2 * pair + 2]
        expected = torch.stack([a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)])
        torch.testing.assert_close(turned[position + S, 1, 2 * pair : 2 * pair + 2], expected, rtol=0, atol=1e-6)
    same = rotate(torch.ones(S, 1, C, dtype=torch.float64), table[:, : C // 2])
    scores = torch.einsum("qhc,khc->qk", same, same)
    assert scores[1, 0].item() == pytest.approx(scores[5, 4].item(), abs=1e-6)
    assert gradcheck(lambda x: rotate(x, table), (x,))


def test_norm_rotate_is_both() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    table = rotary_table(4, 3, 4).to(torch.complex128)
    torch.testing.assert_close(norm_rotate(x, gain, table), rotate(F.rms_norm(x, (4,), None, 0.0) * gain, table))
    assert gradcheck(lambda x, gain: norm_rotate(x, gain, table), (x, gain))


def test_swiglu_is_its_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(swiglu(x), F.silu(x[:, :5]) * x[:, 5:])
    assert gradcheck(swiglu, (x,))


def test_dispatch_and_collect_are_transposes() -> None:
    torch.manual_seed(0)
    visit = torch.randperm(10)
    place = torch.argsort(visit).view(5, 2)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    rows = dispatch(x, visit // 2, place)
    torch.testing.assert_close(rows, x[visit // 2])
    torch.testing.assert_close((rows * y).sum(), (x * collect(y, visit // 2, place)).sum())
    assert gradcheck(lambda x: dispatch(x, visit // 2, place), (x,))
    assert gradcheck(lambda y: collect(y, visit // 2, place), (y,))
