"""Initial values against what they are to be: sizes by fan-in, orthogonal; and what the positions start to tell."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.parts import GroupedQueryAttention
from moe_optuna.training import MoELanguageModel
from moe_optuna.training.attention import rotary_table
from moe_optuna.training.parameters import initialise

Build = Callable[..., MoEArchitecture]


def assert_orthogonal(matrix: Tensor, std: float) -> None:
    """The vectors of the shorter side are orthogonal and as long as those of so many entries of that deviation."""
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    expected = tall.shape[-2] * std**2
    gram = tall.mT @ tall / expected
    torch.testing.assert_close(gram, torch.eye(tall.shape[-1]).expand_as(gram), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [{}, {"d_model": 24, "d_expert": 56, "d_dense": 16, "n_heads": 4}])
def test_matrices_of_layers_are_orthogonal(architecture: Build, sizes: dict[str, int]) -> None:
    a = architecture(n_dense_layers=1, n_moe_layers=2, tied_embeddings=True, **sizes)  # so without induction heads
    model = MoELanguageModel(a)
    initialise(model, 0)
    outputs = 1 / math.sqrt(2 * a.n_layers)
    for name, matrix in model.layers.named_parameters():
        if matrix.ndim < 2:
            continue
        std = matrix.shape[-1] ** -0.5
        if "down" in name or "output" in name:
            std *= outputs
        elif "router" in name:
            std *= 0.1
        assert_orthogonal(matrix.detach().view(-1, a.d_head, a.d_model) if "qkv" in name else matrix.detach(), std)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("d_model", [2, 16, 24])
def test_embeddings_have_as_much_of_what_they_share_and_differ_alike_in_all_other_directions(
    architecture: Build, d_model: int, tied: bool
) -> None:
    model = MoELanguageModel(architecture(d_model=d_model, tied_embeddings=tied))
    initialise(model, 0)
    embedding_VD = model.embedding.weight.detach().double() * (d_model**0.5 if tied else 1)
    one_V1 = torch.ones(len(embedding_VD), 1, dtype=torch.float64)
    along_D1 = torch.linalg.lstsq(embedding_VD, one_V1).solution  # of which all have one
    torch.testing.assert_close(embedding_VD @ along_D1, one_V1, rtol=0, atol=1e-5)
    shared_D1 = along_D1 / along_D1.norm() ** 2
    assert float(shared_D1.norm()) == pytest.approx(d_model**0.5 / 2, rel=1e-5)
    lengths = torch.linalg.eigvalsh((own_VD := embedding_VD - shared_D1.T).T @ own_VD / len(own_VD))
    torch.testing.assert_close(lengths, (torch.arange(d_model) > 0).double(), rtol=0, atol=1e-4)


def test_a_seed_says_what_every_parameter_is(architecture: Build) -> None:
    """Also of models with biases, which are 0."""
    a = architecture(attention=GroupedQueryAttention(qkv_bias=True, output_bias=True), head_bias=True)
    one, other = MoELanguageModel(a), MoELanguageModel(a)
    for model in (one, other):
        initialise(model, 0)
    for (name, parameter), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same)
        assert name.endswith("bias") != bool(parameter.any())


def test_seeds_draw_other_matrices(architecture: Build) -> None:
    """Of the directions that an orthogonal matrix can have none is preferred: entries are as often below 0 as above."""
    drawn = []
    for seed in range(40):
        model = MoELanguageModel(architecture())
        initialise(model, seed)
        drawn.append(model.layers[-1].attention.rows(-1).detach().flatten())
    drawn_sE = torch.stack(drawn)
    above = (drawn_sE > 0).float().mean(0)
    assert abs(float(above.mean()) - 0.5) < 0.02
    assert above.min() > 0.1  # five standard deviations
    assert above.max() < 0.9


@pytest.mark.parametrize(("S", "C"), [(128, 16), (512, 32), (4096, 128)])
def test_fast_pairs_tell_places_and_slow_ones_find_the_like_anywhere(S: int, C: int) -> None:
    turned = rotary_table(S, 1, C)
    moves = (turned - turned[0]).abs().amax(0) > 0
    assert moves[0]
    assert not moves[-1]
    slowest = turned[:, moves][:, -1]
    back = torch.angle(slowest[1:60] / slowest[0])  # further back the slowest may come round again
    assert (back.diff() > 0).all()
    assert back[0] > 0.03
