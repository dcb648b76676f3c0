"""The parts of an architecture: what one attention layer, feed-forward block, router or norm holds and computes.

A kind is a small frozen value that knows its own `Cost`. A new kind is one new class, listed in `KINDS`; nothing
elsewhere asks which kind it has. Widths are in features, windows and contexts in tokens.
"""

from moe_optuna.parts._attention import (
    Attention,
    GroupedQueryAttention,
    IndexedAttention,
    Interleaved,
    LatentAttention,
    MixtureAttention,
)
from moe_optuna.parts._cost import Cost
from moe_optuna.parts._feed_forward import FeedForward, GatedFeedForward, Norm, Router
from moe_optuna.parts._recurrent import GatedDeltaAttention, LightningAttention, ShortConvolution

__all__ = [
    "KINDS",
    "Attention",
    "Cost",
    "FeedForward",
    "GatedDeltaAttention",
    "GatedFeedForward",
    "GroupedQueryAttention",
    "IndexedAttention",
    "Interleaved",
    "LatentAttention",
    "LightningAttention",
    "MixtureAttention",
    "Norm",
    "Router",
    "ShortConvolution",
]

_ATTENTION = (
    GroupedQueryAttention,
    LatentAttention,
    IndexedAttention,
    MixtureAttention,
    ShortConvolution,
    GatedDeltaAttention,
    LightningAttention,
    Interleaved,
)
_FEED_FORWARD = (GatedFeedForward,)

KINDS: dict[str, dict[str, type]] = {
    "attention": {kind.kind: kind for kind in _ATTENTION},
    "feed_forward": {kind.kind: kind for kind in _FEED_FORWARD},
    "experts": {kind.kind: kind for kind in _FEED_FORWARD},
    "shared": {kind.kind: kind for kind in _FEED_FORWARD},
    "router": {Router.kind: Router},
    "norm": {Norm.kind: Norm},
}
"""The kinds that each part of an architecture may have, by the name that files use; the first is the default."""
