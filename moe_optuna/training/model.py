"""A decoder-only Mixture-of-Experts language model, to be read from top to bottom.

Notable features:
- RMSNorm before attention and feed-forward block, and before the head; rotary positions; QK norm; no dropout
- grouped-query attention through scaled_dot_product_attention
- SwiGLU everywhere; the first layers dense, those after them with routed and shared experts
- a float32 router, balanced by a bias rather than by a loss; no token is dropped
- every parameter that `MoEArchitecture.full` counts, and no other

Shapes: B sequences, S context, T = B S tokens, D model width, V vocabulary. Activations keep (T, D) throughout.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError
from moe_optuna.parts import GatedFeedForward, GroupedQueryAttention
from moe_optuna.training._recipe import Recipe
from moe_optuna.training.attention import Attention, rotary_table
from moe_optuna.training.experts import Experts
from moe_optuna.training.kernels import rms_norm, swiglu
from moe_optuna.training.router import Router

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

    def forward(self, x_TD: Tensor, n_sequences: int) -> tuple[Tensor, Tensor | None]:
        return self.down(swiglu(self.gate_up(x_TD))), None


class MoE(nn.Module):
    """Routed and shared experts; beside its output it returns the router's loss."""

    def __init__(self, a: MoEArchitecture, recipe: Recipe) -> None:
        super().__init__()
        self.router = Router(
            a.d_model,
            a.n_experts,
            a.top_k,
            scores=recipe.scores,
            balance_loss=recipe.balance_loss,
            z_loss=recipe.z_loss,
            bias=a.router.bias,
        )
        self.experts = Experts(a.d_model, a.d_expert, a.n_experts)
        self.shared = Dense(a.d_model, a.n_shared_experts * a.d_expert) if a.n_shared_experts else None

    def forward(self, x_TD: Tensor, n_sequences: int) -> tuple[Tensor, Tensor | None]:
        routing = self.router(x_TD, n_sequences)
        y_TD = self.experts(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD, n_sequences)[0]
        return y_TD, routing.loss


class Layer(nn.Module):
    def __init__(self, a: MoEArchitecture, attention: GroupedQueryAttention, block: nn.Module) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(a.d_model)
        self.attention = Attention(a, attention)
        self.block_norm = RMSNorm(a.d_model)
        self.block = block

    def forward(self, x_TD: Tensor, n_sequences: int, table: Tensor) -> tuple[Tensor, Tensor | None]:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), n_sequences, table)
        y_TD, loss = self.block(self.block_norm(x_TD), n_sequences)
        return x_TD + y_TD, loss


class MoELanguageModel(nn.Module):
    """The model of an architecture.

    Raises:
        InputError: Where the architecture has a part that is counted but not trained here.
    """

    def __init__(self, architecture: MoEArchitecture, recipe: Recipe | None = None) -> None:
        super().__init__()
        a, recipe = architecture, recipe or Recipe()
        self.architecture = a
        self.embedding = nn.Embedding(a.vocab_size, a.d_model)
        self.layers = nn.ModuleList(
            Layer(a, kind, Dense(a.d_model, a.d_dense) if index < a.n_dense_layers else MoE(a, recipe))
            for index, kind in enumerate(_attention_kinds(a))
        )
        self.norm = RMSNorm(a.d_model)
        self.head = nn.Linear(a.d_model, a.vocab_size, bias=a.head_bias)
        if a.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.rotary: Tensor
        self.register_buffer("rotary", rotary_table(a.context_length, a.d_head), persistent=False)

    def forward(self, token_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) of the next token, and the routers' losses added up (a scalar)."""
        B, S = token_BS.shape
        x_TD = self.embedding(token_BS.flatten())
        losses = []
        for layer in self.layers:
            x_TD, loss = layer(x_TD, B, self.rotary)
            if loss is not None:
                losses.append(loss)
        logits_TV = self.head(self.norm(x_TD))
        total = torch.stack(losses).sum() if losses else logits_TV.new_zeros(())
        return logits_TV.view(B, S, -1), total

    def loss(self, token_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy [nats per token] of the targets, and the routers' losses."""
        logits, router_loss = self(token_BS)
        return F.cross_entropy(logits.flatten(0, 1).float(), target_BS.flatten()), router_loss

    def routers(self) -> Iterator[tuple[int, Router]]:
        """Pairs of a layer's index and its router."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer.block, MoE):
                yield index, layer.block.router


def _attention_kinds(a: MoEArchitecture) -> Iterator[GroupedQueryAttention]:
    kinds = [kind for kind, count in a.attention.layers(a.n_layers) for _ in range(count)]
    for kind in kinds:
        if not isinstance(kind, GroupedQueryAttention):
            raise InputError(
                f"{kind.kind!r} is counted but not trained here, expected 'grouped_query'", where="attention"
            )
        if kind.sinks:
            raise InputError("sinks are counted but not trained here", where="attention")
        yield kind
    if a.d_head % 2:
        raise InputError(f"{a.d_head}, expected an even number for rotary positions", where="d_head")
    for name in ("feed_forward", "experts"):
        part = getattr(a, name)
        if not isinstance(part, GatedFeedForward) or part.bias:
            raise InputError(f"{part}, expected a gated block without bias", where=name)
    if a.router.shared_gate:
        raise InputError("a gate on shared experts is counted but not trained here", where="router")
    if a.norm.bias or a.norm.per_layer != 2:
        raise InputError(f"{a.norm}, expected two RMSNorms a layer", where="norm")
