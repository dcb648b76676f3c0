"""Every private name of Optuna that the samplers use, each with the reason; the tests check each against Optuna itself.

Written against Optuna 5.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["all_trials", "claim", "claimed", "enqueued_params", "fixed_params", "study_key", "study_user_attrs"]

_CLAIM = "moe_optuna:claim"
_FIXED = "fixed_params"


def all_trials(study: Study) -> list[FrozenTrial]:
    """Every trial of the study, whatever its state; shared objects, not to be changed.

    The storage is asked, not the study: under `HyperbandPruner` a study shows one bracket's trials only, and what
    another bracket proposed would be proposed again.
    """
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def study_user_attrs(study: Study) -> Mapping[str, Any]:
    """User attributes, also of a bracket's view of a study, which hides them."""
    return study._storage.get_study_user_attrs(study._study_id)


def study_key(study: Study) -> tuple[BaseStorage, int]:
    """What tells one study from another: its storage, and its number there."""
    return study._storage, study._study_id


def claim(study: Study, trial: FrozenTrial, params: Mapping[str, Any]) -> None:
    """Make known to all who share the storage that this trial is about to propose what `params` mean.

    Parameters reach the storage one by one, as the objective asks for them; a system attribute reaches it at once.
    """
    study._storage.set_trial_system_attr(trial._trial_id, _CLAIM, dict(params))


def claimed(trial: FrozenTrial) -> dict[str, Any] | None:
    """What `claim` stored, or ``None``."""
    return trial.system_attrs.get(_CLAIM)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Parameters of a trial that has not finished: what it has suggested, and what `enqueue_trial` holds for it."""
    return dict(trial.system_attrs.get(_FIXED, {})) | trial.params


def fixed_params(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Parameters that are decided whatever a sampler says: suggested already, enqueued, or held by
    `PartialFixedSampler`."""
    fixed: dict[str, Any] = {}
    sampler: BaseSampler | None = study.sampler
    while sampler is not None:
        fixed = getattr(sampler, "_fixed_params", {}) | fixed
        sampler = getattr(sampler, "_base_sampler", None)
    return fixed | enqueued_params(trial)
