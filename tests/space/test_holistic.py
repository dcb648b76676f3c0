"""The paper's own setup (arXiv:2603.21862): its Table 2, and its Phase-2 optima and sweeps in the lattice."""

import numpy as np
import pytest

from moe_optuna.space import ClosedForm, SearchSpace
from moe_optuna.triad import Triad

SPACE = SearchSpace.load("holistic")

# C [FLOP]: M [GFLOP/token], D [B tokens]; M/Na, Na [M], N [B], layers, widths swept, heads, d_head.
PAPER = {
    1e18: (0.2672, 3.7420, 10.95, 24.8, 0.538, (9, 10), (288, 744), 4, 64),
    3e18: (0.4856, 6.1775, 9.90, 49.8, 1.080, (7, 8), (456, 1000), 8, 64),
    1e19: (0.9345, 10.7004, 9.22, 101.5, 2.23, (13, 13), (648, 1272), 8, 64),
    3e19: (1.6983, 17.6649, 8.77, 200.0, 4.24, (11, 11), (832, 1736), 8, 128),
    1e20: (3.2681, 30.5985, 8.35, 388.0, 8.58, (18, 19), (1024, 1864), 8, 128),
    3e20: (5.9390, 50.5138, 8.22, 726.0, 15.85, (16, 16), (1248, 2200), 16, 128),
}


@pytest.mark.parametrize("compute", PAPER)
def test_table_2(compute: float) -> None:
    flops, tokens, *_ = PAPER[compute]
    budget = SPACE.allocation(compute)
    assert budget.flops_per_token == pytest.approx(flops * 1e9, rel=1e-3)
    assert budget.tokens == pytest.approx(tokens * 1e9, rel=1e-3)


@pytest.mark.parametrize("compute", PAPER)
def test_lattice_holds_the_sweep_of_phase_2_at_its_depth(compute: float) -> None:
    flops, _, _, active, total, (shallow, deep), (narrow, wide), heads, d_head = PAPER[compute]
    lattice = SPACE.lattice(Triad(flops * 1e9, active * 1e6, total * 1e9, SPACE.tolerances)).arrays
    assert set(lattice["n_heads"]) == {heads}
    assert set(lattice["n_kv_heads"]) == {heads // 2}
    assert set(lattice["d_head"]) == {d_head}
    assert (lattice["d_dense"] == 3 * lattice["d_model"]).all()
    layers = lattice["n_dense_layers"] + lattice["n_moe_layers"]
    at_depth = lattice["d_model"][(layers >= shallow) & (layers <= deep)]
    assert set(range(narrow, wide + 8, 8)) <= set(at_depth.tolist())


@pytest.mark.parametrize("compute", PAPER)
def test_closed_form_gives_the_paper_s_depth(compute: float) -> None:
    _, _, density, active, total, (shallow, deep), _, heads, d_head = PAPER[compute]
    combination = {
        "n_heads": [heads], "n_kv_heads": [heads // 2], "d_head": [d_head], "n_experts": [288], "top_k": [8],
        "n_shared_experts": [1], "context_length": [8192],
    }  # fmt: skip
    # The paper's architectures hold M to within 5 %; at its own M / Na the depth is a whole number to within rounding.
    form = ClosedForm.of([[density * active * 1e6, active * 1e6, total * 1e9]], combination)
    assert shallow - 0.6 <= form.n_layers[0] <= deep + 0.6


@pytest.mark.parametrize("compute", PAPER)
def test_phase_1_covers_the_paper_s_grid(compute: float) -> None:
    """M/Na in 7 ... 17 and N/Na in 12 ... 30: an architecture within a cell of every point."""
    phase = SPACE.phase_one(compute)
    for density in (7, 8, 9, 11, 14, 17):
        for ratio in (12, 16, 20, 22, 26, 30):
            off = np.abs(np.log(phase.coordinates / [density, ratio]))
            assert (off.max(axis=1) < 0.12).any()
            assert phase.index({"compute_density": float(density), "expansion_ratio": float(ratio)}) is not None


def test_heads_change_half_way_between_budgets() -> None:
    for compute, (*_, heads, d_head) in PAPER.items():
        for factor in (0.8, 1.0, 1.25):
            dimensions = SPACE.rules(SPACE.allocation(compute * factor).flops_per_token).dimensions
            assert (dimensions.n_heads, dimensions.d_head) == ((heads,), (d_head,))


def test_no_phase_of_the_paper_s_budgets_has_heads_of_the_extrapolation() -> None:
    for compute, (*_, heads, d_head) in PAPER.items():
        for phase in (SPACE.phase_zero(compute), SPACE.phase_one(compute)):
            columns = phase.lattice.arrays
            assert columns["n_heads"].max() <= 16
            assert (columns["n_heads"] == 2 * columns["n_kv_heads"]).all()
        assert set(columns["n_heads"] * columns["d_head"]) == {heads * d_head}
