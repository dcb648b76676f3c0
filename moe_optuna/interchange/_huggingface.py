"""Architectures from and to the `config.json` of Hugging Face model families."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, did_you_mean
from moe_optuna.interchange._compare import differences
from moe_optuna.interchange.families import FAMILIES

__all__ = ["from_hf", "to_hf"]

_SAME = {"kimi_k2": "deepseek_v3", "bailing_moe_v2": "bailing_moe"}
"""Model types of published files whose keys and module are those of another family."""

_MULTIMODAL = {"kimi_k25": True, "llama4": None, "mistral3": True, "qwen3_5_moe": False, "qwen3_vl_moe": False}
"""Models with a text model among others, which `text_config` describes, and whether its head is tied where
`tie_word_embeddings` beside it says nothing; ``None`` where that in `text_config` counts.
"""


def from_hf(config: Any, *, where: object = "config") -> MoEArchitecture:
    """The architecture that transformers builds from a configuration: a mapping, or an object whose `to_dict` gives
    one, such as transformers' own. `read` takes a file.

    Its `full` counts are those of the module, to the parameter; layers that only predict further tokens in training are
    left out, as transformers leaves them out. The context is `max_position_embeddings`. Of a multimodal model it is the
    text model, with its head, and a warning says so.

    Raises:
        InputError: Where it is no configuration, the family is not supported, or a key is missing, does not fit or
            contradicts another.
    """
    if callable(to_dict := getattr(config, "to_dict", None)):
        config = to_dict()
    if not isinstance(config, Mapping):
        message = f"a {type(config).__name__}, expected a mapping or an object with `to_dict`; `read` takes a file"
        raise InputError(message, where=where)
    if (whole := str(config.get("model_type"))) in _MULTIMODAL:
        config, where = _text_model(config, where), f"{where}: text_config"
        warnings.warn(f"{where}: counted is the text model of {whole} alone", stacklevel=2)
    model_type = config.get("model_type")
    family = FAMILIES.get(_SAME.get(str(model_type), str(model_type)))
    if family is None:
        known = sorted([*FAMILIES, *_SAME, *_MULTIMODAL])
        hint = did_you_mean(str(model_type), known)
        message = f"model_type: {model_type!r} is not supported, expected one of {', '.join(known)}{hint}"
        raise InputError(message, where=where)
    return family.architecture(config, where)


def _text_model(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """The configuration of a multimodal model's text model."""
    text, tied = config.get("text_config"), _MULTIMODAL[config["model_type"]]
    if not isinstance(text, Mapping):
        raise InputError(f"text_config: {text!r}, expected an object", where=where)
    return text if tied is None else {**text, "tie_word_embeddings": config.get("tie_word_embeddings", tied)}


def to_hf(architecture: MoEArchitecture, family: str | None = None) -> dict[str, Any]:
    """A configuration from which transformers builds the architecture, with exactly its `full` counts.

    Args:
        architecture: What to express. The keys that carry no structure (norm epsilon, activation, rotary base, how the
            router scores) are left to the family's defaults.
        family: A model type of `FAMILIES`; ``None`` for the first one that can express the architecture.

    Raises:
        InputError: Where the family, or every family, cannot; it names what the nearest one would lose.
    """
    if family is not None and family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        raise InputError(f"{family!r}, expected one of {', '.join(sorted(FAMILIES))}{hint}", where="family")
    nearest, lost = "", [f"attention = {architecture.attention!r}"]
    for name in FAMILIES if family is None else (family,):
        try:
            config = {"model_type": name, **FAMILIES[name].config(architecture)}
            missing = differences(architecture, from_hf(config, where=name))
        except (LookupError, InputError):  # the family's keys hold what these layers have not, or bar what they have
            continue
        if not missing:
            return config
        if not nearest or len(missing) < len(lost):
            nearest, lost = name, missing
    if family is None and nearest:
        raise InputError(
            f"no family can express it; the nearest, {nearest}, lacks {', '.join(lost)}", where="architecture"
        )
    raise InputError(
        f"{f'{family} cannot' if family else 'no family can'} express {', '.join(lost)}", where="architecture"
    )
