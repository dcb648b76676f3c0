"""Search spaces: what is fixed, what is free, and every architecture that meets a triad."""

from moe_optuna.space._axis import Axis
from moe_optuna.space._closed_form import ClosedForm
from moe_optuna.space._infrastructure import Infrastructure
from moe_optuna.space._lattice import Lattice
from moe_optuna.space._phase import Phase
from moe_optuna.space._space import SearchPlan, SearchSpace

__all__ = ["Axis", "ClosedForm", "Infrastructure", "Lattice", "Phase", "SearchPlan", "SearchSpace"]
