"""Qwen mixtures and what follows them: dense layers among the mixtures, gated shared experts."""

from __future__ import annotations

from moe_optuna.interchange._config import Config
from moe_optuna.interchange._family import Family
from moe_optuna.interchange._reading import (
    FULL,
    SLIDING,
    Words,
    biases,
    every_step,
    heads,
    listed_dense,
    model,
    moe,
    shared_width,
    windowed,
)
from moe_optuna.interchange._writing import MIXTURE, WINDOWS, dense_first, first_layers, is_windowed, qkv_bias, window
from moe_optuna.parts import GroupedQueryAttention, Router

__all__ = ["FAMILIES"]


def _qwen2_moe(c: Config) -> Words:
    window = c.window() if c.flag("use_sliding_window") else None
    end = c.integer("max_window_layers", least=0) if window else 0
    attention = windowed(
        c, lambda layer: FULL if layer % 2 or layer >= end else SLIDING, window, qkv_bias=c.flag("qkv_bias")
    )
    mixture = shared_width(moe(c, every_step(c)), c.integer("shared_expert_intermediate_size", least=0))
    router = Router(shared_gate=True)
    return model(c) | heads(c) | mixture | {"qk_norm": False, "attention": attention, "router": router}


def _qwen3_moe(c: Config) -> Words:
    window = c.window() if c.flag("use_sliding_window") else None
    return (
        model(c) | heads(c) | moe(c, every_step(c)) | {"attention": GroupedQueryAttention(window=window, **biases(c))}
    )


def _mellum(c: Config) -> Words:
    mixture = moe(c, listed_dense(c, lambda layer: "sparse"))
    return model(c) | heads(c) | mixture | {"attention": windowed(c, lambda layer: FULL, c.window(), **biases(c))}


# fmt: off
FAMILIES = {
    "qwen3_moe": Family(
        model="Qwen3MoeForCausalLM", read=_qwen3_moe, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False, "sliding_window": 4096,
            "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128,
            "mlp_only_layers": None,
        },
        write=MIXTURE | {
            "mlp_only_layers": first_layers, "attention_bias": qkv_bias, "sliding_window": window,
            "use_sliding_window": is_windowed,
        },
    ),
    "qwen2_moe": Family(
        model="Qwen2MoeForCausalLM", read=_qwen2_moe, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 32768,
            "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
            "decoder_sparse_step": 1, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4, "num_experts": 60, "mlp_only_layers": None, "qkv_bias": True, "layer_types": None,
        },
        write=MIXTURE | WINDOWS | {
            "mlp_only_layers": first_layers, "qkv_bias": qkv_bias, "shared_expert_intermediate_size": "shared_width",
            "use_sliding_window": is_windowed,
        },
    ),
    "mellum": Family(
        model="MellumForCausalLM", read=_mellum, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 98304, "hidden_size": 2304, "intermediate_size": 7168, "num_hidden_layers": 28,
            "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "attention_bias": False, "sliding_window": 1024, "moe_intermediate_size": 896,
            "num_experts_per_tok": 8, "num_experts": 64, "head_dim": 128, "layer_types": None, "mlp_layer_types": None,
        },
        write=MIXTURE | WINDOWS | {
            "mlp_layer_types": dense_first, "attention_bias": qkv_bias,
        },
    ),
}
# fmt: on
