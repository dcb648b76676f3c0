"""Dense layers among the mixtures, or gated shared experts: Qwen and what follows it, Llama 4."""

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
from moe_optuna.interchange._writing import (
    MIXTURE,
    WINDOWS,
    chunk,
    dense_first,
    first_layers,
    is_windowed,
    layer_types,
    qkv_bias,
    window,
)
from moe_optuna.parts import Attention, GroupedQueryAttention, Router

__all__ = ["FAMILIES"]

CHUNKED = "chunked_attention"


def _qwen2_moe(c: Config) -> Words:
    window = c.window() if c.flag("use_sliding_window") else None
    end = c.integer("max_window_layers", least=0) if window else 0
    attention = windowed(
        c, lambda layer: FULL if layer % 2 or layer >= end else SLIDING, window, qkv_bias=c.flag("qkv_bias")
    )
    mixture = shared_width(moe(c, every_step(c)), c.integer("shared_expert_intermediate_size", least=0))
    router = Router(shared_gate=True)
    return model(c) | heads(c) | mixture | {"qk_norm": False, "attention": attention, "router": router}


def _qwen3_vl_moe(c: Config) -> Words:
    return model(c) | heads(c) | moe(c, every_step(c)) | {"attention": GroupedQueryAttention(**biases(c))}


def _qwen3_moe(c: Config) -> Words:
    window = c.window() if c.flag("use_sliding_window") else None
    return _qwen3_vl_moe(c) | {"attention": GroupedQueryAttention(window=window, **biases(c))}


def _mellum(c: Config) -> Words:
    mixture = moe(c, listed_dense(c, lambda layer: "sparse"))
    return model(c) | heads(c) | mixture | {"attention": windowed(c, lambda layer: FULL, c.window(), **biases(c))}


def _llama4_text(c: Config) -> Words:
    step, interval = c.integer("interleave_moe_layer_step"), c.integer("no_rope_layer_interval")
    sparse = set(range(step - 1, c.layers, step)) if c.get("moe_layers") is None else c.indices("moe_layers")
    rotary = c.get("no_rope_layers") or [(layer + 1) % interval for layer in range(c.layers)]
    if not isinstance(rotary, list) or len(rotary) != c.layers:
        raise c.error("no_rope_layers", f"{rotary!r}, expected a list, 0 or 1 a layer")
    chunk = c.window("attention_chunk_size")
    kinds: dict[str, Attention] = {
        FULL: GroupedQueryAttention(**biases(c)),
        CHUNKED: GroupedQueryAttention(chunk=chunk, **biases(c)),
    }
    dense_layers, width = sum(layer not in sparse for layer in range(c.layers)), c.integer("intermediate_size")
    mixture = moe(c, dense_layers, width="intermediate_size", experts="num_local_experts")
    return model(c) | heads(c) | shared_width(mixture, width) | {
        "d_dense": c.integer("intermediate_size_mlp") if dense_layers else 0,
        "qk_norm": False,  # without gains
        "attention": c.attention(kinds, lambda layer: CHUNKED if rotary[layer] and chunk else FULL),
    }  # fmt: skip


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
    "qwen3_vl_moe_text": Family(  # read alone: transformers builds it as a part of Qwen3-VL
        model="Qwen3VLMoeTextModel", read=_qwen3_vl_moe, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 128000,
            "tie_word_embeddings": True, "attention_bias": False, "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408, "num_experts_per_tok": 4, "num_experts": 60, "mlp_only_layers": None,
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
    "llama4_text": Family(
        model="Llama4ForCausalLM", read=_llama4_text,
        defaults={
            "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "tie_word_embeddings": False, "num_experts_per_tok": 1,
            "num_local_experts": 16, "moe_layers": None, "interleave_moe_layer_step": 1, "no_rope_layers": None,
            "no_rope_layer_interval": 4, "attention_chunk_size": 8192, "layer_types": None, "attention_bias": False,
        },
        write={
            "intermediate_size": "d_expert", "intermediate_size_mlp": "d_dense", "num_local_experts": "n_experts",
            "num_experts_per_tok": "top_k", "moe_layers": lambda a: list(range(a.n_dense_layers, a.n_layers)),
            "use_qk_norm": False, "attention_bias": qkv_bias, "attention_chunk_size": chunk,
            "layer_types": layer_types(CHUNKED, lambda kind: getattr(kind, "chunk", None) is not None),
        },
    ),
}
# fmt: on
