"""Feed-forward blocks and experts, routers, norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from moe_optuna.parts._cost import Cost, Part

__all__ = ["FeedForward", "GatedFeedForward", "Norm", "Router"]


class FeedForward(Protocol):
    """A kind of feed-forward block."""

    kind: ClassVar[str]

    def cost(self, d_model: int, width: int) -> Cost:
        """Cost of one block from `d_model` to `width` features and back."""
        ...


@dataclass(frozen=True, slots=True)
class GatedFeedForward(Part):
    """Three matrices: gate, up and down (SwiGLU and its like, arXiv:2002.05202).

    Attributes:
        bias: Whether all three carry biases.
    """

    kind: ClassVar[str] = "gated"
    bias: bool = False

    def cost(self, d_model: int, width: int) -> Cost:
        return Cost(matrices=3 * d_model * width, vectors=(2 * width + d_model) * self.bias)


@dataclass(frozen=True, slots=True)
class Router(Part):
    """What a MoE layer holds beside its experts.

    Attributes:
        bias: One more parameter an expert: a learned bias on the routing logits, or the bias that balances the load
            without a loss where a model holds it as a parameter (ERNIE). Where it is a buffer (DeepSeek-V3) it is not
            counted.
        shared_gate: A learned gate on the shared experts' output (Qwen2-MoE).
        output_bias: A bias on the mixture's output (JetMoE).
        mixtures: Mixtures in a layer, each with such a router: 2 where attention is a mixture too (JetMoE).
    """

    kind: ClassVar[str] = "router"
    bias: bool = False
    shared_gate: bool = False
    output_bias: bool = False
    mixtures: int = 1

    def cost(self, d_model: int, n_experts: int) -> Cost:
        return Cost(
            matrices=d_model * (self.mixtures * n_experts + self.shared_gate),
            vectors=self.mixtures * (n_experts * self.bias + d_model * self.output_bias),
        )


@dataclass(frozen=True, slots=True)
class Norm(Part):
    """Normalisation over the model width.

    Attributes:
        per_layer: Norms in one layer, those inside attention (QK norm, latent norms) not included.
        bias: LayerNorm's bias beside the gain.
    """

    kind: ClassVar[str] = "norm"
    per_layer: int = 2
    bias: bool = False

    def cost(self, d_model: int) -> Cost:
        return Cost(vectors=d_model * (1 + self.bias))
