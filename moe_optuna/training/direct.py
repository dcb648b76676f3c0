"""An optimizer step without autograd: what `native.c` does of it, called from here.

Autograd's engine and its checks, and the search each time for what has not moved since the step before, take a fifth of
a small model's step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from moe_optuna.training import native
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import FlatAdamW

__all__ = ["DirectStep"]


class DirectStep:
    """Losses, their gradient and AdamW's step: the same to the last bit as by autograd; with tied embeddings, whose two
    gradients are added up elsewhere, to rounding.

    Where everything lies is read once. Values may be changed in place, but nothing may move.

    Args:
        model: In training; its path is ``"native"``.
        optimizer: Of all of its parameters.
    """

    def __init__(self, model: MoELanguageModel, optimizer: FlatAdamW) -> None:
        weights, values = model.native_weights(), optimizer.memory[0]
        assert weights is not None
        assert model.training
        self._model, self._optimizer = model, optimizer
        self._gradient = torch.empty_like(values)
        self._weights = native.pointers(weights)
        into: list[Tensor | None] = []
        for weight in weights:
            if isinstance(weight, Parameter):
                place = weight.data_ptr() - values.data_ptr()
                assert 0 <= place < values.nbytes
                into.append(self._gradient[place // values.element_size() :])
            else:  # a router's bias or load
                into.append(None)
        self._into = native.pointers(into)

    def __call__(self, *windows_BS1: Tensor) -> None:
        """Take a step down the mean loss of all windows, at the rates of the optimizer's groups.

        Args:
            windows_BS1: As many sequences at a time as memory holds.

        Raises:
            IndexError: Where an id is not in the vocabulary, or a sequence is longer than the model's context.
        """
        share, total = self._gradient.new_tensor(1 / len(windows_BS1)), None
        for window_BS1 in windows_BS1:
            step = self._model.native_step(window_BS1[:, :-1], window_BS1[:, 1:])
            memory, _ = native.forward(step, self._weights, training=True)
            native.backward(step, self._weights, memory, share, share, self._into)
            if len(windows_BS1) > 1:
                total = self._gradient.clone() if total is None else total.add_(self._gradient)
        self._optimizer.update(self._gradient if total is None else total)
