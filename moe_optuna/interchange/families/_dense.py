"""Dense baselines."""

from __future__ import annotations

from typing import Any

from moe_optuna.interchange._config import Config
from moe_optuna.interchange._family import Family
from moe_optuna.interchange._reading import FULL, SLIDING, Words, biases, dense, heads, model, windowed
from moe_optuna.interchange._writing import WINDOWS, is_windowed, qkv_bias, window
from moe_optuna.parts import Attention, GatedFeedForward, GroupedQueryAttention

__all__ = ["FAMILIES"]


def _llama(c: Config) -> Words:
    attention, block = GroupedQueryAttention(**biases(c)), GatedFeedForward(bias=c.flag("mlp_bias"))
    return model(c) | heads(c) | dense(c) | {"qk_norm": False, "attention": attention, "feed_forward": block}


def _mistral(c: Config) -> Words:
    return model(c) | heads(c) | dense(c) | {"qk_norm": False, "attention": GroupedQueryAttention(window=c.window())}


def _qwen_attention(c: Config, **options: Any) -> Attention:
    """Sliding windows from `max_window_layers` on, where `use_sliding_window` is set."""
    window = c.window() if c.flag("use_sliding_window") else None
    first = c.integer("max_window_layers", least=0) if window else c.layers
    return windowed(c, lambda layer: SLIDING if layer >= first else FULL, window, **options)


def _qwen2(c: Config) -> Words:
    return model(c) | heads(c) | dense(c) | {"qk_norm": False, "attention": _qwen_attention(c, qkv_bias=True)}


def _qwen3(c: Config) -> Words:
    return model(c) | heads(c) | dense(c) | {"attention": _qwen_attention(c, **biases(c))}


# fmt: off
FAMILIES = {
    "llama": Family(
        model="LlamaForCausalLM", read=_llama,
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "mlp_bias": False,
        },
        write={"intermediate_size": "d_dense", "attention_bias": qkv_bias, "mlp_bias": "feed_forward.bias"},
    ),
    "mistral": Family(
        model="MistralForCausalLM", read=_mistral,
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": 4096,
        },
        write={"intermediate_size": "d_dense", "sliding_window": window},
    ),
    "qwen2": Family(
        model="Qwen2ForCausalLM", read=_qwen2,
        defaults={
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
            "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
            "layer_types": None,
        },
        write=WINDOWS | {
            "intermediate_size": "d_dense", "use_sliding_window": is_windowed,
        },
    ),
    "qwen3": Family(
        model="Qwen3ForCausalLM", read=_qwen3,
        defaults={
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
            "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False, "sliding_window": 4096,
            "max_window_layers": 28, "layer_types": None,
        },
        write=WINDOWS | {
            "intermediate_size": "d_dense", "attention_bias": qkv_bias,
            "use_sliding_window": is_windowed,
        },
    ),
}
# fmt: on
