"""How numbers are written."""

import pytest

from moe_optuna.report import _words as words


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.large(725_600_000), "726 M"),
        (words.large(50.5e9), "50.5 B"),
        (words.large(999_600_000), "1.00 B"),
        (words.large(12), "12"),
        (words.large(float("nan")), "unknown"),
        (words.flops(5.939e9), "5.94 GFLOPs"),
        (words.memory(3 * 2**29), "1.50 GiB"),
        (words.compute(3e20), "3e20"),
        (words.compute(1.5e11), "1.5e11"),
        (words.compute(1e10), "1e10"),
        (words.number(12345), "12,345"),
        (words.number(0.123456), "0.1235"),
        (words.number(-1.5), "−1.5"),
        (words.number(True), "True"),
        (words.percent(0.001), "0.1 %"),
        (words.signed(-0.0035), "−0.35 %"),
        (words.signed(0.121), "+12.1 %"),
        (words.signed(21.5), "× 22.5"),
        (words.tick("flops_per_token", 1e6), "1 M"),
        (words.tick("d_model", 64.0), "64"),
        (words.value("loss", 1.91), "1.9100"),
        (words.value("expansion_ratio", 3), "3.000"),
        (words.interval("total_params", (5e8, 6e8)), "500 M – 600 M"),
        (words.interval("x", (-1.0, 2.0)), "−1 to 2"),
        (words.interval("x", None), "–"),
        (words.interval("x", (float("nan"), 1.0)), "–"),
    ],
)
def test_writes(written, expected):
    assert written == expected


def test_every_count_names_its_convention():
    assert words.unit("expansion_ratio") == "[ratio, non_embedding]"
    for word in ("flops_per_token", "active_params", "total_params", "compute_density", "expansion_ratio", "compute"):
        assert "non_embedding" in words.unit(word)
        assert words.title(word).startswith(word)
