"""What is looked at before a search begins, so that a fault is told before anything is written that would keep it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_optuna.errors import InputError

if TYPE_CHECKING:
    from moe_optuna.space import SearchSpace
    from moe_optuna.training import Recipe

__all__ = ["check_space", "check_text", "make_folder"]


def check_space(space: SearchSpace) -> None:
    """Refuse a space that a search could not bring to its end.

    Heads must have an even number of features, for rotary positions; every budget and the target must have
    architectures; and the trials and repeats of phase 1 must be enough for its law, which the blueprint needs.

    Raises:
        InputError: Where one of these does not hold, with the place in the space.
    """
    from moe_optuna.laws.ladder import LEAST_RUNS

    heads = [("[dimensions]", space.dimensions.d_head), *(("[[scale]]", each.d_head or ()) for each in space.scale)]
    for table, sizes in heads:
        for size in sizes:
            if size % 2:  # of a list, phase 2 alone would come across it
                raise InputError(
                    f"{size}, expected an even number for rotary positions", where=f"{space.name}: {table} d_head"
                )
    plan = space.search
    runs = differing = 0
    for step, compute in enumerate(space.budgets):
        size = len(space.phase_one(compute).lattice)
        if plan.trials(0, step):  # which may move phase 1 to an M with more architectures
            space.phase_zero(compute)
            size = sys.maxsize
        trials = min(plan.trials(1, step), size)
        repeats = 0 if plan.trials(2, step) else plan.repeated(step)
        untried = int(repeats > 0)  # what is repeated may be one, which is then trained with the search's seed as well
        differing = max(differing, min(trials + untried, size))
        runs += trials + untried + repeats
    space.phase_zero(space.target)  # about the law's M, which the search may move
    if runs < LEAST_RUNS or differing < 2:
        raise InputError(
            f"{runs} run{'s' * (runs != 1)} in phase 1, at most {differing} architecture{'s' * (differing != 1)} at one"
            f" budget; expected at least {LEAST_RUNS} and 2, which a law needs",
            where=f"{space.name}: [search]",
        )


def check_text(space: SearchSpace, recipe: Recipe, text: Mapping[str, Any]) -> None:
    """Refuse a text on which the space's architectures could not train.

    Args:
        space: The search space.
        recipe: Its recipe.
        text: What is known of the text: token ids as ``vocab_size``, ``tokens`` by side, ``end`` of a document.

    Raises:
        InputError: Where the text has more token ids than the vocabulary, a side of it is shorter than the context, or
            documents are to be told apart and their end is not known.
    """
    dimensions = space.dimensions
    if (size := text.get("vocab_size", 0)) > dimensions.vocab_size:
        raise InputError(
            f"{dimensions.vocab_size}, expected at least the text's {size} token ids",
            where=f"{space.name}: [dimensions] vocab_size",
        )
    for side, tokens in text.get("tokens", {}).items():
        if tokens <= dimensions.context_length:
            raise InputError(
                f"{tokens} {side} tokens, expected more than context_length = {dimensions.context_length}",
                where=recipe.data,
            )
    if recipe.document_mask and text.get("end", 0) is None:
        raise InputError("true, but where a document of this text ends is not known", where="document_mask")


def make_folder(folder: Path) -> None:
    """Make the folder of a search.

    Raises:
        InputError: Where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=folder) from None
