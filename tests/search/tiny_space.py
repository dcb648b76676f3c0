"""A search space whose trainings take a moment."""

from __future__ import annotations

from moe_optuna.space import SearchSpace


def tiny_space(**changes: object) -> SearchSpace:
    data = {
        "format": 1,
        "name": "tiny",
        "budgets": [1e9, 3e9],
        "target": 3e10,
        "allocation_law": {"coefficient": 4.0, "exponent": 0.5},
        "reference": {"compute_density": 8.0, "expansion_ratio": 2.0},
        "axes": {
            "allocation": [0.5, 2.0],
            "compute_density": [6.4, 24.0],
            "expansion_ratio": [1.2, 2.8],
            "resolution": 0.05,
        },
        "tolerances": {"flops_per_token": 0.1, "active_params": 0.1, "total_params": 0.1},
        "dimensions": {
            "d_model": {"low": 16, "high": 512, "multiple": 4},
            "d_expert": {"low": 8, "high": 512, "multiple": 4},
            "d_dense": {"ratio": 3.0, "multiple": 4},
            "n_layers": {"low": 1, "high": 16},
            "n_heads": [2],
            "queries_per_kv_head": [2],
            "d_head": 8,
            "n_experts": [8, 16],
            "top_k": [2, 1],
            "n_shared_experts": [1],
            "context_length": 64,
            "vocab_size": 256,
            "tied_embeddings": False,
            "qk_norm": True,
        },
        "search": {"zero": 3, "one": 4, "two": 3, "repeats": 1},
        "training": {"reports": 4, "report_windows": 4, "final_windows": 16},
    }
    return SearchSpace.from_dict(data | changes)
