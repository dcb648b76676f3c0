"""Stacks where most layers mix tokens by something else than attention."""

from __future__ import annotations

from typing import Any

from moe_optuna.interchange._config import Config
from moe_optuna.interchange._family import Family
from moe_optuna.interchange._reading import FULL, Words, every_step, first_dense, heads, model, moe, shared_width
from moe_optuna.interchange._writing import MIXTURE, first_layers, layer_types, of
from moe_optuna.parts import Attention, GatedDeltaAttention, GroupedQueryAttention, Router, ShortConvolution

__all__ = ["FAMILIES"]


def _qwen3_5_moe(c: Config, dense_layers: int = 0) -> Words:
    c.only("attention_bias", False)
    interval = c.integer("full_attention_interval")
    kinds: dict[str, Attention] = {
        FULL: GroupedQueryAttention(output_gate=True),
        "linear_attention": GatedDeltaAttention(
            n_key_heads=c.integer("linear_num_key_heads"),
            n_value_heads=c.integer("linear_num_value_heads"),
            d_key=c.integer("linear_key_head_dim"),
            d_value=c.integer("linear_value_head_dim"),
            kernel=c.integer("linear_conv_kernel_dim"),
        ),
    }
    width = c.integer("shared_expert_intermediate_size", least=0)
    return model(c) | heads(c) | shared_width(moe(c, dense_layers), width) | {
        "attention": c.attention(kinds, lambda layer: "linear_attention" if (layer + 1) % interval else FULL),
        "router": Router(shared_gate=True),
    }  # fmt: skip


def _qwen3_next(c: Config) -> Words:
    return _qwen3_5_moe(c, every_step(c))


def _lfm2_moe(c: Config) -> Words:
    convolution = ShortConvolution(kernel=c.integer("conv_L_cache"), bias=c.flag("conv_bias"))
    attention = c.attention({FULL: GroupedQueryAttention(), "conv": convolution}, None)
    return model(c) | heads(c) | moe(c, first_dense(c, "num_dense_layers")) | {"attention": attention}


_QWEN: dict[str, Any] = {
    "linear_conv_kernel_dim": of(GatedDeltaAttention, "kernel"),
    "linear_key_head_dim": of(GatedDeltaAttention, "d_key"),
    "linear_value_head_dim": of(GatedDeltaAttention, "d_value"),
    "linear_num_key_heads": of(GatedDeltaAttention, "n_key_heads"),
    "linear_num_value_heads": of(GatedDeltaAttention, "n_value_heads"),
    "layer_types": layer_types("linear_attention", lambda kind: isinstance(kind, GatedDeltaAttention)),
    "shared_expert_intermediate_size": "shared_width",
}

# fmt: off
FAMILIES = {
    "qwen3_next": Family(
        model="Qwen3NextForCausalLM", read=_qwen3_next, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
            "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "tie_word_embeddings": False, "attention_bias": False, "head_dim": 256, "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 32, "decoder_sparse_step": 1, "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512,
            "mlp_only_layers": None, "layer_types": None, "full_attention_interval": 4,
        },
        write=MIXTURE | _QWEN | {"mlp_only_layers": first_layers},
    ),
    "qwen3_5_moe_text": Family(
        model="Qwen3_5MoeForCausalLM", read=_qwen3_5_moe,
        defaults={
            "vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": False,
            "attention_bias": False, "head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 8,
            "num_experts": 256, "layer_types": None, "full_attention_interval": 4,
        },
        write=MIXTURE | _QWEN | {"intermediate_size": None},
    ),
    "lfm2_moe": Family(
        model="Lfm2MoeForCausalLM", read=_lfm2_moe,
        aliases={"tie_embedding": "tie_word_embeddings", "num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792,
            "num_hidden_layers": 32, "tie_word_embeddings": True, "max_position_embeddings": 128000,
            "num_attention_heads": 32, "num_key_value_heads": 8, "conv_bias": False, "conv_L_cache": 3,
            "num_dense_layers": 2, "num_experts_per_tok": 4, "num_experts": 32, "layer_types": None,
        },
        write=MIXTURE | {
            "num_dense_layers": "n_dense_layers",
            "conv_bias": of(ShortConvolution, "bias"), "conv_L_cache": of(ShortConvolution, "kernel"),
            "layer_types": layer_types("conv", lambda kind: isinstance(kind, ShortConvolution)),
        },
    ),
}
# fmt: on
