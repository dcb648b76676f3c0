"""The first layers dense, then experts beside shared ones: DeepSeek and its like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.interchange._config import Config
from moe_optuna.interchange._family import Family
from moe_optuna.interchange._reading import (
    FULL,
    SLIDING,
    Words,
    biases,
    first_dense,
    heads,
    latent,
    listed_dense,
    model,
    moe,
    windowed,
)
from moe_optuna.interchange._writing import MIXTURE, WINDOWS, dense_first, layer_types, of, qkv_bias
from moe_optuna.parts import Attention, GatedFeedForward, GroupedQueryAttention, IndexedAttention, Norm, Router

__all__ = ["FAMILIES"]


def _deepseek(c: Config) -> Words:
    c.only("moe_layer_freq", 1)
    mixture = moe(c, first_dense(c), experts="n_routed_experts", shared="n_shared_experts")
    return model(c) | latent(c) | mixture


def _deepseek_v2(c: Config) -> Words:
    block = GatedFeedForward(bias=c.flag("mlp_bias"))
    return _deepseek(c) | {"feed_forward": block, "shared": block if block.bias else None}


def _glm4_moe(c: Config) -> Words:
    return model(c) | heads(c) | moe(c, first_dense(c), experts="n_routed_experts", shared="n_shared_experts") | {
        "qk_norm": c.flag("use_qk_norm"),
        "attention": GroupedQueryAttention(qkv_bias=c.flag("attention_bias")),
    }  # fmt: skip


def _glm4_moe_lite(c: Config) -> Words:
    dense_layers = listed_dense(c, lambda layer: "sparse" if layer else "dense")
    return model(c) | latent(c) | moe(c, dense_layers, experts="n_routed_experts", shared="n_shared_experts")


def _indexed(c: Config) -> tuple[Words, IndexedAttention]:
    """The words but the attention, and that of a layer with an indexer."""
    first = c.integer("first_k_dense_replace", least=0)
    dense_layers = listed_dense(c, lambda layer: "dense" if layer < first else "sparse")
    words = model(c) | latent(c) | moe(c, dense_layers, experts="n_routed_experts", shared="n_shared_experts")
    return words, IndexedAttention(
        latent=replace(words["attention"], q_rank=c.integer("q_lora_rank")),
        top_k=c.integer("index_topk"),
        n_heads=c.integer("index_n_heads"),
        d_head=c.integer("index_head_dim"),
    )


def _deepseek_v32(c: Config) -> Words:
    words, attention = _indexed(c)
    return words | {"attention": attention}


def _glm_moe_dsa(c: Config) -> Words:
    words, full = _indexed(c)
    kinds: dict[str, Attention] = {"full": full, "shared": replace(full, n_heads=0, d_head=0)}

    def derive(layer: int) -> str:
        c.only("index_topk_pattern", None)
        after = max(layer + 1 - c.integer("index_skip_topk_offset", least=0), 0)
        return "shared" if after % max(c.integer("index_topk_freq", least=0), 1) else "full"

    return words | {"attention": c.attention(kinds, derive, "indexer_types")}


def _indexer_types(architecture: MoEArchitecture) -> list[str]:
    """The first layer has an indexer, whose choice layers without one take."""
    words = layer_types("shared", lambda kind: isinstance(kind, IndexedAttention) and not kind.n_heads)(architecture)
    return [{FULL: "full"}.get(word, word) for word in reversed(words)]


def _dots1(c: Config) -> Words:
    c.only("moe_layer_freq", 1)
    first = c.integer("max_window_layers", least=0) if c.window() else c.layers
    return model(c) | heads(c) | moe(c, first_dense(c), experts="n_routed_experts", shared="n_shared_experts") | {
        "attention": windowed(c, lambda layer: SLIDING if layer >= first else FULL, c.window(), **biases(c))
    }  # fmt: skip


def _ernie4_5_moe(c: Config) -> Words:
    interval, start = c.integer("moe_layer_interval"), c.integer("moe_layer_start_index", least=0)
    end = c.integer("moe_layer_end_index", least=-1)
    last = c.layers - 1 if end == -1 else end
    sparse = sum((layer + 1) % interval == 0 and start <= layer <= last for layer in range(c.layers))
    block = GatedFeedForward(bias=c.flag("use_bias"))
    names = {"experts": "moe_num_experts", "top_k": "moe_k", "shared": "moe_num_shared_experts"}
    return model(c) | heads(c) | moe(c, c.layers - sparse, **names) | {
        "qk_norm": False,
        "attention": GroupedQueryAttention(**biases(c, "use_bias")),
        "feed_forward": block,
        "shared": block if block.bias else None,
        "router": Router(bias=True),
        "head_bias": block.bias,
    }  # fmt: skip


def _bailing_moe(c: Config) -> Words:
    attention = GroupedQueryAttention(qkv_bias=c.flag("use_qkv_bias"), output_bias=c.flag("use_bias"))
    return model(c) | heads(c) | moe(c, first_dense(c), shared="num_shared_experts") | {
        "qk_norm": c.flag("use_qk_norm"),
        "attention": attention,
    }  # fmt: skip


def _solar_open(c: Config) -> Words:
    return model(c) | heads(c) | moe(c, experts="n_routed_experts", shared="n_shared_experts") | {
        "qk_norm": False,
        "attention": GroupedQueryAttention(qkv_bias=c.flag("attention_bias")),
    }  # fmt: skip


def _exaone_moe(c: Config) -> Words:
    window, first = c.window(), first_dense(c)
    mixture = moe(c, listed_dense(c, lambda layer: "dense" if layer < first else "sparse"), shared="num_shared_experts")

    def derive(layer: int) -> str:
        pattern = c.get("sliding_window_pattern")
        if isinstance(pattern, str) and pattern and set(pattern) <= set("LG"):  # the last is global
            local = pattern[layer % len(pattern)] == "L" and layer + 1 < c.layers
        else:
            local = (layer + 1) % c.integer("sliding_window_pattern") != 0
        return SLIDING if window and local else FULL

    return model(c) | heads(c) | mixture | {"attention": windowed(c, derive, window)}


def _afmoe(c: Config) -> Words:
    every = c.integer("global_attn_every_n_layers")
    attention = windowed(
        c, lambda layer: SLIDING if (layer + 1) % every else FULL, c.window(), output_gate=True, **biases(c)
    )
    return model(c) | heads(c) | moe(c, first_dense(c, "num_dense_layers"), shared="num_shared_experts") | {
        "attention": attention,
        "norm": Norm(per_layer=4),
        "router": Router(bias=True),
    }  # fmt: skip


_LATENT: dict[str, Any] = {
    "head_dim": None,
    "q_lora_rank": "attention.q_rank",
    "kv_lora_rank": "attention.kv_rank",
    "qk_nope_head_dim": "attention.d_nope",
    "qk_rope_head_dim": "attention.d_rope",
    "v_head_dim": "attention.d_value",
    "attention_bias": "attention.bias",
}
_INDEXED: dict[str, Any] = {
    "head_dim": None,
    "q_lora_rank": of(IndexedAttention, "latent.q_rank"),
    "kv_lora_rank": of(IndexedAttention, "latent.kv_rank"),
    "qk_nope_head_dim": of(IndexedAttention, "latent.d_nope"),
    "qk_rope_head_dim": of(IndexedAttention, "latent.d_rope"),
    "v_head_dim": of(IndexedAttention, "latent.d_value"),
    "attention_bias": of(IndexedAttention, "latent.bias"),
    "index_topk": of(IndexedAttention, "top_k"),
    "index_n_heads": of(IndexedAttention, "n_heads"),
    "index_head_dim": of(IndexedAttention, "d_head"),
}
# Routing in one group and without a scale, since an architecture holds none.
_ROUTING: dict[str, Any] = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True}
_ROUTED = _ROUTING | {
    "intermediate_size": "d_dense",
    "moe_intermediate_size": "d_expert",
    "n_routed_experts": "n_experts",
    "num_experts_per_tok": "top_k",
    "n_shared_experts": "n_shared_experts",
}

# fmt: off
FAMILIES = {
    "glm4_moe": Family(
        model="Glm4MoeForCausalLM", read=_glm4_moe, aliases={"num_local_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
            "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "attention_bias": False, "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128, "first_k_dense_replace": 1,
            "use_qk_norm": False,
        },
        write=_ROUTED | {
            "first_k_dense_replace": "n_dense_layers", "use_qk_norm": "qk_norm", "attention_bias": qkv_bias,
            "num_nextn_predict_layers": 0, "partial_rotary_factor": 1.0,
        },
    ),
    "deepseek_v3": Family(
        model="DeepseekV3ForCausalLM", read=_deepseek, aliases={"num_local_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
            "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": False,
        },
        write=_LATENT | _ROUTED | {"first_k_dense_replace": "n_dense_layers", "num_nextn_predict_layers": 0},
    ),
    "deepseek_v32": Family(
        model="DeepseekV32ForCausalLM", read=_deepseek_v32,
        aliases={"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
            "num_hidden_layers": 61, "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "mlp_layer_types": None,
            "max_position_embeddings": 163840, "tie_word_embeddings": False, "attention_bias": False,
            "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64,
        },
        write=_INDEXED | _ROUTED | {"first_k_dense_replace": "n_dense_layers", "mlp_layer_types": dense_first},
    ),
    "glm_moe_dsa": Family(
        model="GlmMoeDsaForCausalLM", read=_glm_moe_dsa,
        aliases={"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288, "moe_intermediate_size": 2048,
            "num_hidden_layers": 78, "num_attention_heads": 64, "n_shared_experts": 1, "n_routed_experts": 256,
            "kv_lora_rank": 512, "q_lora_rank": 2048, "qk_rope_head_dim": 64, "v_head_dim": 256,
            "qk_nope_head_dim": 192, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "mlp_layer_types": None,
            "max_position_embeddings": 202752, "tie_word_embeddings": False, "attention_bias": False,
            "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32, "indexer_types": None,
            "index_topk_freq": 1, "index_skip_topk_offset": 2,
        },
        write=_INDEXED | _ROUTED | {
            "first_k_dense_replace": "n_dense_layers", "mlp_layer_types": dense_first, "indexer_types": _indexer_types,
        },
    ),
    "deepseek_v2": Family(
        model="DeepseekV2ForCausalLM", read=_deepseek_v2, aliases={"num_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "attention_bias": False, "mlp_bias": False, "first_k_dense_replace": 0, "kv_lora_rank": 512,
            "q_lora_rank": 1536, "n_routed_experts": 64, "n_shared_experts": 2, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "num_experts_per_tok": None, "moe_intermediate_size": 1407,
        },
        write=_LATENT | _ROUTED | {"first_k_dense_replace": "n_dense_layers", "mlp_bias": "feed_forward.bias"},
    ),
    "glm4_moe_lite": Family(
        model="Glm4MoeLiteForCausalLM", read=_glm4_moe_lite,
        aliases={"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
        defaults={
            "vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536,
            "num_hidden_layers": 47, "num_attention_heads": 20, "n_shared_experts": 1, "n_routed_experts": 64,
            "kv_lora_rank": 512, "q_lora_rank": 768, "qk_rope_head_dim": 64, "v_head_dim": 256,
            "qk_nope_head_dim": 192, "num_experts_per_tok": 4, "max_position_embeddings": 202752,
            "tie_word_embeddings": False, "mlp_layer_types": None, "attention_bias": False,
        },
        write=_LATENT | _ROUTED | {"mlp_layer_types": dense_first},
    ),
    "dots1": Family(
        model="Dots1ForCausalLM", read=_dots1, aliases={"num_local_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 152064, "hidden_size": 4608, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 32, "n_shared_experts": None,
            "n_routed_experts": None, "num_experts_per_tok": None, "first_k_dense_replace": 0,
            "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
            "sliding_window": 4096, "max_window_layers": 62, "layer_types": None,
        },
        write=_ROUTED | WINDOWS | {"first_k_dense_replace": "n_dense_layers", "attention_bias": qkv_bias},
    ),
    "ernie4_5_moe": Family(
        model="Ernie4_5_MoeForCausalLM", read=_ernie4_5_moe,
        aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
        defaults={
            "vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "tie_word_embeddings": True, "use_bias": False, "moe_intermediate_size": 1536, "moe_k": 6,
            "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        },
        write={
            "intermediate_size": "d_dense", "moe_intermediate_size": "d_expert", "moe_num_experts": "n_experts",
            "moe_k": "top_k", "moe_num_shared_experts": "n_shared_experts", "moe_layer_start_index": "n_dense_layers",
            "use_bias": qkv_bias,
        },
    ),
    "bailing_moe": Family(
        # Ling: read from its authors' own modelling code, not part of transformers; its defaults are not relied on.
        model="BailingMoeV2ForCausalLM", read=_bailing_moe,
        defaults={"first_k_dense_replace": 0, "num_shared_experts": 0},
    ),
    "solar_open": Family(
        model="SolarOpenForCausalLM", read=_solar_open, aliases={"num_local_experts": "n_routed_experts"},
        defaults={
            "vocab_size": 196608, "hidden_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 64,
            "num_key_value_heads": 8, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "attention_bias": False, "moe_intermediate_size": 1280, "num_experts_per_tok": 8, "n_shared_experts": 1,
            "n_routed_experts": 128, "head_dim": 128,
        },
        write=_ROUTED | {"intermediate_size": None, "attention_bias": qkv_bias},
    ),
    "exaone_moe": Family(
        model="ExaoneMoeForCausalLM", read=_exaone_moe,
        defaults={
            "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
            "tie_word_embeddings": False, "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None,
            "mlp_layer_types": None, "first_k_dense_replace": 1, "moe_intermediate_size": 1024, "num_experts": 64,
            "num_experts_per_tok": 8, "num_shared_experts": 1,
        },
        write=MIXTURE | WINDOWS | _ROUTING | {
            "num_shared_experts": "n_shared_experts", "first_k_dense_replace": "n_dense_layers",
            "mlp_layer_types": dense_first,
        },
    ),
    "afmoe": Family(
        model="AfmoeForCausalLM", read=_afmoe,
        defaults={
            "vocab_size": 200192, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 1408,
            "num_hidden_layers": 32, "num_dense_layers": 1, "num_attention_heads": 16, "head_dim": 128,
            "max_position_embeddings": 16384, "tie_word_embeddings": False, "num_experts": 64, "num_experts_per_tok": 6,
            "num_shared_experts": 2, "global_attn_every_n_layers": 4, "sliding_window": 1024, "layer_types": None,
            "attention_bias": False,
        },
        write=MIXTURE | WINDOWS | {
            "num_shared_experts": "n_shared_experts",
            "num_dense_layers": "n_dense_layers", "attention_bias": qkv_bias,
        },
    ),
}
# fmt: on
