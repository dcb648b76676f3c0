"""Architectures as a model flavour of torchtitan (the configuration classes of its main branch in August 2026).

torchtitan has no configuration file for the shape of a model: a flavour is a Python function that returns the model's
configuration. This writes such a function.
"""

from __future__ import annotations

from dataclasses import replace
from string import Template
from typing import Any

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.interchange._compare import refuse
from moe_optuna.parts import GatedFeedForward, GroupedQueryAttention, LatentAttention, Norm, Router

__all__ = ["to_torchtitan"]


def to_torchtitan(architecture: MoEArchitecture) -> str:
    """Python source of a function `flavor`, to be entered into torchtitan's `qwen3_configs` or `deepseekv3_configs`.

    Grouped-query attention makes a Qwen3 model, latent attention a DeepSeek-V3 model, each layer dense or a mixture as
    the architecture says. Routing is by renormalised sigmoid scores, balanced by torchtitan's bias.

    Raises:
        InputError: Where torchtitan's configurations cannot express a part; it names the part.
    """
    a = architecture
    latent = isinstance(a.attention, LatentAttention)
    plain: dict[str, Any] = {
        "attention": replace(a.attention, bias=False)
        if isinstance(a.attention, LatentAttention)
        else GroupedQueryAttention(),
        "feed_forward": GatedFeedForward(),
        "experts": GatedFeedForward(),
        "shared": None,
        "router": Router(),
        "norm": Norm(),
        "head_bias": False,
    }
    refuse(a, replace(a, **plain), "torchtitan")
    words = {
        "family": "deepseek_v3" if latent else "qwen3",
        "model": "DeepSeekV3Model" if latent else "Qwen3Model",
        "block": "DeepSeekV3TransformerBlock" if latent else "Qwen3TransformerBlock",
        "attention_import": (
            "from torchtitan.models.deepseek_v3 import make_mla_attention_config"
            if latent
            else "from torchtitan.models.common.config_utils import get_attention_config, make_gqa_config"
        ),
        "attention": Template(_LATENT if latent else _GROUPED).substitute(_attention_words(a)),
        "embedding_init": "skip_param_init" if a.tied_embeddings else "partial(nn.init.normal_, std=0.02)",
        "shared_experts": f"feed_forward({a.shared_width})" if a.n_shared_experts else "None",
        **{name: getattr(a, name) for name in _DIMENSIONS},
    }
    return Template(_FLAVOR).substitute(words)


_DIMENSIONS = (
    "d_model", "n_layers", "n_dense_layers", "n_heads", "n_kv_heads", "d_head", "d_dense", "d_expert", "n_experts",
    "top_k", "context_length", "vocab_size", "tied_embeddings",
)  # fmt: skip


def _attention_words(a: MoEArchitecture) -> dict[str, object]:
    words = {name: getattr(a, name) for name in _DIMENSIONS}
    if isinstance(a.attention, LatentAttention):
        kind = a.attention
        words |= {"q_rank": kind.q_rank or 0, "kv_rank": kind.kv_rank, "d_nope": kind.d_nope, "d_rope": kind.d_rope}
        return words | {"d_value": kind.d_value}
    return words | {"qk_norm": f"norm({a.d_head})" if a.qk_norm else "None"}


_GROUPED = """\
    return make_gqa_config(
        dim=$d_model,
        n_heads=$n_heads,
        n_kv_heads=$n_kv_heads,
        head_dim=$d_head,
        wqkv_param_init=INIT,
        wo_param_init=INIT,
        inner_attention=get_attention_config(attn_backend),
        qk_norm=$qk_norm,
        rope=CosSinRoPE.Config(dim=$d_head, max_context_length=$context_length, theta=10000.0),
    )"""

_LATENT = """\
    return make_mla_attention_config(
        layer_id=layer_id,
        dim=$d_model,
        n_heads=$n_heads,
        q_lora_rank=$q_rank,
        kv_lora_rank=$kv_rank,
        qk_nope_head_dim=$d_nope,
        qk_rope_head_dim=$d_rope,
        v_head_dim=$d_value,
        attn_backend=attn_backend,
        linear_init=INIT,
        norm_init=NORM_INIT,
        depth_init=lambda layer_id: INIT,
        rope=ComplexRoPE.Config(dim=$d_rope, max_context_length=$context_length, theta=10000.0),
    )"""

_FLAVOR = '''\
"""A model flavour for torchtitan, written by moe-optuna: an entry of `${family}_configs`."""

from functools import partial

import torch.nn as nn
$attention_import
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import (
    make_ffn_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.$family.model import $model, $block

INIT = {"weight": partial(nn.init.trunc_normal_, std=0.02), "bias": nn.init.zeros_}
NORM_INIT = {"weight": nn.init.ones_}
EXPERTS_INIT = dict.fromkeys(("w1_EFD", "w2_EDF", "w3_EFD"), INIT["weight"])


def norm(dim):
    return RMSNorm.Config(normalized_shape=dim, param_init=NORM_INIT)


def feed_forward(hidden_dim):
    return make_ffn_config(dim=$d_model, hidden_dim=hidden_dim, w1_param_init=INIT, w2w3_param_init=INIT)


def mixture(comm_backend):
    return make_moe_config(
        num_experts=$n_experts,
        router=make_router_config(
            dim=$d_model,
            num_experts=$n_experts,
            gate_param_init=INIT,
            top_k=$top_k,
            score_func="sigmoid",
            route_norm=True,
        ),
        routed_experts=make_routed_experts_config(
            dim=$d_model,
            hidden_dim=$d_expert,
            num_experts=$n_experts,
            top_k=$top_k,
            param_init=EXPERTS_INIT,
            comm_backend=comm_backend,
        ),
        shared_experts=$shared_experts,
    )


def attention(layer_id, attn_backend):
$attention


def flavor(attn_backend="flex", moe_comm_backend="standard"):
    return $model.Config(
        dim=$d_model,
        vocab_size=$vocab_size,
        enable_weight_tying=$tied_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=$vocab_size,
            embedding_dim=$d_model,
            param_init={"weight": $embedding_init},
        ),
        norm=norm($d_model),
        lm_head=Linear.Config(in_features=$d_model, out_features=$vocab_size, param_init=INIT),
        layers=[
            $block.Config(
                attention_norm=norm($d_model),
                ffn_norm=norm($d_model),
                attention=attention(layer_id, attn_backend),
                feed_forward=feed_forward($d_dense) if layer_id < $n_dense_layers else None,
                moe=None if layer_id < $n_dense_layers else mixture(moe_comm_backend),
            )
            for layer_id in range($n_layers)
        ],
    )
'''
