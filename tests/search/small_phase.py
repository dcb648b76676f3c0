"""A phase of a few architectures, without a search space, for tests of the controller."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import optuna

from moe_optuna import MoEArchitecture


def architecture(width: int) -> MoEArchitecture:
    return MoEArchitecture(
        d_model=width, n_dense_layers=1, n_moe_layers=1, n_heads=2, n_kv_heads=1, d_head=8, d_dense=64, d_expert=16,
        n_experts=8, top_k=2, n_shared_experts=1, context_length=64, vocab_size=256,
    )  # fmt: skip


class ByNumber(optuna.samplers.RandomSampler):
    """Proposals that follow from the trial's number alone, so that an interrupted search can be compared."""

    def sample_independent(self, study, trial, name, distribution):
        return int(np.random.default_rng(trial.number).integers(distribution.low, distribution.high + 1))


class SmallPhase:
    """Widths 8, 16 ... as one integer parameter."""

    number = 1
    name = "phase-1"

    def __init__(self, widths: int = 40, compute: float = 1e9) -> None:
        self.compute = compute
        self.lattice = [architecture(8 * (index + 1)) for index in range(widths)]

    def study_name(self, search: str) -> str:
        return f"{search}/{self.compute:.3g}/{self.name}"

    def suggest(self, trial: optuna.Trial) -> MoEArchitecture:
        chosen = self.lattice[trial.suggest_int("index", 0, len(self.lattice) - 1)]
        trial.set_user_attr("d_model", chosen.d_model)
        return chosen

    def index(self, params: Mapping[str, float | int]) -> int | None:
        return int(params["index"]) if "index" in params else None

    def tokens(self, chosen: MoEArchitecture) -> int:
        return int(self.compute / chosen.non_embedding.flops_per_token)
