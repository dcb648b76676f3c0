"""The rule against the laws that it names, and the schedule against its definition."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.laws.published import PUBLISHED
from moe_optuna.training import Recipe
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.parameters import parameter_groups
from moe_optuna.training.rules import EMBEDDING_FACTOR, Hyperparameters, hyperparameters, rate_factor

Build = Callable[..., MoEArchitecture]


@pytest.mark.parametrize("tokens", [2e9, 1e10, 1e11])
def test_the_batch_follows_the_published_law(architecture: Build, tokens: float) -> None:
    """Step law's, over all of its range: of about as many tokens, on the side of more steps."""
    a = architecture()
    hyper = hyperparameters(a, compute=1e19, tokens=int(tokens), recipe=Recipe())
    published = float(PUBLISHED["step_batch"](tokens))
    assert 0.5 < hyper.sequences * a.context_length / published < 1


def test_the_batch_is_whole_sequences_of_every_device(architecture: Build) -> None:
    a = architecture()
    for devices in (1, 3):
        hyper = hyperparameters(a, compute=1e13, tokens=10**6, recipe=Recipe(), multiple=devices)
        assert hyper.sequences % devices == 0
        per_step = hyper.sequences * a.context_length
        assert abs(hyper.steps * per_step - 10**6) <= per_step / 2


@pytest.mark.parametrize(
    ("compute", "narrowest", "widest", "published"),
    [
        (1e18, 288, 744, 1.20e-3),
        (3e18, 456, 1000, 1.00e-3),
        (1e19, 648, 1272, 8.28e-4),
        (3e19, 832, 1736, 6.95e-4),
        (1e20, 1024, 1864, 5.74e-4),
        (3e20, 1248, 2200, 4.82e-4),
    ],
)
def test_the_rate_is_near_the_published_one(
    architecture: Build, compute: float, narrowest: int, widest: int, published: float
) -> None:
    """arXiv:2603.21862: its one rate for all matrices, the batch and the widths that it swept at each budget."""
    tokens, batch = PUBLISHED["holistic_tokens"](compute), PUBLISHED["holistic_batch"](compute)
    recipe = Recipe(batch_tokens=round(float(batch)))
    hyper = hyperparameters(architecture(), compute=compute, tokens=round(float(tokens)), recipe=recipe)
    middle = round(math.sqrt(narrowest * widest))
    assert hyper.learning_rate * rate_factor(middle) == pytest.approx(published, rel=0.25)


def test_the_rate_goes_with_the_root_of_the_batch(architecture: Build) -> None:
    a = architecture(context_length=128)
    one, four = (
        hyperparameters(a, compute=1e11, tokens=10**6, recipe=Recipe(batch_tokens=tokens)) for tokens in (128, 512)
    )
    assert (one.sequences, four.sequences) == (1, 4)
    assert four.learning_rate == pytest.approx(2 * one.learning_rate)
    stated = hyperparameters(a, compute=1e11, tokens=10**6, recipe=Recipe(batch_tokens=512, learning_rate=0.01))
    assert stated.learning_rate == 0.01


@pytest.mark.parametrize("batch", [2**8, 2**17, 2**19, 2**22])
def test_the_second_moment_forgets_half_in_ten_million_tokens(architecture: Build, batch: int) -> None:
    """arXiv:2507.07101; in fewer where those are more than 140 steps, in more where they are fewer than AdamW's 14."""
    a = architecture(context_length=128)
    beta2 = hyperparameters(a, compute=1e19, tokens=10**9, recipe=Recipe(batch_tokens=batch)).beta2
    steps = math.log(0.5) / math.log(beta2)
    wanted = min(max(1e7 / batch, math.log(0.5) / math.log(0.95)), math.log(0.5) / math.log(0.995))
    assert steps == pytest.approx(wanted)
    stated = Recipe(batch_tokens=batch, beta2=0.98)
    assert hyperparameters(a, compute=1e19, tokens=10**9, recipe=stated).beta2 == 0.98


def test_the_same_for_every_architecture_but_for_widths(architecture: Build) -> None:
    rules = [
        hyperparameters(a, compute=1e12, tokens=10**6, recipe=Recipe())
        for a in (architecture(), architecture(d_model=64, n_moe_layers=3, n_experts=8, top_k=1, d_expert=32))
    ]
    assert rules[0] == rules[1]


def test_rates_by_fan_in(architecture: Build) -> None:
    """A quarter of the fan-in has 4^0.7 times the rate; what is not a matrix has the rule's rate and no weight decay,
    an embedding a multiple of it unless it is the head as well."""
    model = MoELanguageModel(architecture(d_model=64, d_expert=16))
    tied = MoELanguageModel(architecture(tied_embeddings=True))
    hyper = hyperparameters(model.architecture, compute=1e12, tokens=10**6, recipe=Recipe())
    found = {id(p): g for g in parameter_groups(model, hyper) for p in g["params"]}
    assert len(found) == sum(1 for _ in model.parameters())
    experts, norm = model.layers[1].block.experts, model.norm.gain
    wide, narrow = found[id(experts.gate_up_EGD)], found[id(experts.down_EDF)]
    assert narrow["lr"] == pytest.approx(4**0.7 * wide["lr"])
    found |= {id(p): g for g in parameter_groups(tied, hyper) for p in g["params"]}
    for plain, factor in ((norm, 1), (tied.embedding.weight, 1), (model.embedding.weight, EMBEDDING_FACTOR)):
        assert found[id(plain)]["lr"] == factor * hyper.learning_rate
        assert found[id(plain)]["weight_decay"] == 0
    assert wide["weight_decay"] == 0.1


def test_schedules() -> None:
    """WSD: a trapezoid that ends one step above zero; two budgets share their stable part. Cosine: half a wave."""
    short = Hyperparameters(1.0, 1, 100, 0.1, 0.95, warmup_steps=10, decay_steps=40)
    factors = np.array([short.schedule(step, "wsd") for step in range(100)])
    np.testing.assert_allclose(factors, np.minimum.reduce([
        np.arange(1, 101) / 10, np.ones(100), np.arange(100, 0, -1) / 40
    ]))  # fmt: skip
    longer = Hyperparameters(1.0, 1, 250, 0.1, 0.95, warmup_steps=10, decay_steps=100)
    assert [longer.schedule(step, "wsd") for step in range(60)] == factors[:60].tolist()
    wave = np.array([short.schedule(step, "cosine") for step in range(10, 100)])
    np.testing.assert_allclose(wave[1:] + wave[:0:-1], 1)  # a half wave is odd about its middle
    assert wave[0] == 1
    assert 0 < wave[-1] < 1e-3


@pytest.mark.parametrize(
    ("compute", "tokens", "where"), [(-1e8, 640, "compute"), (math.nan, 640, "compute"), (1e8, 0, "tokens")]
)
def test_a_budget_that_is_none_is_refused(architecture: Build, compute: float, tokens: int, where: str) -> None:
    with pytest.raises(InputError, match=f"{where}: .*expected"):
        hyperparameters(architecture(), compute=compute, tokens=tokens, recipe=Recipe())
