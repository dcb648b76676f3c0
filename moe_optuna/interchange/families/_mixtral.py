"""Mixtures in every layer: Mixtral and its like."""

from __future__ import annotations

from typing import Any

from moe_optuna.interchange._config import Config
from moe_optuna.interchange._family import Family
from moe_optuna.interchange._reading import FULL, SLIDING, Words, biases, heads, model, moe, shared_width, windowed
from moe_optuna.interchange._writing import WINDOWS, layer_types, qkv_bias, window
from moe_optuna.parts import (
    Attention,
    GatedFeedForward,
    GroupedQueryAttention,
    LightningAttention,
    MixtureAttention,
    Norm,
    Router,
)

__all__ = ["FAMILIES"]


def _mixtral(c: Config) -> Words:
    mixture = moe(c, width="intermediate_size", experts="num_local_experts")
    return model(c) | heads(c) | mixture | {"qk_norm": False, "attention": GroupedQueryAttention(window=c.window())}


def _phimoe(c: Config) -> Words:
    return _mixtral(c) | {
        "attention": GroupedQueryAttention(window=c.window(), **biases(c)),
        "norm": Norm(bias=True),
        "head_bias": c.flag("lm_head_bias"),
    }


def _granitemoe(c: Config) -> Words:
    return _mixtral(c) | {"attention": GroupedQueryAttention(**biases(c))}


def _granitemoeshared(c: Config) -> Words:
    return shared_width(_granitemoe(c), c.integer("shared_intermediate_size", least=0))


def _olmoe(c: Config) -> Words:
    words = model(c) | heads(c) | moe(c, width="intermediate_size")
    if words["n_heads"] * words["d_head"] != words["d_model"]:
        raise c.error(
            "head_dim", f"{words['d_head']}, expected hidden_size / num_attention_heads: the QK norm needs it"
        )
    return words | {"attention": GroupedQueryAttention(norm_over="width", **biases(c))}


def _flex_olmo(c: Config) -> Words:
    attention = GroupedQueryAttention(norm_over="width", **biases(c))
    return model(c) | heads(c) | moe(c, width="intermediate_size") | {"attention": attention}


def _minimax_m2(c: Config) -> Words:
    return _mixtral(c) | {"qk_norm": True, "attention": GroupedQueryAttention(norm_over="width")}


def _hunyuan_v1_moe(c: Config) -> Words:
    for key in ("moe_topk", "num_experts"):
        c.uniform(key)
    mixture = shared_width(moe(c, width="intermediate_size", top_k="moe_topk"), c.integer("intermediate_size"))
    return model(c) | heads(c) | mixture | {"attention": GroupedQueryAttention(**biases(c))}


def _gpt_oss(c: Config) -> Words:
    return model(c) | heads(c) | moe(c, width="intermediate_size", experts="num_local_experts") | {
        "qk_norm": False,
        "attention": windowed(c, lambda layer: FULL if layer % 2 else SLIDING, c.window(), sinks=True, **biases(c)),
        "experts": GatedFeedForward(bias=True),
        "router": Router(bias=True),
    }  # fmt: skip


def _dbrx(c: Config) -> Words:
    c.only("tie_word_embeddings", False)
    mixture = moe(
        c, width="ffn_config.ffn_hidden_size", experts="ffn_config.moe_num_experts", top_k="ffn_config.moe_top_k"
    )
    n_heads = c.integer("num_attention_heads")
    return model(c) | mixture | {
        "n_heads": n_heads,
        "n_kv_heads": c.divides("attn_config.kv_n_heads", "num_attention_heads"),
        "d_head": c.integer("hidden_size") // c.divides("num_attention_heads", "hidden_size"),
        "qk_norm": False,
    }  # fmt: skip


def _jetmoe(c: Config) -> Words:
    kv_heads, top_k = c.integer("num_key_value_heads"), c.integer("num_experts_per_tok")
    given = c.optional("num_attention_heads")
    if given not in (None, kv_heads * top_k):
        raise c.error("num_attention_heads", f"{given}, expected num_key_value_heads * num_experts_per_tok")
    return model(c) | moe(c, width="intermediate_size", experts="num_local_experts") | {
        "n_heads": kv_heads * top_k,
        "n_kv_heads": kv_heads,
        "d_head": c.integer("head_dim"),
        "qk_norm": False,
        "attention": MixtureAttention(),
        "router": Router(output_bias=True, mixtures=2),
    }  # fmt: skip


def _minimax(c: Config) -> Words:
    kinds: dict[str, Attention] = {
        FULL: GroupedQueryAttention(window=c.window()),
        "linear_attention": LightningAttention(),
    }
    return _mixtral(c) | {"attention": c.attention(kinds, lambda layer: "linear_attention" if layer % 2 else FULL)}


_EXPERTS: dict[str, Any] = {"intermediate_size": "d_expert", "num_experts_per_tok": "top_k"}
_MIXTRAL = _EXPERTS | {"num_local_experts": "n_experts"}

# fmt: off
FAMILIES = {
    "mixtral": Family(
        model="MixtralForCausalLM", read=_mixtral, aliases={"num_experts": "num_local_experts"},
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": None, "num_experts_per_tok": 2, "num_local_experts": 8,
        },
        write=_MIXTRAL | {"sliding_window": window},
    ),
    "phimoe": Family(
        model="PhimoeForCausalLM", read=_phimoe,
        defaults={
            "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": None, "num_experts_per_tok": 2, "num_local_experts": 16,
            "attention_bias": False, "lm_head_bias": False,
        },
        write=_MIXTRAL | {"sliding_window": window, "attention_bias": qkv_bias, "lm_head_bias": "head_bias"},
    ),
    "granitemoe": Family(
        model="GraniteMoeForCausalLM", read=_granitemoe,
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "num_local_experts": 8, "num_experts_per_tok": 2,
        },
        write=_MIXTRAL | {"attention_bias": qkv_bias},
    ),
    "granitemoeshared": Family(
        model="GraniteMoeSharedForCausalLM", read=_granitemoeshared,
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 0,
        },
        write=_MIXTRAL | {"attention_bias": qkv_bias, "shared_intermediate_size": "shared_width"},
    ),
    "olmoe": Family(
        model="OlmoeForCausalLM", read=_olmoe, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 16, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "attention_bias": False, "num_experts_per_tok": 8, "num_experts": 64,
        },
        write=_EXPERTS | {"num_experts": "n_experts", "attention_bias": qkv_bias},
    ),
    "flex_olmo": Family(
        model="FlexOlmoForCausalLM", read=_flex_olmo, aliases={"num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "attention_bias": False, "num_experts_per_tok": 5, "num_experts": 7,
        },
        write=_EXPERTS | {"num_experts": "n_experts", "attention_bias": qkv_bias},
    ),
    "minimax_m2": Family(
        model="MiniMaxM2ForCausalLM", read=_minimax_m2, aliases={"num_experts": "num_local_experts"},
        defaults={
            "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536, "num_hidden_layers": 62,
            "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196608,
            "tie_word_embeddings": False, "num_experts_per_tok": 8, "num_local_experts": 256,
        },
        write=_MIXTRAL,
    ),
    "hunyuan_v1_moe": Family(
        model="HunYuanMoEV1ForCausalLM", read=_hunyuan_v1_moe,
        aliases={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
        defaults={
            "vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "num_experts": 1, "moe_topk": 1,
        },
        write={
            "intermediate_size": "d_expert", "num_experts": "n_experts", "moe_topk": "top_k",
            "attention_bias": qkv_bias,
        },
    ),
    "gpt_oss": Family(
        model="GptOssForCausalLM", read=_gpt_oss, aliases={"num_experts": "num_local_experts"},
        defaults={
            "num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201088, "hidden_size": 2880,
            "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
            "sliding_window": 128, "tie_word_embeddings": False, "max_position_embeddings": 131072,
            "num_experts_per_tok": 4, "layer_types": None, "attention_bias": True,
        },
        write=_MIXTRAL | WINDOWS | {"attention_bias": qkv_bias},
    ),
    "dbrx": Family(
        model="DbrxForCausalLM", read=_dbrx,
        aliases={
            "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers",
            "max_seq_len": "max_position_embeddings",
        },
        defaults={
            "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 24, "max_position_embeddings": 2048,
            "vocab_size": 32000, "tie_word_embeddings": False, "attn_config.kv_n_heads": 1,
            "ffn_config.ffn_hidden_size": 3584, "ffn_config.moe_num_experts": 4, "ffn_config.moe_top_k": 1,
        },
        write={
            "hidden_size": None, "num_attention_heads": None, "num_hidden_layers": None, "num_key_value_heads": None,
            "max_position_embeddings": None, "head_dim": None,
            "d_model": "d_model", "n_heads": "n_heads", "n_layers": "n_layers", "max_seq_len": "context_length",
            "attn_config.kv_n_heads": "n_kv_heads", "ffn_config.ffn_hidden_size": "d_expert",
            "ffn_config.moe_num_experts": "n_experts", "ffn_config.moe_top_k": "top_k",
        },
    ),
    "jetmoe": Family(
        model="JetMoeForCausalLM", read=_jetmoe, aliases={"kv_channels": "head_dim"},
        defaults={
            "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 12, "num_key_value_heads": 16,
            "head_dim": 128, "intermediate_size": 5632, "max_position_embeddings": 4096, "num_local_experts": 8,
            "num_experts_per_tok": 2, "tie_word_embeddings": True,
        },
        write=_MIXTRAL | {"head_dim": None, "kv_channels": "d_head"},
    ),
    "minimax": Family(
        model="MiniMaxForCausalLM", read=_minimax, aliases={"num_experts": "num_local_experts"},
        defaults={
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "sliding_window": None, "num_experts_per_tok": 2, "num_local_experts": 8,
            "layer_types": None,
        },
        write=_MIXTRAL | {
            "sliding_window": window,
            "layer_types": layer_types("linear_attention", lambda kind: isinstance(kind, LightningAttention)),
        },
    ),
}
# fmt: on
