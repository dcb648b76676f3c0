"""An optimizer step without autograd: what `native.c` does of it, called from here.

Autograd's engine and its checks, and the search each time for what has not moved since the step before, take a third of
a millisecond, of a small model's step of one and a half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_optuna.training import native
from moe_optuna.training.model import MoELanguageModel
from moe_optuna.training.optimizer import FlatAdamW

__all__ = ["DirectStep"]


class DirectStep:
    """Losses, their gradient and AdamW's step: the same to the last bit as by autograd.

    Where everything lies is read once. Values may be changed in place, but nothing may move.

    Args:
        model: Its path is ``"native"``.
        optimizer: Of all of its parameters.
    """

    def __init__(self, model: MoELanguageModel, optimizer: FlatAdamW) -> None:
        weights, values = model.native_weights(), optimizer.memory[0]
        assert weights is not None
        self._model, self._optimizer = model, optimizer
        self._gradient, self._one = torch.empty_like(values), torch.ones(())
        begin, away = values.data_ptr(), self._gradient.data_ptr() - values.data_ptr()
        addresses = [None if weight is None else weight.data_ptr() for weight in weights]
        self._weights = native.pointers(addresses)
        # Biases and loads of the routers are no parameters.
        own = (address is not None and 0 <= address - begin < values.nbytes for address in addresses)
        self._into = native.pointers([a + away if mine and a else None for a, mine in zip(addresses, own, strict=True)])

    def __call__(self, window_BS1: Tensor) -> None:
        """Take a step down the mean loss of the windows, at the rates of the optimizer's groups.

        Raises:
            IndexError: Where an id is not in the vocabulary, or a sequence is longer than the model's context.
        """
        step = self._model.native_step(window_BS1[:, :-1], window_BS1[:, 1:])
        memory, _ = native.forward(step, self._weights, training=True)
        native.backward(step, self._weights, memory, self._one, self._one, self._into)
        self._optimizer.update(self._gradient)
