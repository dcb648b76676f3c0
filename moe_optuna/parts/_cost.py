"""What a part costs, and the check of its fields that all parts share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from moe_optuna.errors import InputError

__all__ = ["Cost", "Part"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one copy of a part holds, and the products that it computes for a token.

    Attributes:
        matrices: Parameters that multiply every token that visits: 2 FLOPs each forward, 4 backward.
        vectors: Norm gains, biases, sinks: held, but no matrix product.
        table: Parameters that are only looked up.
        pair_width: Features multiplied for each (query, key) pair, queries times keys and weights times values
            together, over all heads.
        index_width: Features multiplied for each pair of the whole causal context, whatever the window: those of an
            indexer that chooses the keys.
        window: Keys that a query can see, itself included; ``None`` for the whole causal context.
        chunk: Tokens of the blocks that the context is cut into, no query sees another block; ``None`` for no blocks.
        idle: Parameters of experts inside the part that a token does not visit.
        state: Multiply-adds for a token that involve no parameter and do not grow with the context (the state of a
            recurrent mixer); like `pair_width`, 2 FLOPs each forward, 4 backward.
    """

    matrices: int = 0
    vectors: int = 0
    table: int = 0
    pair_width: int = 0
    index_width: int = 0
    window: int | None = None
    chunk: int | None = None
    idle: int = 0
    state: int = 0

    @property
    def active(self) -> int:
        """Parameters of one copy that a token visits."""
        return self.matrices + self.vectors + self.table

    @property
    def parameters(self) -> int:
        """All parameters of one copy."""
        return self.active + self.idle


class Part:
    """Base of the parts: refuses a field that does not fit its annotation.

    Integers are at least 0, optional ones at least 1 (their absence is ``None``).

    Raises:
        InputError: Naming the field, its value and what was expected.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):  # type: ignore[arg-type]  # every part is a dataclass
            value = getattr(self, field.name)
            if expected := _mismatch(value, hints[field.name]):
                raise InputError(f"{value!r}, expected {expected}", where=field.name)


def _mismatch(value: object, hint: Any) -> str | None:
    """What was expected where the value does not fit the hint."""
    if get_origin(hint) is Literal:
        options = get_args(hint)
        return None if value in options else f"one of {', '.join(map(repr, options))}"
    if isinstance(hint, UnionType) and NoneType in get_args(hint):
        fits = value is None or (type(value) is int and value > 0)
        return None if fits else "an integer of at least 1, or null"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if type(value) is int and value >= 0 else "an integer of at least 0"
    return None
