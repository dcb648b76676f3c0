"""What `moe-optuna lattice --json` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_optuna.errors import InputError
from moe_optuna.space._space import SearchSpace
from moe_optuna.triad import Triad

__all__ = ["lattice_payload"]


def lattice_payload(
    space: SearchSpace,
    *,
    compute: float | None = None,
    compute_density: float | None = None,
    expansion_ratio: float | None = None,
    flops_per_token: float | None = None,
    active_params: float | None = None,
    total_params: float | None = None,
    list_all: bool = False,
) -> dict[str, Any]:
    """How many architectures of a space meet a triad, and why none does.

    The triad is given by its three numbers; or by a budget, whose M is the allocation law's, and the coordinates of
    phase 1, by default the space's reference.

    Returns:
        `count`, `triad`, `binding`, `reason`, `nearest`, `relaxations`; with `list_all` also `architectures`, each its
        dimensions, counts and ratios.

    Raises:
        InputError: Where the arguments do not make a triad.
    """
    given = {"flops_per_token": flops_per_token, "active_params": active_params, "total_params": total_params}
    other = {"compute": compute, "compute_density": compute_density, "expansion_ratio": expansion_ratio}
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise InputError(f"missing {', '.join(missing)}, expected all three of {', '.join(given)}", where="triad")
        if compute is None:
            raise InputError(f"missing, expected a budget in FLOPs, or {', '.join(given)}", where="compute")
        triad = space.triad(
            space.allocation(compute).flops_per_token,
            space.reference.compute_density if compute_density is None else compute_density,
            space.reference.expansion_ratio if expansion_ratio is None else expansion_ratio,
        )
    elif beside := [name for name, value in other.items() if value is not None]:
        raise InputError("given beside the three numbers of a triad", where=", ".join(beside))
    else:
        triad = Triad(
            **{name: value for name, value in given.items() if value is not None}, tolerances=space.tolerances
        )
    payload = space.explain(triad).to_dict()
    if list_all:
        payload["architectures"] = [row for chunk in space.lattice(triad).chunks() for row in _rows(chunk)]
    return payload


def _rows(chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One plain table for each architecture of a chunk."""
    active = chunk["active_params"]
    ratios = {"compute_density": chunk["flops_per_token"] / active, "expansion_ratio": chunk["total_params"] / active}
    columns = {name: column.tolist() for name, column in (chunk | ratios).items()}
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
