"""The closed form, put back into the counting formulas."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_optuna.space import ClosedForm


@given(
    flops=st.floats(1e6, 1e12), density=st.floats(6.5, 20), share=st.floats(0.1, 0.9), heads=st.integers(1, 32),
    group=st.sampled_from([1, 2, 4]), experts=st.integers(8, 256), active=st.integers(1, 8), shared=st.integers(0, 2),
    context=st.sampled_from([256, 8192]), ratio=st.floats(0.5, 5), dense=st.floats(0, 50),
)  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True)
def test_solution_meets_the_triad(
    flops: float, density: float, share: float, heads: int, group: int, experts: int, active: int, shared: int,
    context: int, ratio: float, dense: float,
) -> None:  # fmt: skip
    """M, Na and N of the real-valued architecture at the solved d_model, by the paper's formulas."""
    na, kv, head = flops / density, heads / group, 64.0
    n = na * (1 + share * (experts - active) / (active + shared + 1))
    combination = {
        "n_heads": [heads], "n_kv_heads": [kv], "d_head": [head], "n_experts": [experts], "top_k": [active],
        "n_shared_experts": [shared], "context_length": [context],
    }  # fmt: skip
    if experts <= active:
        return
    form = ClosedForm.of([[flops, na, n]], combination)
    layers, volume = form.n_layers[0], form.moe_volume[0]
    width = form.d_model(dense, ratio)[0]
    if not np.isfinite(width):
        assert form.rest[0] <= 0 or layers <= 0
        return
    attention = 2 * width * head * (heads + kv) * layers
    counted = attention + 3 * width * (ratio * width) * dense + 3 * (active + shared) * volume
    assert np.isclose(counted, na, rtol=1e-9)
    assert np.isclose(counted + 3 * (experts - active) * volume, n, rtol=1e-9)
    assert np.isclose(6 * counted + 6 * context * heads * head * layers, flops, rtol=1e-9)
    low, high = form.interval(ratio)
    assert low[0] <= high[0]
