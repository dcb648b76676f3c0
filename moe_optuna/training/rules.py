"""Hyperparameters by rule: learning rate, batch and weight decay from (C, D) and the widths, the same for every
architecture up to what its widths and its tokens demand.

The best batch grows with the tokens, whatever the model (arXiv:2410.21676; Step law, arXiv:2503.04715); whole
sequences, devices or a recipe may make it another, and the rate goes with its root, as AdamW's does (arXiv:2205.10287).
The best rate does not move with the experts' number or sparsity (Step law's 708 MoE runs). Widths enter by
initialisation and by a rate a tensor::

    batch                       =  0.18 D^0.6                    (tokens, in whole sequences)
    second moment's beta        =  1/2^(batch / 10 million), from 0.95 to 0.995
    rate                        =  7.4e-3 (C / 1e11)^-0.07 * sqrt(sequences' tokens / batch) * ((1 - beta) / 0.05)^0.06
    learning rate of a matrix   =  rate * (reference fan-in / fan-in)^0.7
    learning rate of embeddings =  12 rate                       (tied to the head: rate)
    learning rate of the rest   =  rate                          (gains, biases)
    initial standard deviation  =  1 / sqrt(fan-in), of output projections also / sqrt(2 L), of router and head a tenth

Published laws have one rate for all matrices, of models whose widths grow with compute: most of their exponent of -0.15
(Ling) or -0.16 (arXiv:2603.21862) is the widths' share. Sweeps at 4e10 to 1e13 FLOPs and widths of 16 to 1200 gave the
power of the fan-in and the coefficient. They leave a small exponent of C open: with -0.07 the rule is within 25 % of
the rates of arXiv:2603.21862 with its batches and at the middle of the widths that it swept, 1e18 to 3e20 FLOPs. muP
for mixtures of experts (arXiv:2508.09752) has the fan-in itself. Of ten million tokens AdamW's second moment forgets
half (arXiv:2507.07101), but in no more than 140 steps and no fewer than the usual 14; the longer it remembers, the
lower the best rate, by an eighth at most. A token's embedding is moved when the token comes up alone, as seldom as the
vocabulary is large, hence its higher rate. Induction heads and the head that reads them start otherwise
(`_induction.py`). `docs/training.md` says what is shown and what is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_optuna.architecture import MoEArchitecture
from moe_optuna.errors import InputError, whole_number
from moe_optuna.training._recipe import Recipe

__all__ = ["EMBEDDING_FACTOR", "REFERENCE_FAN_IN", "Hyperparameters", "hyperparameters", "rate_factor"]

REFERENCE_FAN_IN = 64
EMBEDDING_FACTOR = 12.0
"""Learning rate of an embedding that is not the head as well, as a multiple of the rule's."""
_HALF_LIFE = 1e7  # tokens in which the second moment forgets half
_ANCHOR = 1e11  # FLOPs at which the coefficients below are read


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the rule sets for one trial.

    Attributes:
        learning_rate: Peak rate of a matrix with the reference fan-in.
        sequences: Sequences of an optimizer step.
        steps: Optimizer steps: as many as make ``steps * sequences * context_length`` nearest to the token budget.
        weight_decay: AdamW's, on matrices.
        beta2: AdamW's, of the second moment.
        warmup_steps, decay_steps: Steps in which the rate rises and falls.
    """

    learning_rate: float
    sequences: int
    steps: int
    weight_decay: float
    beta2: float
    warmup_steps: int
    decay_steps: int

    @property
    def stable_steps(self) -> int:
        """Steps before a ``wsd`` schedule falls: they are the same for every longer training."""
        return self.steps - self.decay_steps

    def schedule(self, step: int, kind: str) -> float:
        """Factor of the learning rate in step `step` (from 0): 0 to 1, linear at both ends (``wsd``) or a half cosine
        after the warm-up."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (self.steps - step) / max(1, self.decay_steps))


def hyperparameters(
    architecture: MoEArchitecture, *, compute: float, tokens: int, recipe: Recipe, multiple: int = 1
) -> Hyperparameters:
    """The rule; what the recipe states overrides it.

    Args:
        architecture: Its context length makes whole sequences.
        compute: C, training FLOPs.
        tokens: D, the token budget.
        recipe: Overrides, and the schedule's shares.
        multiple: The batch is a multiple of so many sequences (the devices of a trial).

    Raises:
        InputError: Where compute or tokens are not positive and finite, or `multiple` is below 1.
    """
    multiple = whole_number(multiple, "devices")
    if not (math.isfinite(compute) and compute > 0):
        raise InputError(f"{compute!r}, expected a positive finite number", where="compute")
    if not (math.isfinite(tokens) and tokens >= 1):
        raise InputError(f"{tokens!r}, expected a finite number of at least 1", where="tokens")
    compute, tokens = float(compute), int(tokens)  # numpy's numbers would not be read from a checkpoint
    context = architecture.context_length
    batch = 0.18 * tokens**0.6
    sequences = max(1, round((recipe.batch_tokens or batch) / context / multiple)) * multiple
    beta2 = _beta2(sequences * context) if recipe.beta2 is None else recipe.beta2
    rate = 7.4e-3 * (compute / _ANCHOR) ** -0.07 * (sequences * context / batch) ** 0.5 * ((1 - beta2) / 0.05) ** 0.06
    steps = max(1, round(tokens / (sequences * context)))
    return Hyperparameters(
        learning_rate=recipe.learning_rate or rate,
        sequences=sequences,
        steps=steps,
        weight_decay=0.1 if recipe.weight_decay is None else recipe.weight_decay,
        beta2=beta2,
        warmup_steps=max(1, round(recipe.warmup * steps)),
        decay_steps=max(1, round(recipe.decay * steps)),
    )


def _beta2(batch_tokens: int) -> float:
    return float(min(max(0.5 ** (batch_tokens / _HALF_LIFE), 0.95), 0.995))


def rate_factor(fan_in: int | None) -> float:
    """Factor of the learning rate: 1 for what is not a matrix (``None``)."""
    return 1.0 if fan_in is None else (REFERENCE_FAN_IN / fan_in) ** 0.7
