"""Token mixers whose work for a token does not grow with the context: short convolutions and recurrent states.

A state's FLOPs are those of its recurrence, token by token; kernels that work in chunks do more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from moe_optuna.parts._attention import Uniform
from moe_optuna.parts._cost import Cost

if TYPE_CHECKING:
    from moe_optuna.architecture import MoEArchitecture

__all__ = ["GatedDeltaAttention", "LightningAttention", "ShortConvolution"]


@dataclass(frozen=True, slots=True)
class ShortConvolution(Uniform):
    """A depthwise causal convolution between two input-dependent gates (LFM2).

    Attributes:
        kernel: Tokens that the convolution spans.
        bias: Whether the convolution and both projections carry biases.
    """

    kind: ClassVar[str] = "short_convolution"
    kernel: int
    bias: bool = False

    def cost(self, architecture: MoEArchitecture) -> Cost:
        d = architecture.d_model
        return Cost(matrices=4 * d * d + d * self.kernel, vectors=5 * d * self.bias)


@dataclass(frozen=True, slots=True)
class GatedDeltaAttention(Uniform):
    """Gated DeltaNet (arXiv:2412.06464) with an output gate, as in Qwen3-Next.

    For each value head and token the state ``S`` of d_key x d_value features is read by the key, corrected by an outer
    product and read by the query: three products of its size.

    Attributes:
        n_key_heads, n_value_heads: Heads of queries and keys, and of values; each value head has a state.
        d_key, d_value: Features of a head.
        kernel: Tokens that the depthwise convolution over queries, keys and values spans.
    """

    kind: ClassVar[str] = "gated_delta"
    n_key_heads: int
    n_value_heads: int
    d_key: int
    d_value: int
    kernel: int

    def cost(self, architecture: MoEArchitecture) -> Cost:
        d, keys, values = architecture.d_model, self.n_key_heads * self.d_key, self.n_value_heads * self.d_value
        projections = d * (2 * keys + 2 * values + 2 * self.n_value_heads) + values * d
        return Cost(
            matrices=projections + (2 * keys + values) * self.kernel,
            vectors=2 * self.n_value_heads + self.d_value,
            state=3 * self.d_key * values,
        )


@dataclass(frozen=True, slots=True)
class LightningAttention(Uniform):
    """Linear attention with a fixed decay a head, a norm and an output gate (MiniMax-01, arXiv:2501.08313).

    Each head writes an outer product into its state of d_head x d_head features and reads it by the query.
    """

    kind: ClassVar[str] = "lightning"

    def cost(self, architecture: MoEArchitecture) -> Cost:
        width = architecture.n_heads * architecture.d_head
        return Cost(matrices=5 * architecture.d_model * width, vectors=width, state=2 * width * architecture.d_head)
