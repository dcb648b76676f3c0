"""The model families of Hugging Face transformers that can be read and written: one table.

To add a family, add an entry to a module of this folder, or a module to the table below: a function that reads its
configuration, the defaults of its configuration class, and the sources of its keys. Every entry is held against the
module that transformers builds, in `tests/interchange/test_families.py`; add the family's variations there.
"""

from collections.abc import Mapping

from moe_optuna.interchange._family import Family
from moe_optuna.interchange.families import _deepseek, _dense, _hybrid, _mixtral, _qwen

__all__ = ["FAMILIES"]

FAMILIES: Mapping[str, Family] = (
    _dense.FAMILIES | _deepseek.FAMILIES | _qwen.FAMILIES | _mixtral.FAMILIES | _hybrid.FAMILIES
)
"""Families by the `model_type` of their configurations, in the order in which writing tries them."""
