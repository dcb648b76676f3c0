"""Architectures as command-line arguments of Megatron-LM (the flags of its main branch in August 2026)."""

from __future__ import annotations

import shlex
from dataclasses import replace

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.interchange._compare import refuse
from moe_optuna.interchange._reading import SLIDING
from moe_optuna.interchange._writing import WINDOWS, value, window
from moe_optuna.parts import (
    Attention,
    GatedFeedForward,
    GroupedQueryAttention,
    Interleaved,
    LatentAttention,
    Norm,
    Router,
)

__all__ = ["megatron_script", "to_megatron"]

Flags = dict[str, str | int | bool]


def to_megatron(architecture: MoEArchitecture) -> Flags:
    """Flags of Megatron-LM's `pretrain_gpt.py` and their values, ``True`` for switches.

    Only what shapes the model, and how it routes: by renormalised sigmoid scores, balanced by Megatron-LM's bias. No
    training, data or parallelism. The vocabulary is not padded, so that at tensor-parallel size 1 the parameters are
    those of the architecture.

    Raises:
        InputError: Where Megatron-LM has no flag for a part; it names the part.
    """
    a = architecture
    biased = a.experts == GatedFeedForward(bias=True)  # one switch for the biases of all linear layers
    first, _ = a.attention.layers(a.n_layers)[0]
    layer_norm = a.norm.bias and not (a.qk_norm or isinstance(first, LatentAttention))  # else those had biases too
    attention, attention_flags = _latent(a, first) if isinstance(first, LatentAttention) else _grouped(a, biased)
    flags: Flags = {
        "--num-layers": a.n_layers,
        "--hidden-size": a.d_model,
        "--ffn-hidden-size": a.d_dense or a.d_expert,
        "--num-attention-heads": a.n_heads,
        **attention_flags,
        "--seq-length": a.context_length,
        "--max-position-embeddings": a.context_length,
        "--position-embedding-type": "rope",
        "--vocab-size": a.vocab_size,
        "--make-vocab-size-divisible-by": 1,
        "--normalization": "LayerNorm" if layer_norm else "RMSNorm",
        "--swiglu": True,
        "--disable-bias-linear": not biased,
        "--untie-embeddings-and-output-weights": not a.tied_embeddings,
    }
    if a.n_moe_layers:
        flags |= {
            "--moe-layer-freq": f"([0]*{a.n_dense_layers}+[1]*{a.n_moe_layers})",
            "--num-experts": a.n_experts,
            "--moe-ffn-hidden-size": a.d_expert,
            "--moe-router-topk": a.top_k,
            "--moe-router-score-function": "sigmoid",
            "--moe-router-enable-expert-bias": True,
        }
    shared = bool(a.n_moe_layers and a.n_shared_experts)
    if shared:
        flags |= {
            "--moe-shared-expert-intermediate-size": a.shared_width,
            "--moe-shared-expert-gate": a.router.shared_gate,
        }
    block = GatedFeedForward(bias=biased)
    expressed = replace(
        a,
        attention=attention,
        feed_forward=block,
        experts=block,
        shared=GatedFeedForward() if shared else None,
        router=Router(bias=biased, shared_gate=shared and a.router.shared_gate),
        norm=Norm(bias=layer_norm),
        head_bias=False,
    )
    refuse(a, expressed, "Megatron-LM")
    return {flag: setting for flag, setting in flags.items() if setting is not False}


def _latent(a: MoEArchitecture, kind: LatentAttention) -> tuple[Attention, Flags]:
    flags: Flags = {
        "--multi-latent-attention": True,
        "--rope-type": "rope",
        **({"--q-lora-rank": kind.q_rank} if kind.q_rank else {}),
        "--kv-lora-rank": kind.kv_rank,
        "--qk-head-dim": kind.d_nope,
        "--qk-pos-emb-head-dim": kind.d_rope,
        "--v-head-dim": kind.d_value,
        "--qk-layernorm": True,  # here: the norms of the latents
    }
    return replace(kind, bias=False), flags


def _grouped(a: MoEArchitecture, biased: bool) -> tuple[Attention, Flags]:
    """Grouped-query attention as far as the flags go: the layers of the architecture, stripped of what has none."""
    layers = a.attention.layers(a.n_layers)
    first = next((kind for kind, _ in layers if isinstance(kind, GroupedQueryAttention)), GroupedQueryAttention())
    plain = GroupedQueryAttention(
        qkv_bias=first.qkv_bias or biased, output_bias=biased, sinks=first.sinks, output_gate=first.output_gate
    )
    expressed = tuple((replace(plain, window=getattr(kind, "window", None)), count) for kind, count in layers)
    flags: Flags = {
        "--group-query-attention": True,
        "--num-query-groups": a.n_kv_heads,
        "--kv-channels": a.d_head,
        "--qk-layernorm": a.qk_norm,
        "--add-qkv-bias": first.qkv_bias and not biased,
        "--attention-output-gate": first.output_gate,
    }
    if first.sinks:
        flags["--softmax-type"] = "learnable"
    if (size := window(a)) is not None:
        pattern = [int(word == SLIDING) for word in value(a, WINDOWS["layer_types"])]
        flags |= {"--window-size": f"({size - 1},0)", "--window-attn-skip-freq": str(pattern).replace(" ", "")}
    return Interleaved(expressed), flags


def megatron_script(architecture: MoEArchitecture) -> str:
    """The flags as a bash array, to be sourced and passed as ``"${MODEL_ARGS[@]}"``."""
    flags = to_megatron(architecture)
    lines = [flag if setting is True else f"{flag} {shlex.quote(str(setting))}" for flag, setting in flags.items()]
    return "\n".join(["MODEL_ARGS=(", *(f"    {line}" for line in lines), ")", ""])
