"""Every family against the module that transformers builds: parameters, to the last one, over many variations."""

import dataclasses
import json
import os
import random
from typing import Any

import pytest

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from moe_optuna.interchange import FAMILIES, from_hf  # noqa: E402

# Small values of each family's keys; a tuple lists the variations, the first of them in the base configuration.
COMMON: dict[str, Any] = {
    "hidden_size": (64, 96), "num_hidden_layers": (4, 3), "num_attention_heads": (4, 8), "vocab_size": (128, 131),
    "max_position_embeddings": (64, 32), "tie_word_embeddings": (False, True),
}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": (2, 4, 1), "head_dim": (16, 24)}
BIAS = {"attention_bias": (False, True)}
MIXTRAL = GROUPED | {"intermediate_size": (48, 40), "num_local_experts": (8, 5), "num_experts_per_tok": (2, 3)}
OLMO = GROUPED | BIAS | {"intermediate_size": (48, 40), "num_experts": (8, 5), "num_experts_per_tok": (2, 3)}
ROUTED = {
    "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "n_routed_experts": (8, 6),
    "num_experts_per_tok": (2, 3), "n_shared_experts": (1, 2), "first_k_dense_replace": (1, 0, 2, 4),
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = COMMON | BIAS | {
    "kv_lora_rank": (16, 24), "q_lora_rank": (32, None), "qk_nope_head_dim": (16, 8), "qk_rope_head_dim": (8, 4),
    "v_head_dim": (16, 20),
}  # fmt: skip
STEPPED = {
    "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "num_experts_per_tok": (2, 3),
    "decoder_sparse_step": (1, 2, 3), "mlp_only_layers": ([], [0], [1, 2], None), "num_experts": (8, 5),
}  # fmt: skip
TYPES = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
LINEAR = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
INDEXED = LATENT | ROUTED | {
    "q_lora_rank": (32, 24), "index_topk": (8, 4), "index_n_heads": (2, 3), "index_head_dim": (8, 12),
    "mlp_layer_types": (None, ["dense", "sparse", "sparse", "dense"]),
}  # fmt: skip
NO_HEAD_DIM = {"head_dim": None}

NEXT = {
    "shared_expert_intermediate_size": (24, 48, 50), "linear_conv_kernel_dim": (4, 3),
    "linear_key_head_dim": (8, 16), "linear_value_head_dim": (16, 8), "linear_num_key_heads": (2, 4),
    "linear_num_value_heads": (4, 8), "layer_types": (None, LINEAR),
}  # fmt: skip

VARIATIONS: dict[str, dict[str, Any]] = {
    "llama": GROUPED | BIAS | {"intermediate_size": (80, 72), "mlp_bias": (False, True)},
    "mistral": GROUPED | {"intermediate_size": (80, 72), "sliding_window": (16, None)},
    "qwen2": GROUPED | {
        "intermediate_size": (80, 72), "use_sliding_window": (False, True), "max_window_layers": (2, 0),
    },
    "qwen3": GROUPED | BIAS | {"intermediate_size": (80, 72), "layer_types": (None, TYPES)},
    "mixtral": MIXTRAL | {"sliding_window": (None, 16)},
    "phimoe": MIXTRAL | BIAS | {"lm_head_bias": (False, True), "sliding_window": (None, 16)},
    "granitemoe": MIXTRAL | BIAS,
    "granitemoeshared": MIXTRAL | BIAS | {"shared_intermediate_size": (0, 48, 56)},
    "olmoe": OLMO | {"head_dim": None},
    "flex_olmo": OLMO | {"pad_token_id": 0},
    "minimax": MIXTRAL | {"layer_types": (None, LINEAR), "sliding_window": (None, 16)},
    "minimax_m2": MIXTRAL,
    "hunyuan_v1_moe": GROUPED | BIAS | {"intermediate_size": (48, 40), "num_experts": (8, 5), "moe_topk": (2, 3)},
    "gpt_oss": MIXTRAL | {"attention_bias": (True, False), "sliding_window": (16, 8), "layer_types": (None, TYPES)},
    "dbrx": {
        "d_model": (64, 96), "n_heads": (4, 8), "n_layers": (4, 3), "vocab_size": (128, 131), "max_seq_len": 64,
        "attn_config": tuple({"kv_n_heads": n, "rope_theta": 1e4} for n in (2, 4, 1)),
        "ffn_config": tuple(
            {"ffn_hidden_size": f, "moe_num_experts": e, "moe_top_k": k} for f, e, k in ((48, 8, 2), (40, 5, 3))
        ),
    },
    "jetmoe": {key: value for key, value in MIXTRAL.items() if key not in ("head_dim", "num_attention_heads")} | {
        "kv_channels": (16, 24), "num_key_value_heads": (4, 2), "tie_word_embeddings": (True, False),
    },
    "qwen2_moe": GROUPED | STEPPED | {
        "shared_expert_intermediate_size": (48, 50, 24), "qkv_bias": (True, False), "layer_types": (None, TYPES),
        "use_sliding_window": (False, True),
    },
    "qwen3_moe": GROUPED | STEPPED | BIAS | {"use_sliding_window": (False, True)},
    "mellum": GROUPED | BIAS | {key: STEPPED[key] for key in ("intermediate_size", "moe_intermediate_size")} | {
        "num_experts": (8, 5), "num_experts_per_tok": (2, 3), "layer_types": (None, TYPES),
        "mlp_layer_types": (None, ["dense", "sparse", "sparse", "dense"]),
    },
    "llama4_text": GROUPED | BIAS | {
        "intermediate_size": (48, 40), "intermediate_size_mlp": (80, 72), "num_local_experts": (8, 5),
        "num_experts_per_tok": (1, 2), "moe_layers": (None, [1, 3], []), "interleave_moe_layer_step": (1, 2, 3),
        "attention_chunk_size": (8, 16, None), "no_rope_layers": (None, [1, 0, 1, 1]),
        "no_rope_layer_interval": (4, 2), "layer_types": (None, ["chunked_attention", "full_attention"] * 2),
    },
    "qwen3_next": GROUPED | STEPPED | NEXT,
    "qwen3_5_moe_text": GROUPED | NEXT | {
        "moe_intermediate_size": (24, 40), "num_experts_per_tok": (2, 3), "num_experts": (8, 5),
        "full_attention_interval": (4, 2),
    },
    "qwen3_vl_moe_text": GROUPED | STEPPED | BIAS,
    "lfm2_moe": GROUPED | {
        "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "num_experts": (8, 5),
        "num_experts_per_tok": (2, 3), "num_dense_layers": (1, 0, 2, 4), "conv_bias": (False, True),
        "conv_L_cache": (3, 4), "use_expert_bias": (True, False), "tie_word_embeddings": (True, False),
        "layer_types": (["conv", "full_attention", "conv", "conv"], ["full_attention"] * 2 + ["conv"] * 2),
    },
    "deepseek_v2": LATENT | ROUTED | {"mlp_bias": (False, True), "head_dim": None},
    "deepseek_v3": LATENT | ROUTED | {"head_dim": None, "num_nextn_predict_layers": (1, 0, 2)},
    "deepseek_v32": INDEXED,
    "glm_moe_dsa": INDEXED | {
        "index_topk_freq": (1, 2, 3), "index_skip_topk_offset": (2, 1, 3),
        "indexer_types": (None, ["full", "shared", "shared", "full"]),
    },
    "glm4_moe_lite": LATENT | {key: value for key, value in ROUTED.items() if key != "first_k_dense_replace"} | {
        "mlp_layer_types": (None, ["dense", "dense", "sparse", "dense"]),
    },
    "glm4_moe": GROUPED | ROUTED | BIAS | {"use_qk_norm": (False, True), "num_nextn_predict_layers": (1, 0)},
    "solar_open": GROUPED | BIAS | {
        key: value for key, value in ROUTED.items() if key not in ("first_k_dense_replace", "intermediate_size")
    },
    "dots1": GROUPED | ROUTED | BIAS | {
        "sliding_window": (None, 16), "max_window_layers": (2, 0), "layer_types": (None, TYPES),
    },
    "ernie4_5_moe": GROUPED | {
        "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "moe_num_experts": (8, 6), "moe_k": (2, 3),
        "moe_num_shared_experts": (2, 0, 1), "moe_layer_start_index": (1, 0, 2), "moe_layer_end_index": (-1, 2, 3),
        "moe_layer_interval": (1, 2), "use_bias": (False, True), "tie_word_embeddings": (True, False),
    },
    "exaone_moe": GROUPED | {
        "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "num_experts": (8, 6),
        "num_experts_per_tok": (2, 3), "num_shared_experts": (1, 2), "first_k_dense_replace": (1, 0, 2),
        "sliding_window_pattern": (4, 2), "sliding_window": (16, 8), "layer_types": (None, TYPES),
        "mlp_layer_types": (None, ["dense", "sparse", "sparse", "dense"]), "n_group": 1, "topk_group": 1,
    },
    "afmoe": GROUPED | BIAS | {
        "intermediate_size": (80, 72), "moe_intermediate_size": (24, 40), "num_experts": (8, 6),
        "num_experts_per_tok": (2, 3), "num_shared_experts": (1, 2), "num_dense_layers": (1, 0, 2),
        "global_attn_every_n_layers": (4, 2), "sliding_window": (16, 8), "layer_types": (None, TYPES),
    },
}  # fmt: skip


def configurations(family: str) -> list[dict[str, Any]]:
    """The base configuration, and mixtures in which every value of every key occurs."""
    choices = {key: value if isinstance(value, tuple) else (value,) for key, value in VARIATIONS[family].items()}
    base = {key: values[0] for key, values in choices.items()}
    rng = random.Random(family)
    first = {key: rng.randrange(len(values)) for key, values in choices.items()}
    mixed = [{key: values[(first[key] + turn) % len(values)] for key, values in choices.items()} for turn in range(4)]
    mixed += [{key: rng.choice(values) for key, values in choices.items()} for _ in range(5)]
    return [_consistent(config) for config in (base, *mixed)]


def _consistent(config: dict[str, Any]) -> dict[str, Any]:
    """Lists of layers cut to the number of layers; keys left out where a family's own class cannot take null."""
    config = dict(config)
    layers = config.get("num_hidden_layers", 4)
    for key in ("layer_types", "mlp_layer_types", "no_rope_layers", "indexer_types"):
        if config.get(key) is not None:
            config[key] = config[key][:layers]
    nullable = ("q_lora_rank", "sliding_window", "attention_chunk_size")
    return {key: value for key, value in config.items() if value is not None or key in nullable}


def build(family: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration object and the module, without memory for its parameters."""
    made = CONFIG_MAPPING[family](**config)
    with torch.device("meta"):
        return made, language_model(made)


def language_model(made: Any, **implementations: str) -> Any:
    """The module of a configuration object; of a model that is only a part of another one, that with its head."""
    if made.model_type != "qwen3_vl_moe_text":
        return transformers.AutoModelForCausalLM.from_config(made, **implementations)
    whole = transformers.Qwen3VLMoeConfig(text_config=made.to_dict(), tie_word_embeddings=made.tie_word_embeddings)
    module = transformers.AutoModelForImageTextToText.from_config(whole, **implementations)
    text = module.model.language_model
    text.head = module.lm_head
    text.register_forward_hook(lambda text, _, output: text.head(output.last_hidden_state))
    return text


def counted(module: Any, n_experts: int, top_k: int) -> tuple[int, int]:
    """Total and active parameters of a module: all, and all less the experts that a token does not visit."""
    total = routed = 0
    for name, parameter in module.named_parameters():
        total += parameter.numel()
        owner = name.split(".")
        stacked = "experts" in owner or "input_linear" in owner or "output_linear" in owner
        if stacked and "router" not in owner and "shared_mlp" not in owner and parameter.dim() > 1:
            assert parameter.shape[0] % n_experts == 0
            routed += parameter.numel()
    return total, total - routed // n_experts * (n_experts - top_k)


@pytest.mark.parametrize("family", VARIATIONS)
def test_counts_are_those_of_the_module(family: str) -> None:
    for config in configurations(family):
        made, module = build(family, config)
        architecture = from_hf({"model_type": family, **config})
        expected = counted(module, architecture.n_experts or 1, architecture.top_k)
        found = (architecture.full.total_params, architecture.full.active_params)
        assert found == expected, config
        written = json.loads(made.to_json_string(use_diff=False))
        assert from_hf(written) == architecture, "the file that transformers writes of it"
        assert from_hf(made) == from_hf(made.to_dict()) == architecture, "the object of transformers itself"


def test_every_family_of_transformers_is_varied() -> None:
    assert set(VARIATIONS) == set(FAMILIES) - {"bailing_moe"}


@pytest.mark.parametrize("family", VARIATIONS)
def test_defaults_are_those_of_the_configuration_class(family: str) -> None:
    """Also that the class which the table names is the one that transformers builds."""
    cls = CONFIG_MAPPING[family]
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    own |= {alias: own[key] for alias, key in cls.attribute_map.items() if key in own}
    # Taken from the arguments of Qwen3-Next's and GLM-5's classes.
    own |= {"full_attention_interval": 4, "index_topk_freq": 1, "index_skip_topk_offset": 2}
    for sub, config in cls.sub_configs.items():
        own |= {f"{sub}.{field.name}": field.default for field in dataclasses.fields(config)}
    for key, value in FAMILIES[family].defaults.items():
        assert own[key] == value, key
    assert type(build(family, configurations(family)[0])[1]).__name__ == FAMILIES[family].model


@pytest.mark.parametrize("family", VARIATIONS)
def test_other_names_of_keys_are_those_of_the_configuration_class(family: str) -> None:
    for alias, key in CONFIG_MAPPING[family].attribute_map.items():
        config = {"model_type": family, **configurations(family)[0]}
        value = config.pop(key, None) or config.pop(alias, None) or 1
        assert from_hf({**config, alias: value}) == from_hf({**config, key: value}), alias


CHUNKED = {"qwen3_5_moe_text", "qwen3_next", "minimax"}
"""Families whose kernels for linear attention work in chunks, which costs more than the recurrence that is counted."""


@pytest.mark.parametrize("family", sorted(set(VARIATIONS) - CHUNKED))
def test_flops_are_those_that_a_counter_sees(family: str) -> None:
    """A counter sees attention as a full square, and the convolution of LFM2 over its padding, too; all else agrees."""
    from torch.utils.flop_counter import FlopCounterMode

    config = configurations(family)[0]
    if "kv_lora_rank" in config:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if family == "llama4_text":  # its module sends every token through every expert, weighted by 0 where not routed
        config["num_experts_per_tok"] = config["num_local_experts"]
    if family == "dbrx":
        config["attn_config"] = {**config["attn_config"], "clip_qkv": 8}
    length = 16
    made = CONFIG_MAPPING[family](**config)
    implementations = {"attn_implementation": "eager", "experts_implementation": "eager"}
    module = language_model(made, **implementations)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros((1, length), dtype=torch.long))
    components = from_hf({"model_type": family, **config}).components
    linear = sum(part.visited * part.cost.matrices for part in components)
    pairs = sum(part.visited * (part.cost.pair_width + part.cost.index_width) for part in components)
    padding = 3 * (config["conv_L_cache"] - 1) * config["conv_L_cache"] * 64 if family == "lfm2_moe" else 0
    assert counter.get_total_flops() == 2 * (linear * length + pairs * length**2 + padding)


MULTIMODAL = {"kimi_k25": "deepseek_v3", "llama4": "llama4_text", "mistral3": "mistral"} | {
    model_type: f"{model_type}_text" for model_type in ("qwen3_5_moe", "qwen3_vl_moe")
}


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_the_text_model_of_a_multimodal_one_is_counted(model_type: str) -> None:
    family = MULTIMODAL[model_type]
    for turn, text in enumerate(configurations(family)):
        tied = ({}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False})[turn % 3]
        config = {"model_type": model_type, "text_config": {"model_type": family, **text}, **tied}
        made = CONFIG_MAPPING[model_type](text_config=dict(config["text_config"]), **tied)
        with torch.device("meta"):
            module = transformers.AutoModelForImageTextToText.from_config(made)
        parts = ("language_model", "lm_head")
        expected = sum(p.numel() for name, p in module.named_parameters() if any(part in name for part in parts))
        for given in (config, json.loads(made.to_json_string(use_diff=False)), made):
            with pytest.warns(UserWarning, match=f"counted is the text model of {model_type} alone"):
                assert from_hf(given).full.total_params == expected, config
