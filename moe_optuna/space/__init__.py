"""Search spaces: what is fixed, what is free, and every architecture that meets a triad."""

from moe_optuna.space._axis import Axis
from moe_optuna.space._closed_form import ClosedForm
from moe_optuna.space._diagnosis import Diagnosis, Relaxation
from moe_optuna.space._infrastructure import Infrastructure
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._payload import lattice_payload
from moe_optuna.space._phase import Phase, study_name
from moe_optuna.space._space import SearchPlan, SearchSpace

__all__ = [
    "Axis",
    "ClosedForm",
    "Diagnosis",
    "Infrastructure",
    "Lattice",
    "Phase",
    "Relaxation",
    "SearchPlan",
    "SearchSpace",
    "lattice_payload",
    "study_name",
]
