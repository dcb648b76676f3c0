"""A decoder-only Mixture-of-Experts language model, to be read from top to bottom.

Notable features:
- RMSNorm before attention and feed-forward block, and before the head; rotary positions; QK norm; no dropout
- grouped-query attention through scaled_dot_product_attention
- SwiGLU everywhere; the first layers dense, those after them with routed and shared experts
- a float32 router, balanced by a bias and a small loss; no token is dropped
- every parameter that `MoEArchitecture.full` counts, and no other

Shapes: B sequences, S context, T = B S tokens, D model width, V vocabulary. Activations keep (T, D) throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.parts import GatedFeedForward, GroupedQueryAttention, Norm, Router
from moe_optuna.training import native
from moe_optuna.training._recipe import Recipe
from moe_optuna.training.attention import Attention, rotary_table
from moe_optuna.training.experts import Experts, product_path
from moe_optuna.training.kernels import apply, rms_norm, swiglu
from moe_optuna.training.router import RoutingRule, TopKRouter
from moe_optuna.training.sublayers import AttentionSublayer, DenseSublayer, HeadLoss, MoESublayer

__all__ = ["MoELanguageModel"]


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gain)


class Dense(nn.Module):
    """A SwiGLU block; also the shared experts of a layer, which are one block as wide as all of them."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return cast(Tensor, self.down(swiglu(self.gate_up(x_TD))))


class MoE(nn.Module):
    """Routed and shared experts; beside its output it returns the router's loss."""

    def __init__(self, a: MoEArchitecture, rule: RoutingRule) -> None:
        super().__init__()
        self.router = TopKRouter(a.d_model, a.n_experts, rule, bias=a.router.bias)
        self.experts = Experts(a.d_model, a.d_expert, a.n_experts)
        self.shared = Dense(a.d_model, a.shared_width) if a.shared_width else None

    def forward(self, x_TD: Tensor, n_sequences: int) -> tuple[Tensor, Tensor]:
        routing = self.router(x_TD, n_sequences)
        y_TD = self.experts(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD, routing.loss


class Layer(nn.Module):
    """Attention, then a dense or a MoE block, each behind a norm and around a residual.

    `forward` says it to autograd step by step; `fused` is the same in one node a sublayer, where `can_fuse`.
    """

    def __init__(self, a: MoEArchitecture, attention: GroupedQueryAttention, block: Dense | MoE) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(a.d_model)
        self.attention = Attention(a, attention)
        self.block_norm = RMSNorm(a.d_model)
        self.block = block
        router = block.router if isinstance(block, MoE) else None
        biases = (attention.qkv_bias, attention.output_bias, router is not None and router.bias is not None)
        self.has_fused_parts = self.attention.window is None and attention.norm_over != "width" and not any(biases)
        self._slots = self._find_slots()

    def forward(
        self, x_TD: Tensor, n_sequences: int, table: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if seen is None and self.can_fuse(x_TD):
            return self.fused(x_TD, n_sequences, table)
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), n_sequences, table, seen)
        if isinstance(self.block, Dense):
            return x_TD + self.block(self.block_norm(x_TD)), None
        y_TD, loss = self.block(self.block_norm(x_TD), n_sequences)
        return x_TD + y_TD, loss

    def can_fuse(self, x_TD: Tensor) -> bool:
        """On a CPU in full precision, without the parts that `fused` leaves out."""
        return self.has_fused_parts and x_TD.device.type == "cpu" and not torch.is_autocast_enabled("cpu")

    def fused(self, x_TD: Tensor, n_sequences: int, table: Tensor) -> tuple[Tensor, Tensor | None]:
        a, block, block_gain = self.attention, self.block, self.block_norm.gain
        gains = (a.query_gain, a.key_gain) if a.norm_over else (None, None)
        shape, table = (n_sequences, *a.shape), table[: len(x_TD) // n_sequences]
        weights = (a.qkv.weight, *gains, a.output.weight)
        x_TD = apply(AttentionSublayer, x_TD, self.attention_norm.gain, *weights, table, shape)
        if isinstance(block, Dense):
            return apply(DenseSublayer, x_TD, block_gain, block.gate_up.weight, block.down.weight), None
        router, experts = block.router, block.experts
        shared = (None, None) if block.shared is None else (block.shared.gate_up.weight, block.shared.down.weight)
        weights = (router.weight, experts.gate_up_EGD, experts.down_EDF, *shared)
        x_TD, loss, count_E = apply(
            MoESublayer, x_TD, block_gain, *weights, router.selection_bias, router.rule, n_sequences
        )
        router.count(count_E)
        return x_TD, loss

    def weights(self) -> list[Tensor | None]:
        """What `native.losses` asks of a layer, in its order."""
        return [None if slot is None else slot[0][slot[1]] for slot in self._slots]

    def _find_slots(self) -> list[Any]:
        """Where `weights` finds each: a dictionary and a key. As attributes of modules, which Python looks for at
        length, they would take as long as the arithmetic of a small layer."""
        a, block = self.attention, self.block
        gains = [(a._parameters, name) if a.norm_over else None for name in ("query_gain", "key_gain")]
        slots = [_gain(self.attention_norm), _weight(a.qkv), *gains, _weight(a.output), _gain(self.block_norm)]
        if isinstance(block, Dense):
            return [*slots, _weight(block.gate_up), _weight(block.down), *[None] * 5]
        slots += [(block.experts._parameters, "gate_up_EGD"), (block.experts._parameters, "down_EDF")]
        shared = [None] * 2 if block.shared is None else [_weight(block.shared.gate_up), _weight(block.shared.down)]
        buffers = [(block.router._buffers, name) for name in ("selection_bias", "load")]
        return [*slots, _weight(block.router), *shared, *buffers]


def _weight(module: nn.Module) -> Any:
    return module._parameters, "weight"


def _gain(module: nn.Module) -> Any:
    return module._parameters, "gain"


class MoELanguageModel(nn.Module):
    """The model of an architecture.

    Args:
        architecture: What to build.
        recipe: Its router's rule.
        end: Token id that ends a document, beyond which nothing before it is attended to; ``None``: no such bound.

    Attributes:
        is_compiled: Whether layers and head are compiled (`compile_parts`).

    Raises:
        InputError: Where the architecture has a part that is counted but not trained here.
    """

    def __init__(self, architecture: MoEArchitecture, recipe: Recipe | None = None, end: int | None = None) -> None:
        super().__init__()
        a, recipe = architecture, recipe or Recipe()
        self.architecture, self.end = a, end
        self.rule = rule = RoutingRule(a.top_k, recipe.scores, recipe.balance_loss, recipe.z_loss)
        self.spare: list[Tensor] = []
        self.is_compiled = False
        self.embedding = nn.Embedding(a.vocab_size, a.d_model)
        self.layers = nn.ModuleList(
            Layer(a, kind, Dense(a.d_model, a.d_dense) if index < a.n_dense_layers else MoE(a, rule))
            for index, kind in enumerate(_attention_kinds(a))
        )
        self.norm = RMSNorm(a.d_model)
        self.head = nn.Linear(a.d_model, a.vocab_size, bias=a.head_bias)
        self.head_loss = _head_loss
        if a.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.rotary: Tensor
        self.register_buffer(
            "rotary", rotary_table(a.context_length, a.n_heads + a.n_kv_heads, a.d_head), persistent=False
        )

    def forward(self, token_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) of the next token, and the routers' losses added up (a scalar)."""
        x_TD, router_loss = self._layers(token_BS)
        return self.head(self.norm(x_TD)).view(*token_BS.shape, -1), router_loss

    def loss(self, token_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy [nats per token] of the targets, and the routers' losses."""
        weights = self.native_weights()
        if weights is not None:
            return native.losses(self.native_step(token_BS, target_BS), weights)
        x_TD, router_loss = self._layers(token_BS)
        if self.head.bias is None and self.layers[0].can_fuse(x_TD):
            return apply(HeadLoss, x_TD, self.norm.gain, self.head.weight, target_BS.flatten()), router_loss
        loss = self.head_loss(x_TD, self.norm.gain, self.head.weight, self.head.bias, target_BS.flatten())
        return loss, router_loss

    def compile_parts(self, **settings: Any) -> None:
        """Have `torch.compile`, with these settings, make kernels for each layer and for the head with its loss."""
        for layer in self.layers:
            layer.compile(**settings)
        self.head_loss = torch.compile(_head_loss, **settings)
        self.is_compiled = True

    def path(self) -> str:
        """What `loss` runs: ``"native"``, the model in one call; ``"sublayers"``, a node each; ``"modules"``."""
        if self.native_weights() is not None:
            return "native"
        return "sublayers" if self._can_fuse() else "modules"

    def is_grouped(self) -> bool:
        """Whether the experts' products are single kernels under autocast to bfloat16, rather than one an expert."""
        device, low = self.embedding.weight.device, torch.bfloat16
        moe = [layer.block.experts for layer in self.layers if isinstance(layer.block, MoE)]
        weights = [w.transpose(-2, -1) for experts in moe for w in (experts.gate_up_EGD, experts.down_EDF)]
        rows = (torch.empty(0, w.shape[-2], dtype=low, device=device) for w in weights)
        return all(product_path(row, w) != "loop" for row, w in zip(rows, weights, strict=True))

    def _can_fuse(self) -> bool:
        weight = self.embedding.weight
        return (
            self.end is None
            and self.head.bias is None
            and all(cast(Layer, layer).can_fuse(weight) for layer in self.layers)
        )

    def native_weights(self) -> list[Tensor | None] | None:
        """What `native.losses` asks of a model, where it can have it."""
        if not self._can_fuse() or self.rotary.dtype is not torch.complex64:
            return None
        weights: list[Tensor | None] = [self.embedding.weight, self.norm.gain, self.head.weight]
        for layer in self.layers:
            weights += cast(Layer, layer).weights()
        if not self.training:  # loads are not added to
            weights[2 + native.PER_LAYER :: native.PER_LAYER] = [None] * len(self.layers)
        return weights if native.takes(weights) else None

    def native_step(self, token_BS: Tensor, target_BS: Tensor) -> native.Step:
        """What its losses depend on beside the weights, where it can have them."""
        a, rule = self.architecture, self.rule
        B, S = token_BS.shape
        shape = native.Shape(
            B=B, S=S, D=a.d_model, V=a.vocab_size, H=a.n_heads, G=a.n_kv_heads, C=a.d_head,
            layers=a.n_layers, dense_layers=a.n_dense_layers, dense_hidden=a.d_dense,
            E=a.n_experts, K=a.top_k, expert_hidden=a.d_expert, shared_hidden=a.shared_width,
            softmax=rule.scores == "softmax", balance=rule.balance_loss, z=rule.z_loss,
        )  # fmt: skip
        token_T, target_T = (ids.flatten().long().contiguous() for ids in (token_BS, target_BS))
        return native.Step(shape, self.rotary, token_T, target_T, self.spare)

    def _layers(self, token_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer's output (T, D), and the routers' losses added up."""
        x_TD = self.embedding(token_BS.flatten())
        seen = None if self.end is None else _same_document(token_BS, self.end)
        losses = []
        for layer in self.layers:
            x_TD, loss = layer(x_TD, len(token_BS), self.rotary, seen)
            if loss is not None:
                losses.append(loss)
        return x_TD, torch.stack(losses).sum() if losses else x_TD.new_zeros(())

    def routers(self) -> Iterator[tuple[int, TopKRouter]]:
        """Pairs of a layer's index and its router."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer.block, MoE):
                yield index, layer.block.router


def _head_loss(x_TD: Tensor, gain_D: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_T: Tensor) -> Tensor:
    """Mean cross-entropy behind norm and head, in float32 or better: compiled, no logits in float32 are ever kept, of
    which there would be several copies."""
    logits_TV = F.linear(rms_norm(x_TD, gain_D), weight_VD, bias_V)
    precise = torch.promote_types(logits_TV.dtype, torch.float32)
    return F.cross_entropy(logits_TV.to(precise), target_T)


def _same_document(token_BS: Tensor, end: int) -> Tensor:
    """Whether a query may see a key: no document ends between them; (B, 1, S, S)."""
    ended = token_BS == end
    document_BS = ended.cumsum(1) - ended.long()
    return (document_BS[:, :, None] == document_BS[:, None, :])[:, None]


def _attention_kinds(a: MoEArchitecture) -> Iterator[GroupedQueryAttention]:
    """The kind of each layer; what the engine cannot train is refused here, by name."""
    refused = {
        "feed_forward": not isinstance(a.feed_forward, GatedFeedForward) or a.feed_forward.bias,
        "experts": not isinstance(a.experts, GatedFeedForward) or a.experts.bias,
        "shared": not isinstance(a.shared, GatedFeedForward | None) or (a.shared is not None and a.shared.bias),
        "router": a.router != Router(bias=a.router.bias),
        "norm": a.norm != Norm(),
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise InputError(f"{getattr(a, name)} is counted but not trained by this engine", where=name)
    if a.d_head % 2:
        raise InputError(f"{a.d_head}, expected an even number for rotary positions", where="d_head")
    for kind, count in a.attention.layers(a.n_layers):
        if not isinstance(kind, GroupedQueryAttention) or kind.sinks or kind.output_gate or kind.chunk:
            raise InputError(f"{kind} is counted but not trained by this engine", where="attention")
        for _ in range(count):
            yield kind
