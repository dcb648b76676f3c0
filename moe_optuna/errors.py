"""One kind of error for everything a user wrote: a file, a flag, a search space, a study."""

import difflib
from collections.abc import Iterable
from numbers import Integral

__all__ = ["InputError", "did_you_mean", "of_kind", "whole_number"]


class InputError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what was expected.

    The command line prints it and exits with status 2; a library user catches a ``ValueError``.

    Args:
        message: What was found and what was expected.
        where: The file, key, flag or study that holds it; it leads the line.
    """

    def __init__(self, message: str, *, where: object = None) -> None:
        super().__init__(f"{where}: {message}" if where is not None else message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of the known words, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.66)  # two of three letters: rya, ray
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def whole_number(value: object, name: str, *, least: int = 1) -> int:
    """An argument that is to be an integer, numpy's too, of at least `least`.

    Raises:
        InputError: Where it is not, with the argument's name.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{value!r}, expected an integer of at least {least}", where=name)
    return int(value)


def of_kind(value: object, kind: type, expected: str, *, where: object) -> None:
    """Refuse an argument that is no instance of a class.

    Raises:
        InputError: Where it is not: what it is, and what was expected.
    """
    if not isinstance(value, kind):
        raise InputError(f"a {type(value).__name__}, expected {expected}", where=where)
