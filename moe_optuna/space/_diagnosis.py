"""Why no architecture meets a triad, and what would: the binding rules and their smallest relaxations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moe_optuna.architecture import COUNTS, LARGEST, MoEArchitecture
from moe_optuna.space._closed_form import ClosedForm
from moe_optuna.space._dimensions import CHOICES
from moe_optuna.space._infrastructure import LIMITS
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._rules import Rules
from moe_optuna.space._solve import Bands
from moe_optuna.triad import Triad

__all__ = ["Diagnosis", "Relaxation", "diagnose"]

_UNBOUNDED = 1 << 20
_OTHERS = 4096
"""Values that the search for one that a list could have looks through, the nearest."""
_PIECES = 32
"""Parts of a solution, of 2^18 rows at most, that hold nothing, after which the search for the nearest architecture
gives up."""


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The smallest change of one rule that gives an architecture while all others stay.

    Attributes:
        rule: Its place in the file, such as `dimensions.n_layers.high`, or `scale.0.n_heads` in the first `[[scale]]`.
        value: What it is.
        needed: What it would have to be.
    """

    rule: str
    value: float
    needed: float

    @property
    def size(self) -> float:
        """How large the change is: of a tolerance the difference, else the absolute logarithm of the ratio, with 0
        taken as 1/2."""
        if self.rule.startswith("tolerances."):
            return abs(self.needed - self.value)
        return abs(math.log(max(self.needed, 0.5) / max(self.value, 0.5)))

    def __str__(self) -> str:
        return f"{self.rule} = {self.value:.6g}: {self.needed:.6g} needed"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What meets a triad, and, where nothing does, why.

    Attributes:
        count: How many architectures meet it.
        reason: What the closed form says of an infeasible triad.
        nearest: The counts nearest to the triad that an architecture of the space has: the tolerances, all three, have
            to grow by the smallest factor. ``None`` where there is none within a factor of ten thousand, or none is
            found in bounded work.
        architecture: Their architecture.
        relaxations: Of each rule that, relaxed alone, gives an architecture; the smallest change first.
    """

    triad: Triad
    count: int
    reason: str | None = None
    nearest: Triad | None = None
    architecture: MoEArchitecture | None = None
    relaxations: tuple[Relaxation, ...] = ()

    @property
    def binding(self) -> str | None:
        """The rule whose smallest relaxation is the smallest of all; ``None`` where something meets the triad."""
        if self.count:
            return None
        return str(self.relaxations[0]) if self.relaxations else "no single rule"

    def __str__(self) -> str:
        if self.count:
            return f"{self.count} {'architecture meets' if self.count == 1 else 'architectures meet'} the triad"
        near = f"; nearest feasible: {_targets(self.nearest)}" if self.nearest else ""
        return f"no architecture meets {_targets(self.triad)}: {self.reason}; binding: {self.binding}{near}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the keys of `moe-optuna lattice --json`."""
        nearest = None
        if self.nearest is not None and self.architecture is not None:
            ratios = {name: getattr(self.nearest, name) for name in ("compute_density", "expansion_ratio")}
            nearest = self.nearest.targets | ratios | {"architecture": self.architecture.to_dict()}
        return {
            "count": self.count,
            "triad": self.triad.to_dict(),
            "binding": self.binding,
            "reason": self.reason,
            "nearest": nearest,
            "relaxations": [{"rule": r.rule, "value": r.value, "needed": r.needed} for r in self.relaxations],
        }


def _targets(triad: Triad) -> str:
    return (
        f"M = {triad.flops_per_token:.4g}, Na = {triad.active_params:.4g}, N = {triad.total_params:.4g} "
        f"(compute_density {triad.compute_density:.4g}, expansion_ratio {triad.expansion_ratio:.4g})"
    )


def diagnose(rules: Rules, triad: Triad, scales: Sequence[Rules]) -> Diagnosis:
    """See `SearchSpace.explain`.

    Args:
        rules: Those at the triad's scale.
        triad: What is asked for.
        scales: The rules at every scale, at all of which the nearest is looked for.
    """
    if lattice := rules.lattice(Bands.of(triad)):
        return Diagnosis(triad, len(lattice))
    nearest = _nearest(scales, triad)
    return Diagnosis(
        triad,
        0,
        reason(rules, triad),
        Triad(**asdict(nearest.non_embedding), tolerances=triad.tolerances) if nearest else None,
        nearest,
        tuple(sorted(_relaxations(rules, triad), key=lambda relaxation: relaxation.size)),
    )


def reason(rules: Rules, triad: Triad) -> str:
    """What the closed form says at the combination that comes closest to a solution."""
    problem, _ = rules.problem(Bands.of(triad))
    columns = problem.combinations
    if not len(rules.dimensions.combinations()["n_heads"]):
        return "queries_per_kv_head does not divide n_heads, or top_k is above n_experts"
    if not len(problem):
        return "no combination of heads and experts divides as [infrastructure] demands"
    form = ClosedForm.of(np.tile(list(triad.targets.values()), (len(problem), 1)), columns)
    ceiling = (columns["n_experts"] + columns["n_shared_experts"]) / (columns["top_k"] + columns["n_shared_experts"])
    if triad.expansion_ratio > ceiling.max():
        return (
            f"expansion_ratio is {triad.expansion_ratio:.4g}, and these experts reach at most "
            f"(n_experts + shared) / (top_k + shared) = {ceiling.max():.4g}"
        )
    depth = float(form.n_layers.max())
    if depth < 1:
        return f"M - 6 Na pays for the attention of {depth:.3g} layers, expected at least 1"
    least = float(form.n_layers.min())
    depths = f"{least:.3g} to {depth:.3g}" if depth > 1.01 * least else f"{depth:.3g}"
    limit = rules.dimensions.n_layers.high
    if least > limit:
        return f"M - 6 Na pays for the attention of {least:.4g} layers, and n_layers is at most {limit}"
    if (form.rest <= 0).all():
        share = float((1 - form.rest / triad.active_params).min())
        return f"experts alone would need {share:.3g} times the active parameters"
    low, high = rules.interval(form)
    if np.isfinite(low).any():
        most_moe = np.maximum(form.n_layers - rules.dimensions.n_dense_layers.low, 1)
        narrowest, widest = np.nanmin(form.moe_volume / high / most_moe), np.nanmax(form.moe_volume / low)
        return (
            f"the closed form asks for {depths} layers, d_model from {np.nanmin(low):.4g} to {np.nanmax(high):.4g} and "
            f"d_expert from {narrowest:.4g} to {widest:.4g}, where no integers keep every rule"
        )
    return "the closed form has no solution"


def _smallest(feasible: Callable[[float], bool], start: float, limit: float, precision: float) -> float | None:
    """The smallest value from `start` to `limit`, to a precision, that is feasible: doubling, then bisection.
    `feasible` turns from false, which it is at `start`, to true once."""
    low, step = start, precision
    while not feasible(high := min(start + step, limit)):
        if high >= limit:
            return None
        low, step = high, 2 * step
    while high - low > precision:
        middle = low + precision * max(math.floor((high - low) / 2 / precision), 1)
        if middle >= high:
            break
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high


def _nearest(scales: Sequence[Rules], triad: Triad) -> MoEArchitecture | None:
    """The architecture for which the largest of |log(count / target)| / tolerance is least, each at its own scale."""
    widths = np.array([getattr(triad.tolerances, name) for name in COUNTS])
    best, found = math.log(1e4) / float(widths.min()), None

    def away(rules: Rules) -> float:
        (low, high), flops = rules.flops_per_token, triad.flops_per_token
        if low <= flops < high:
            return 0.0
        off = math.log(low / flops) if flops < low else math.log(flops / high) if high else math.inf
        return off / triad.tolerances.flops_per_token

    for rules in sorted(scales, key=away):
        if away(rules) < best and (near := _nearest_at(rules, triad, best)):
            best, found = near
    return found


def _nearest_at(rules: Rules, triad: Triad, most: float) -> tuple[float, MoEArchitecture] | None:
    """The nearest of one scale, and its distance; ``None`` where it is further than `most` or not found."""
    targets = np.array(list(triad.targets.values()))
    widths = np.array([getattr(triad.tolerances, name) for name in COUNTS])
    start, end = rules.flops_per_token

    if not _any_keeps_limits(rules):
        return None
    left = iter(range(_PIECES))

    def within(factor: float) -> Bands:
        spread = np.exp(np.minimum(widths * factor, 100.0))  # a tolerance may be a thousandth of another
        low = np.maximum(targets / spread, [start, 0, 0])
        return Bands.between(low[None], np.minimum(targets * spread, [end * (1 - 1e-12), np.inf, np.inf])[None])

    def feasible(factor: float) -> bool:
        for runs in rules.problem(within(factor))[0].runs():
            if len(runs):
                return True
            if next(left, None) is None:
                raise _TooFarError
        return False

    try:
        factor = _smallest(feasible, 0.5, most, 1e-3)
    except _TooFarError:
        return None
    if factor is None:
        return None
    best, found = math.inf, None
    for chunk in rules.lattice(within(factor)).chunks():
        counts = np.stack([chunk[name] for name in COUNTS], axis=1)
        distance = (np.abs(np.log(counts / targets)) / widths).max(axis=1)
        row = int(distance.argmin())
        if distance[row] < best:
            best, found = float(distance[row]), {name: column[row : row + 1] for name, column in chunk.items()}
    return (best, Lattice(rules.solved, columns=found)[0]) if found else None


class _TooFarError(Exception):
    """The nearest architecture is not found in bounded work."""


def _any_keeps_limits(rules: Rules) -> bool:
    """Whether any architecture of the space, whatever its counts, keeps the limits of memory and traffic: the smallest
    does if one does."""
    d, step = rules.solved, rules.infrastructure.pipeline_stages
    combinations = d.combinations()
    layers = -(-max(d.n_layers.low, d.n_dense_layers.low + d.n_moe_layers.low, 1) // step) * step
    for moe in range(max(d.n_moe_layers.low, layers - d.n_dense_layers.high), layers - d.n_dense_layers.low + 1):
        sizes = {"d_model": -(-d.d_model.low // d.d_model.multiple) * d.d_model.multiple,
                 "d_expert": -(-d.d_expert.low // d.d_expert.multiple) * d.d_expert.multiple,
                 "d_dense": d.d_dense.bounds[0], "n_moe_layers": moe, "n_dense_layers": layers - moe}  # fmt: skip
        columns = combinations | {name: np.full_like(combinations["n_heads"], size) for name, size in sizes.items()}
        if rules.infrastructure.admits(columns, d).any():
            return True
    return False


def _relaxations(rules: Rules, triad: Triad) -> Iterator[Relaxation]:
    """The smallest relaxation of each rule that gives an architecture while the others stay."""
    bands = Bands.of(triad)
    for rule, value, needed in (
        *_tolerances(rules, triad),
        *_bounds(rules, bands),
        *_multiples(rules, bands),
        *_choices(rules, bands),
        *_limits(rules, bands),
    ):
        if needed is not None:
            yield Relaxation(rule, value, needed)


_Found = Iterator[tuple[str, float, float | None]]


def _with(rules: Rules, name: str, **update: Any) -> Rules:
    """With one dimension changed."""
    value = getattr(rules.dimensions, name).model_copy(update=update)
    return replace(rules, dimensions=rules.dimensions.model_copy(update={name: value}))


def _cluster(rules: Rules, **update: Any) -> Rules:
    """With one demand of the cluster changed."""
    return replace(rules, infrastructure=rules.infrastructure.model_copy(update=update))


def _tolerances(rules: Rules, triad: Triad) -> _Found:
    """Each tolerance grown until something fits."""
    for name in COUNTS:

        def wider(tolerance: float, name: str = name) -> bool:
            held = replace(triad.tolerances, **{name: tolerance})
            return bool(rules.lattice(Bands.of(replace(triad, tolerances=held))))

        held = getattr(triad.tolerances, name)
        yield f"tolerances.{name}", held, _smallest(wider, held, 0.999, 1e-4)


def _bounds(rules: Rules, bands: Bands) -> _Found:
    """Each bound of a range moved outwards until something fits."""
    for name in ("d_model", "d_expert", "d_dense", "n_layers", "n_dense_layers", "n_moe_layers"):
        limits = getattr(rules.dimensions, name)
        if name == "d_dense" and limits.ratio is not None:
            continue

        def lower(change: float, name: str = name, low: int = limits.low) -> bool:
            return bool(_with(rules, name, low=low - round(change)).lattice(bands))

        def higher(high: float, name: str = name) -> bool:
            return bool(_with(rules, name, high=round(high)).lattice(bands))

        room = limits.low - (0 if name == "n_dense_layers" else 1)
        change = _smallest(lower, 0, room, 1) if room else None
        yield f"dimensions.{name}.low", limits.low, None if change is None else limits.low - change
        yield f"dimensions.{name}.high", limits.high, _smallest(higher, limits.high, _UNBOUNDED, 1)


def _multiples(rules: Rules, bands: Bands) -> _Found:
    """Each multiple brought down to its divisors, the largest first."""

    def down(multiple: int, relaxed: Callable[[int], Rules]) -> float | None:
        pairs = ((k, multiple // k) for k in range(1, math.isqrt(multiple) + 1) if multiple % k == 0)
        divisors = sorted({divisor for pair in pairs for divisor in pair} - {multiple}, reverse=True)
        return next((divisor for divisor in divisors if relaxed(divisor).lattice(bands)), None)

    for name in ("d_model", "d_expert", "d_dense"):
        multiple = getattr(rules.dimensions, name).multiple
        yield f"dimensions.{name}.multiple", multiple, down(multiple, lambda m, n=name: _with(rules, n, multiple=m))  # type: ignore[misc]
    for name in ("width_multiple", "expert_parallel", "tensor_parallel", "pipeline_stages"):
        multiple = getattr(rules.infrastructure, name)
        yield f"infrastructure.{name}", multiple, down(multiple, lambda m, n=name: _cluster(rules, **{n: m}))  # type: ignore[misc]


def _choices(rules: Rules, bands: Bands) -> _Found:
    """Each list of values replaced by others, those nearest to the listed first, until something fits."""
    for name in CHOICES:
        listed = getattr(rules.dimensions, name)
        step = math.gcd(8, *listed) if name == "d_head" else 1
        least, most = 0 if name == "n_shared_experts" else step, min(4 * max(listed) + 3, LARGEST)
        reach = _OTHERS * step
        changes = [
            (Relaxation(name, have, need).size, have, need)
            for have in listed
            for need in range(max(least, have - reach), min(most, have + reach) + 1, step)
            if need not in listed
        ]
        nearest: dict[int, int] = {}
        for _, old, new in sorted(changes):
            nearest.setdefault(new, old)
        order = list(nearest.items())[:_OTHERS]

        def fits(pairs: list[tuple[int, int]], name: str = name) -> bool:
            dimensions = rules.dimensions.model_copy(update={name: tuple(need for need, _ in pairs)})
            return bool(replace(rules, dimensions=dimensions).lattice(bands))

        start, size = 0, 1
        while start < len(order) and not fits(order[start : start + size]):
            start, size = start + size, 2 * size
        need, have = next((pair for pair in order[start : start + size] if fits([pair])), (None, listed[0]))
        yield rules.places.get(name, f"dimensions.{name}"), have, need


def _limits(rules: Rules, bands: Bands) -> _Found:
    """Each limit of memory and traffic raised to the least that anything takes, rounded up to what is printed."""
    for name in LIMITS:
        limit = getattr(rules.infrastructure, name)
        if limit is not None:
            free = _cluster(rules, **{name: None})
            least = math.inf
            for runs in free.problem(bands)[0].runs():
                rows = np.arange(len(runs))  # of each run the narrowest experts
                used = free.infrastructure.used(name, runs.at(rows, np.zeros_like(rows)), free.dimensions)
                least = min(least, float(used.min(initial=math.inf)))
            digit = 10.0 ** (math.floor(math.log10(least)) - 5) if 0 < least < math.inf else 1.0
            yield f"infrastructure.{name}", limit, math.ceil(least / digit) * digit if least < math.inf else None
