"""What is known of a text once it is read, against the architectures that are to train on it."""

import numpy as np
import pytest
from tiny_space import tiny_space

from moe_optuna import InputError
from moe_optuna.search._checks import check_text
from moe_optuna.search._trial import prepare
from moe_optuna.training import Recipe


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
