"""Reading files: the three kinds, and what is wrong with one told in a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.interchange import FAMILIES, count_payload, from_hf, read
from moe_optuna.parts import GroupedQueryAttention, Interleaved, LatentAttention

QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "moe_intermediate_size": 24, "num_experts": 8,
    "num_experts_per_tok": 2, "intermediate_size": 80,
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "intermediate_size": 24, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
ERNIE: dict[str, Any] = {"model_type": "ernie4_5_moe", "num_hidden_layers": 4}
DEEPSEEK: dict[str, Any] = {"model_type": "deepseek_v3", "num_hidden_layers": 4}


def test_visible_models_to_the_parameter(shared_data: Path) -> None:
    for model in json.loads((shared_data / "moe_models.json").read_text())["models"]:
        full = read(shared_data / "hf" / f"{model['name']}.json").full
        assert (full.total_params, full.active_params) == (model["exact_total"], model["exact_active"]), model["name"]


def test_three_kinds_of_file(tmp_path: Path) -> None:
    architecture = from_hf(QWEN)
    own, blueprint, config = tmp_path / "own.json", tmp_path / "blueprint.json", tmp_path / "config.json"
    architecture.save(own)
    blueprint.write_text(json.dumps({"format": 1, "compute": 1e18, "architecture": architecture.to_dict()}))
    config.write_text(json.dumps(QWEN))
    assert read(own) == read(blueprint) == read(config) == architecture
    assert read(config, context_length=77).context_length == 77
    with pytest.raises(InputError, match="context_length: 0"):
        read(config, context_length=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object, expected an architecture"),
        ('{"hidden_size": 1}', "no key 'architecture'"),
        ('{"architecture": {"d_model": 4}, "format": 1}', "missing n_dense_layers"),
        ('{"architecture": {}, "format": 9}', "format 9, expected 1"),
        (
            '{"model_type": "mixtrall"}',
            "model_type: 'mixtrall' is not supported, expected one of .*qwen3_moe.*; did you mean 'mixtral'",
        ),
        ('{"model_type": null}', "model_type: None is not supported, expected one of afmoe"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QWEN | {"hidden_size": "64"}, "hidden_size: '64', expected an integer of at least 1"),
        (QWEN | {"hidden_size": 64.0}, "hidden_size: 64.0, expected an integer"),
        (QWEN | {"hidden_size": True}, "hidden_size: true, expected an integer"),
        (QWEN | {"num_hidden_layers": 0}, "num_hidden_layers: 0, expected an integer of at least 1"),
        (QWEN | {"vocab_size": None}, "vocab_size: null, expected an integer"),
        (QWEN | {"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no', expected true or false"),
        (QWEN | {"num_key_value_heads": 3}, "num_key_value_heads: 3, expected a divisor of num_attention_heads = 4"),
        (
            QWEN | {"head_dim": None, "hidden_size": 66},
            "num_attention_heads: 4, expected a divisor of hidden_size = 66",
        ),
        (QWEN | {"num_experts_per_tok": 9}, "num_experts_per_tok: 9, expected at most num_experts = 8"),
        (QWEN | {"num_local_experts": 7}, "num_local_experts: 7 contradicts num_experts = 8"),
        (QWEN | {"mlp_only_layers": 3}, "mlp_only_layers: 3, expected a list of layer numbers"),
        (GPT_OSS | {"layer_types": ["full_attention"]}, "layer_types: 1 words contradict num_hidden_layers = 4"),
        (
            GPT_OSS | {"layer_types": ["spiral"] * 4},
            "layer_types: unknown 'spiral', expected full_attention or sliding",
        ),
        (GPT_OSS | {"layer_types": [["full_attention"]] * 4}, r"unknown \['full_attention'\], expected full"),
        (GPT_OSS | {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, expected at most 100000"),
        (QWEN | {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000, expected at most 100000"),
        (GPT_OSS | {"sliding_window": -1}, "sliding_window: -1, expected an integer of at least 0"),
        (DEEPSEEK | {"moe_layer_freq": 2}, "moe_layer_freq: 2, only 1 is supported"),
        ({"model_type": "dots1"}, "num_experts_per_tok: missing, expected"),
        ({"model_type": "lfm2_moe"}, "layer_types: missing, expected a list"),
        ({"model_type": "dbrx", "attn_config": {"kv_n_heads": 3}}, "attn_config.kv_n_heads: 3, expected a divisor"),
        ({"model_type": "dbrx", "tie_word_embeddings": True}, "tie_word_embeddings: true, only false is supported"),
        ({"model_type": "jetmoe", "num_attention_heads": 31}, "num_attention_heads: 31, expected num_key_value_heads"),
        ({"model_type": "olmoe", "head_dim": 64}, "head_dim: 64, expected hidden_size / num_attention_heads"),
        ({"model_type": "exaone_moe", "sliding_window_pattern": "LLX"}, "sliding_window_pattern: 'LLX', expected an"),
        ({"model_type": "llama4"}, "text_config: None, expected an object"),
        ({"model_type": "llama4_text", "no_rope_layers": [1, 0]}, r"no_rope_layers: \[1, 0\], expected a list"),
        ({"model_type": "hunyuan_v1_moe", "moe_topk": [1, 2]}, "moe_topk: 2 values contradict num_hidden_layers = 32"),
    ],
)
def test_a_bad_key_is_named_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_hf(config, where="config.json")
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["config.json", Path("config.json"), None, [QWEN]])
def test_what_is_no_configuration_is_refused(config: Any) -> None:
    with pytest.raises(InputError, match=r"config: a \w+, expected a mapping .*; `read` takes a file"):
        from_hf(config)


def test_keys_that_are_no_strings_are_passed_over() -> None:
    assert from_hf(QWEN | {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}) == from_hf(QWEN)


def test_a_family_stands_on_its_defaults() -> None:
    """A file may leave out whatever the family's class knows."""
    needed = {
        "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
        "deepseek_v2": {"num_experts_per_tok": 6},
        "lfm2_moe": {"layer_types": ["conv"] * 32},
        "glm4_moe": {"head_dim": 128},
        "bailing_moe": {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "num_experts": 8,
            "max_position_embeddings": 64, "moe_intermediate_size": 24, "num_experts_per_tok": 2,
        },
    }  # fmt: skip
    for family in FAMILIES:
        assert from_hf({"model_type": family, **needed.get(family, {})}).full.total_params > 0


def test_a_missing_query_rank_is_none_where_the_file_describes_the_latents() -> None:
    """Tools that drop nulls leave DeepSeek-V2-Lite and Moonlight without the key; alone, the class default holds."""

    def rank(config: dict[str, Any]) -> int | None:
        attention = from_hf(config).attention
        assert isinstance(attention, LatentAttention)
        return attention.q_rank

    assert rank(DEEPSEEK) == 1536
    assert rank(DEEPSEEK | {"kv_lora_rank": 512}) is None
    assert rank(DEEPSEEK | {"kv_lora_rank": 512, "q_lora_rank": None}) is None
    assert rank(DEEPSEEK | {"kv_lora_rank": 512, "q_lora_rank": 24}) == 24


def test_windows_are_derived_as_transformers_derives_them() -> None:
    alternating = from_hf(GPT_OSS).attention
    assert isinstance(alternating, Interleaved)
    windows = sorted((kind.window or 0, count) for kind, count in alternating.parts if hasattr(kind, "window"))
    assert windows == [(0, 2), (128, 2)]
    assert from_hf(QWEN | {"use_sliding_window": True, "sliding_window": 32}).attention == GroupedQueryAttention(
        window=32
    )
    assert from_hf(QWEN | {"use_sliding_window": False, "sliding_window": 32}).attention == GroupedQueryAttention()


def test_a_pattern_of_letters_is_the_layer_types_that_it_stands_for() -> None:
    """K-EXAONE's files have one; transformers reads it only beside `layer_types`, whose words its class documents."""
    exaone = {"model_type": "exaone_moe", "sliding_window": 128}
    for layers, pattern, letters in [(8, "LLLG", "LLLGLLLG"), (6, "LLLG", "LLLGLG"), (3, "LG", "LGG"), (2, "L", "LG")]:
        words = [{"L": "sliding_attention", "G": "full_attention"}[letter] for letter in letters]
        listed = from_hf(exaone | {"num_hidden_layers": layers, "layer_types": words})
        assert from_hf(exaone | {"num_hidden_layers": layers, "sliding_window_pattern": pattern}) == listed
    assert from_hf(exaone | {"sliding_window_pattern": "LLLG"}) == from_hf(exaone | {"sliding_window_pattern": 4})


def test_sliding_windows_lower_the_flops_and_nothing_else() -> None:
    full = from_hf(GPT_OSS | {"layer_types": ["full_attention"] * 4})
    mixed = from_hf(GPT_OSS)
    assert mixed.full.flops_per_token < full.full.flops_per_token
    assert mixed.full.total_params == full.full.total_params


def test_ling_has_the_parts_of_glm() -> None:
    """Not part of transformers: its authors' module holds what a GLM-4.5 of the same dimensions holds."""
    same = {key: QWEN[key] for key in QWEN if key not in ("model_type", "num_experts")}
    same |= {"first_k_dense_replace": 1, "use_qk_norm": True, "max_position_embeddings": 64}
    ling = from_hf(same | {"model_type": "bailing_moe", "num_experts": 8, "num_shared_experts": 1})
    assert ling == from_hf(same | {"model_type": "glm4_moe", "n_routed_experts": 8, "n_shared_experts": 1})
    assert ling == from_hf(same | {"model_type": "bailing_moe_v2", "num_experts": 8, "num_shared_experts": 1})


def test_order_of_dense_layers_does_not_matter() -> None:
    every_other = from_hf(QWEN | {"decoder_sparse_step": 2})
    assert (every_other.n_dense_layers, every_other.n_moe_layers) == (2, 2)
    assert every_other == from_hf(QWEN | {"mlp_only_layers": [1, 3]})


def test_layers_for_further_tokens_are_left_out() -> None:
    assert from_hf(DEEPSEEK) == from_hf(DEEPSEEK | {"num_nextn_predict_layers": 3})


def test_shared_experts_are_counted_in_routed_ones_where_that_divides() -> None:
    qwen2 = QWEN | {"model_type": "qwen2_moe"}
    whole, broken = (from_hf(qwen2 | {"shared_expert_intermediate_size": width}) for width in (72, 50))
    assert (whole.n_shared_experts, whole.d_shared, whole.shared_width) == (3, None, 72)
    assert (broken.n_shared_experts, broken.d_shared, broken.shared_width) == (1, 50, 50)


def test_a_dense_model_has_no_experts() -> None:
    dense = from_hf(QWEN | {"num_experts": 0})
    assert dense.full.active_params == dense.full.total_params
    assert (dense.n_moe_layers, dense.n_experts, dense.granularity) == (0, 0, None)


def test_count_payload_says_what_scripts_rely_on() -> None:
    architecture = from_hf(QWEN)
    payload = json.loads(json.dumps(count_payload(architecture)))
    assert MoEArchitecture.from_dict(payload["architecture"]) == architecture
    for convention in ("non_embedding", "full"):
        assert set(payload[convention]) == {"flops_per_token", "active_params", "total_params"}
    assert sum(payload["shares"].values()) == pytest.approx(1)
    assert payload["compute_density"] == architecture.compute_density > 6
    assert payload["expansion_ratio"] == architecture.expansion_ratio > 1
    assert payload["granularity"] == 2 * 64 / 24
    assert payload["activation_ratio"] == 2 / 8
    assert payload["memory"]["total"] > 16 * architecture.full.total_params
