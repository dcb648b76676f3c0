"""What the families' configurations share: how their keys become the arguments of `MoEArchitecture`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_optuna.interchange._config import Config
from moe_optuna.parts import Attention, GroupedQueryAttention, LatentAttention

__all__ = [
    "FULL",
    "SLIDING",
    "Words",
    "biases",
    "dense",
    "every_step",
    "first_dense",
    "heads",
    "latent",
    "listed_dense",
    "model",
    "moe",
    "shared_width",
    "windowed",
]

Words = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"


def model(c: Config) -> Words:
    """Width, vocabulary, context, tying."""
    return {
        "d_model": c.integer("hidden_size"),
        "vocab_size": c.integer("vocab_size"),
        "context_length": c.integer("max_position_embeddings"),
        "tied_embeddings": c.flag("tie_word_embeddings"),
    }


def heads(c: Config) -> Words:
    """Query and key heads; a missing head width is the model width divided among the query heads."""
    n_heads = c.integer("num_attention_heads")
    missing = c.get("num_key_value_heads") is None
    return {
        "n_heads": n_heads,
        "n_kv_heads": n_heads if missing else c.divides("num_key_value_heads", "num_attention_heads"),
        "d_head": c.optional("head_dim") or c.integer("hidden_size") // c.divides("num_attention_heads", "hidden_size"),
    }


def biases(c: Config, key: str = "attention_bias") -> Words:
    """Biases on all four attention projections, or on none."""
    return {"qkv_bias": c.flag(key), "output_bias": c.flag(key)}


def windowed(c: Config, derive: Callable[[int], str], window: int | None, **options: Any) -> Attention:
    """Grouped-query attention, full and sliding-window layers as `layer_types` says."""
    kinds = {FULL: GroupedQueryAttention(**options), SLIDING: GroupedQueryAttention(window=window, **options)}
    return c.attention(kinds, derive)


def latent(c: Config) -> Words:
    """Multi-head latent attention; every query head has a key head of its own.

    A file with `kv_lora_rank` and without `q_lora_rank` has no query rank: tools that drop nulls leave such files.
    """
    dropped = c.given("kv_lora_rank") and not c.given("q_lora_rank")
    attention = LatentAttention(
        kv_rank=c.integer("kv_lora_rank"),
        q_rank=None if dropped else c.optional("q_lora_rank"),
        d_nope=c.integer("qk_nope_head_dim", least=0),
        d_rope=c.integer("qk_rope_head_dim", least=0),
        d_value=c.integer("v_head_dim"),
        bias=c.flag("attention_bias"),
    )
    n_heads = c.integer("num_attention_heads")
    return {
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": attention.d_nope + attention.d_rope,
        "qk_norm": False,
        "attention": attention,
    }


def dense(c: Config) -> Words:
    """All layers dense."""
    none = dict.fromkeys(("n_moe_layers", "d_expert", "n_experts", "top_k", "n_shared_experts"), 0)
    return none | {"n_dense_layers": c.layers, "d_dense": c.integer("intermediate_size")}


def moe(
    c: Config,
    dense_layers: int = 0,
    *,
    width: str = "moe_intermediate_size",
    experts: str = "num_experts",
    top_k: str = "num_experts_per_tok",
    shared: str | None = None,
) -> Words:
    """A dense block in `dense_layers` layers, experts in the others; `shared` is the key of the shared ones' number."""
    if dense_layers == c.layers:
        return dense(c)
    if c.integer(top_k) > c.integer(experts):
        raise c.error(top_k, f"{c.integer(top_k)}, expected at most {experts} = {c.integer(experts)}")
    return {
        "n_dense_layers": dense_layers,
        "n_moe_layers": c.layers - dense_layers,
        "d_dense": c.integer("intermediate_size") if dense_layers else 0,
        "d_expert": c.integer(width),
        "n_experts": c.integer(experts),
        "top_k": c.integer(top_k),
        "n_shared_experts": c.integer(shared, least=0) if shared else 0,
    }


def shared_width(words: Words, width: int) -> Words:
    """The words of `moe` with shared experts `width` wide together, in units of a routed expert where that divides."""
    if not words["n_moe_layers"] or not width:
        return words
    count, rest = divmod(width, words["d_expert"])
    return words | ({"n_shared_experts": 1, "d_shared": width} if rest else {"n_shared_experts": count})


def first_dense(c: Config, key: str = "first_k_dense_replace") -> int:
    """Dense layers where the first ones are."""
    return min(c.integer(key, least=0), c.layers)


def every_step(c: Config) -> int:
    """Dense layers where every `decoder_sparse_step`-th layer that is not in `mlp_only_layers` has experts."""
    if c.get("num_experts") == 0:
        return c.layers
    step, only_dense = c.integer("decoder_sparse_step"), c.indices("mlp_only_layers")
    return sum(layer in only_dense or (layer + 1) % step != 0 for layer in range(c.layers))


def listed_dense(c: Config, derive: Callable[[int], str]) -> int:
    """Dense layers where `mlp_layer_types` lists them."""
    return c.per_layer("mlp_layer_types", ("dense", "sparse"), derive)["dense"]
