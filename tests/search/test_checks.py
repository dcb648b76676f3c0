"""What is known of a space, and of a text once it is read, before anything is trained."""

import numpy as np
import pytest
from here import Here
from tiny_space import tiny_space

from moe_optuna import InputError
from moe_optuna.search import ladder, search
from moe_optuna.search._checks import check_space, check_text
from moe_optuna.search._trial import prepare
from moe_optuna.training import Recipe


def planned(zero, one, two, repeats, **changes):
    return tiny_space(search={"zero": zero, "one": one, "two": two, "repeats": repeats}, **changes)


ONE_BUDGET = {"budgets": [1e9]}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((0, 1, 0, 0), "2 runs in phase 1, at most 1 architecture at one budget"),
        ((1, 1, 1, 1), "2 runs in phase 1, at most 1 architecture at one budget"),
        ((9, 1, 9, 9), "2 runs in phase 1, at most 1 architecture at one budget"),  # M alone, or widths, are no triad
        ((0, [2, 0], 9, 9), "2 runs in phase 1, at most 2 architectures at one budget"),
    ],
)
def test_trials_that_are_too_few_for_a_law_are_told_before_anything_starts(tmp_path, plan, message):
    with pytest.raises(InputError, match=rf"^tiny: \[search\]: {message}; expected at least 3 and 2"):
        search(planned(*plan), out=tmp_path / "out", trial="instant_trials")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("two", "runs"), [(3, "1 run"), (0, "4 runs")])
def test_what_a_phase_has_no_architectures_for_is_no_trial(two, runs):
    axes = tiny_space().to_dict()["axes"] | {"compute_density": [8, 10], "expansion_ratio": [1.8, 2.0]}
    space = planned(0, 9, two, 2, **ONE_BUDGET, axes=axes | {"resolution": 0.1})
    assert len(space.phase_one(1e9).lattice) == 1
    with pytest.raises(InputError, match=f"{runs} in phase 1, at most 1 architecture"):
        check_space(space)


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({"dimensions": tiny_space().to_dict()["dimensions"] | {"d_head": [8, 7]}}, r"\[dimensions\]"),
        ({"scale": [{"compute": 3e10, "d_head": 7}]}, r"\[\[scale\]\]"),
    ],
)
def test_heads_that_no_trial_could_train_are_told_before_anything_starts(tmp_path, changes, table):
    with pytest.raises(InputError, match=rf"^tiny: {table} d_head: 7, expected an even number"):
        search(tiny_space(**changes), out=tmp_path / "out", trial="instant_trials")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("plan", [(0, 3, 0, 0), (0, 2, 0, 1), (1, 3, 1, 1), (3, 1, 0, 4)])
def test_the_fewest_trials_that_can_be_enough_are(tmp_path, monkeypatch, plan):
    monkeypatch.setattr(ladder, "LocalExecutor", Here)
    space = planned(*plan, **ONE_BUDGET)
    assert 1 in search(space, out=tmp_path, trial="instant_trials", workers=1).laws.phases


def check(folder, ids, **training):
    """A text of token ids, a twentieth of it held out, for architectures of 256 ids and windows of 64."""
    np.array(ids, dtype=np.uint16).tofile(folder / "ids.bin")
    recipe = Recipe(data=str(folder / "ids.bin"), **training)
    check_text(tiny_space(), recipe, prepare(recipe.to_dict()))


def test_a_text_that_fits(tmp_path):
    check(tmp_path, [7] * 1300, document_mask=True)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([7] * 1299 + [299], r"\[dimensions\] vocab_size: 256, expected at least the text's 300 token ids"),
        ([7] * 67, "ids.bin: 64 training tokens, expected more than context_length = 64"),
        ([7] * 1280, "ids.bin: 64 held-out tokens, expected more than context_length = 64"),
    ],
)
def test_a_text_that_does_not(tmp_path, ids, message):
    with pytest.raises(InputError, match=message):
        check(tmp_path, ids)


def test_documents_whose_ends_are_not_known(tmp_path):
    recipe = Recipe(data=str(tmp_path / "ids.bin"), document_mask=True)
    with pytest.raises(InputError, match="document_mask: true, but where a document of this text ends is not known"):
        check_text(tiny_space(), recipe, {"end": None})
