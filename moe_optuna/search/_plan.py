"""From a compute budget and the laws to one architecture, its band, and others that are as good.

The laws give the triad; the search space gives every integer architecture that meets it; the laws give the predicted
excess of loss of each over the least, and the best one is the blueprint. Alternatives are those within the
near-optimal band's 0.1 % of the blueprint's loss that suit the hardware better in some way that the loss does not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, of_kind
from moe_optuna.laws import BAND, with_ratios
from moe_optuna.memory import all_to_all_bytes
from moe_optuna.search.blueprint import QUANTITIES, Alternative, Blueprint, Span
from moe_optuna.triad import Tolerances, Triad

if TYPE_CHECKING:
    from moe_optuna.laws import LadderLaws
    from moe_optuna.space import SearchSpace

__all__ = ["plan"]

MOST = 500_000  # architectures that are looked through
AXES = ("compute_density", "expansion_ratio", "d_model")
DEVIATION = 1e-3  # decides between architectures of the same predicted loss: the nearer to the triad the better

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.int64]]


def plan(compute: float, *, laws: LadderLaws | None = None, space: SearchSpace | None = None) -> Blueprint:
    """The architecture for a compute budget.

    Example::

        moe_optuna.plan(3e20).architecture

    Args:
        compute: Training FLOPs, inside or beyond the laws' ladder.
        laws: Those of a search of one's own; the published holistic laws by default.
        space: Where architectures are from; by default that of the laws, by name.

    Raises:
        InputError: Where an argument is of another kind, compute is not a positive finite number, the laws give no
            triad at it, or no architecture of the space is near.
    """
    from moe_optuna.laws import LadderLaws
    from moe_optuna.space import SearchSpace

    if isinstance(compute, bool) or not isinstance(compute, Real) or not math.isfinite(compute) or compute <= 0:
        raise InputError(f"{compute!r}, expected a positive finite number of training FLOPs", where="compute")
    compute = float(compute)
    if laws is not None:
        of_kind(laws, LadderLaws, "laws, such as `LadderLaws.load` reads from a laws.json", where="laws")
    if space is not None:
        of_kind(space, SearchSpace, "a search space, such as `SearchSpace.load` reads", where="space")
    laws = laws or LadderLaws.published()
    if space is None:
        if laws.space is None:
            raise InputError("none, and the laws name none, expected the space that they are of", where="space")
        try:
            space = SearchSpace.load(laws.space)
        except InputError:
            raise InputError(
                f"none, expected that of the laws, {laws.space}, which is no ready one", where="space"
            ) from None

    flops, _ = laws.predict("flops_per_token", compute)
    spans = {name: laws.predict(name, compute)[1] for name in dict.fromkeys((*QUANTITIES, *laws.axes_known))}
    intervals = {name: span for name, span in spans.items() if span[0] < span[1]}  # else the law has no uncertainty
    density, ratio = (laws.predict(name, compute)[0] for name in AXES[:2])
    try:
        wanted = Triad.at(flops, density, ratio, space.tolerances)
    except InputError as error:
        raise InputError(f"the laws give no triad there ({error})", where=f"compute {compute:.3g}") from None
    triad, candidates, total, notes = _candidates(space, laws, compute, wanted)
    excess = _excess(laws, compute, candidates)
    score = excess + DEVIATION * _deviation(candidates, triad)
    best = int(score.argmin())

    loss = None
    if laws.knows_loss:
        times = 1 + float(excess[best])
        least, (low, high) = laws.predict("loss", compute)
        loss, intervals["predicted_loss"] = least * times, (low * times, high * times)
    bands = {axis: laws.band(axis, compute) for axis in AXES if axis in laws.axes_known}
    architecture = _architecture(space, candidates, best)
    looked = len(score) if len(score) < total else None
    return Blueprint(
        compute=compute,
        flops_per_token=flops,
        tokens=compute / flops,
        triad=triad,
        architecture=architecture,
        band={axis: edges for axis, (edges, *_) in bands.items()},
        band_intervals={axis: (low, high) for axis, (_, low, high) in bands.items()},
        alternatives=_alternatives(space, laws, compute, candidates, score, best),
        predicted_loss=loss,
        no_loss=None if laws.knows_loss else "the laws do not give the loss itself",
        intervals=intervals,
        source=laws.source,
        space=space.name,
        notes=(
            *_reach(laws, compute),
            *notes,
            *_outside(architecture, bands, looked, met=triad is wanted),
            *_above(space, laws, compute, architecture, float(excess[best]), looked),
        ),
        held_out=laws.held_out,
    )


def _outside(
    architecture: MoEArchitecture, bands: Mapping[str, tuple[Span, ...]], looked: int | None, *, met: bool
) -> list[str]:
    """Where the architecture lies outside of a band: the lattice, or of a large one the part that was looked through,
    holds nothing better at its triad, which is the laws' or, not `met`, another."""
    why = "the band goes with the triad of the laws, which the space does not have"
    if met:
        them = f"{looked} nearest to" if looked else "architectures that meet"
        why = f"of the {them} the triad, those inside, if any, have a greater predicted loss"
    return [
        f"{axis} {value:.4g} lies outside its near-optimal band, {low:.4g} to {high:.4g}: {why}"
        for axis, ((low, high), *_) in bands.items()
        if not low <= (value := getattr(architecture, axis)) <= high
    ]


def _above(
    space: SearchSpace,
    laws: LadderLaws,
    compute: float,
    architecture: MoEArchitecture,
    excess: float,
    looked: int | None,
) -> list[str]:
    """How far the architecture is from the laws' optimum, where that is more than the band: by which axis most, and
    which ranges of the space it exhausts."""
    if excess <= BAND:
        return []
    values = {axis: getattr(architecture, axis) for axis in AXES if axis in laws.axes_known}
    parts = {axis: float(laws.excess(compute, {axis: [value]})[0, 0]) for axis, value in values.items()}
    most = max(parts, key=lambda axis: parts[axis])
    none = f"none of the {looked} nearest to the triad" if looked else "no architecture that meets the triad"
    notes = [
        f"its predicted loss is {excess:.2%} above the least that the laws allow, most of it by {most}, "
        f"{values[most]:.4g} where the laws have {laws.predict(most, compute)[0]:.4g}: {none} is within {BAND:.1%}"
    ]
    rules = space.rules(architecture.non_embedding.flops_per_token)
    limits = rules.solved
    steps = {"d_model": limits.d_model.multiple, "d_expert": limits.d_expert.multiple}
    for name, step in (steps | {"n_layers": rules.infrastructure.pipeline_stages}).items():
        if (value := getattr(architecture, name)) + step > getattr(limits, name).high:
            notes.append(f"{name} {value} is the most that the space allows")
    return notes


def _candidates(
    space: SearchSpace, laws: LadderLaws, compute: float, wanted: Triad
) -> tuple[Triad, Columns, int, list[str]]:
    """The architectures that meet the wanted triad; where none does, those of the best triad of the space that some
    meet. With how many meet it, since of very many only the nearest are looked through.
    """
    found, total = _lattice(space, wanted)
    if total:
        return wanted, found, total, []
    try:
        cells = space.phase_one(compute, flops_per_token=wanted.flops_per_token)
    except InputError:  # which speaks of the middle of the phase's axes, and nobody asked for that
        where = f"{space.name} at {compute:.3g} FLOPs"
        raise InputError(str(space.explain(wanted)), where=where) from None
    excess = _excess(laws, compute, cells.lattice.arrays)
    for index in np.argsort(excess)[:20]:
        triad = cells.triad_of(int(index))
        found, total = _lattice(space, triad)
        if total:
            note = (
                f"no architecture of the space has compute_density {wanted.compute_density:.4g} and expansion_ratio "
                f"{wanted.expansion_ratio:.4g}; that of the least predicted loss is held to "
                f"{triad.compute_density:.4g} and {triad.expansion_ratio:.4g} within the tolerances"
            )
            return triad, found, total, [note]
    raise InputError(
        f"no architecture of the space {space.name} near flops_per_token {wanted.flops_per_token:.4g}, compute_density "
        f"{wanted.compute_density:.4g}, expansion_ratio {wanted.expansion_ratio:.4g}",
        where=f"compute {compute:.4g}",
    )


def _lattice(space: SearchSpace, triad: Triad) -> tuple[Columns, int]:
    """The architectures that meet a triad as columns, and their number; of more than MOST the nearest to it alone, by
    ever closer tolerances, at least the nearest one of each width."""
    lattice, share = space.lattice(triad), 1.0
    total = len(lattice)
    while len(lattice) > MOST:
        share *= 0.7
        closer = Tolerances(*(share * tolerance for tolerance in astuple(triad.tolerances)))
        lattice = space.lattice(replace(triad, tolerances=closer))
    if len(lattice) or not total:
        return lattice.arrays, total
    return space.phase_two(triad).lattice.arrays, total


def _excess(laws: LadderLaws, compute: float, columns: Columns) -> Floats:
    """Predicted excess of loss over the least, (m,)."""
    return np.asarray(laws.excess(compute, with_ratios(columns))[0])


def _deviation(columns: Columns, triad: Triad) -> Floats:
    """Sum of squared relative deviations from the triad, (m,)."""
    return np.asarray(sum((columns[name] / target - 1) ** 2 for name, target in triad.targets.items()))


# What hardware likes: its name, whether an architecture has it (m,), what counts among those (m,), None for the loss.
_Wish = tuple[str, Callable[[Columns], NDArray[np.bool_]], Callable[[Columns], Floats] | None]


def _all_to_all(columns: Columns) -> Floats:
    """Bytes that a token sends between devices in training with every expert elsewhere."""
    return np.asarray(all_to_all_bytes(*(columns[name] for name in ("top_k", "d_model", "n_moe_layers"))))


def _layers(columns: Columns) -> NDArray[np.int64]:
    return np.asarray(columns["n_dense_layers"] + columns["n_moe_layers"])


def _multiple(name: str, number: int) -> _Wish:
    return f"{name} is a multiple of {number}", lambda columns: columns[name] % number == 0, None


def _every(columns: Columns) -> NDArray[np.bool_]:
    return np.ones(len(columns["d_model"]), bool)


_WISHES: tuple[tuple[_Wish, ...], ...] = (
    (_multiple("d_model", 256), _multiple("d_model", 128), _multiple("d_model", 64)),
    (_multiple("d_expert", 128), _multiple("d_expert", 64), _multiple("d_expert", 32)),
    (
        ("layers divide into 8 pipeline stages", lambda columns: _layers(columns) % 8 == 0, None),
        ("layers divide into 4 pipeline stages", lambda columns: _layers(columns) % 4 == 0, None),
    ),
    (
        (
            "d_model and d_expert are multiples of 128, layers of 4",
            lambda columns: (
                (columns["d_model"] % 128 == 0) & (columns["d_expert"] % 128 == 0) & (_layers(columns) % 4 == 0)
            ),
            None,
        ),
    ),
    (("fewest all-to-all bytes a token", _every, _all_to_all),),
    (("fewest layers, the least latency", _every, lambda columns: _layers(columns).astype(float)),),
)  # fmt: skip


def _alternatives(
    space: SearchSpace, laws: LadderLaws, compute: float, columns: Columns, score: Floats, best: int
) -> tuple[Alternative, ...]:
    """For each wish that the blueprint itself does not fulfil, the least-loss architecture that does, of those within
    the band's width of the blueprint's loss."""
    near = np.flatnonzero(score <= score[best] + BAND)
    inside = {name: column[near] for name, column in columns.items()}
    own = int(np.flatnonzero(near == best)[0])
    chosen: dict[int, list[str]] = {}
    for wishes in _WISHES:
        for why, has, cost in wishes:
            fit = has(inside)
            if cost is None and fit[own]:
                break  # the blueprint has it
            if not fit.any():
                continue
            rank = score[near] if cost is None else cost(inside) + 1e-9 * score[near]
            pick = int(np.flatnonzero(fit)[rank[fit].argmin()])
            if cost is not None:
                ours, theirs = float(cost(inside)[own]), float(cost(inside)[pick])
                if theirs >= ours:
                    break
                why = f"{why}: {1 - theirs / ours:.0%} less than the blueprint's"
            chosen.setdefault(pick, []).append(why)
            break
    rows = np.array([best, *near[list(chosen)]])
    draws = laws.excess(compute, with_ratios({name: column[rows] for name, column in columns.items()}), draws=200)
    relative = (1 + draws) / (1 + draws[:, :1]) - 1
    return tuple(
        Alternative(
            _architecture(space, columns, int(near[pick])),
            "; ".join(reasons),
            float(relative[0, i]),
            (float(np.quantile(relative[1:, i], 0.025)), float(np.quantile(relative[1:, i], 0.975))),
        )
        for i, (pick, reasons) in enumerate(chosen.items(), start=1)
    )


def _architecture(space: SearchSpace, columns: Columns, index: int) -> MoEArchitecture:
    """The row of the columns as an architecture of the space."""
    from moe_optuna.space import Lattice

    return Lattice(space.dimensions, columns={name: column[[index]] for name, column in columns.items()})[0]


def _reach(laws: LadderLaws, compute: float) -> list[str]:
    """How far outside the ladder the budget lies."""
    low, high = laws.budgets[0], laws.budgets[-1]
    if low <= compute <= high:
        return []
    times = compute / high if compute > high else low / compute
    side = "above" if compute > high else "below"
    return [f"an extrapolation: {times:.3g} times {side} the ladder of {low:.3g} to {high:.3g} FLOPs"]
