"""`TextData`: batches of a corpus as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from moe_optuna.errors import InputError
from moe_optuna.training._corpus import Corpus

__all__ = ["TextData"]


TOGETHER = 2**16
"""Tokens of the optimizer steps that the trainer is given at once: what it does around a batch takes as long as a small
step."""


class _Batches(IterableDataset[list[Tensor]]):
    """Batches of whole windows from a step on: int64 of shape (sequences of this rank, context_length + 1), those of
    several whole optimizer steps at once, up to the next pause.

    The stream of windows is the epochs' permutations one after the other, whatever the batch: window i of the stream is
    the same for every architecture of a seed.
    """

    def __init__(self, data: TextData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches, step = self._batches(), self.data.first_step
        most = max(1, TOGETHER // (self.data.sequences * self.data.context_length))
        while step < self.data.steps:
            stop = min((pause for pause in self.data.pauses if pause > step), default=self.data.steps)
            together = min(most, stop - step)
            yield [next(batches) for _ in range(together * self.data.micro_batches)]
            step += together

    def _batches(self) -> Iterator[Tensor]:
        d = self.data
        S, windows = d.context_length, d.corpus.windows(d.context_length)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for micro in range(d.first_step * d.micro_batches, d.steps * d.micro_batches):
            first = micro * d.sequences // d.micro_batches
            last = (micro + 1) * d.sequences // d.micro_batches
            rows = []
            for number in range(first + d.rank, last, d.world_size):
                if number // windows != epoch:
                    epoch = number // windows
                    order = d.corpus.training_order(S, d.seed, epoch)
                start = int(order[number % windows]) * S
                rows.append(d.corpus.train[start : start + S + 1])
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


class TextData(pl.LightningDataModule):
    """The training stream of a trial and its held-out windows.

    Args:
        corpus: The tokens.
        context_length, sequences, steps: Shape of the training.
        seed: Of the order of windows.
        reports: Points of the report grid, evenly spaced over the steps.
        micro_batches: Forward passes of an optimizer step.
        final_windows: Held-out windows of the last report.
        pause: A step at which the trainer is to be asked, beside those of the reports.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        context_length: int,
        sequences: int,
        steps: int,
        seed: int,
        reports: int = 1,
        micro_batches: int = 1,
        final_windows: int = 256,
        pause: int | None = None,
    ) -> None:
        super().__init__()
        if corpus.windows(context_length) < 1:
            raise InputError(
                f"{len(corpus.train)} training tokens, expected more than context_length = {context_length}",
                where="data",
            )
        self.corpus, self.context_length = corpus, context_length
        self.sequences, self.steps, self.seed, self.micro_batches = sequences, steps, seed, micro_batches
        self.held_out = torch.from_numpy(corpus.held_out_windows(context_length, final_windows))
        points = min(reports, steps)
        self.report_steps = tuple(round(steps * (point + 1) / points) for point in range(points))
        self.pauses = self.report_steps if pause is None else (*self.report_steps, pause)
        self.first_step, self.rank, self.world_size = 0, 0, 1

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        if self.trainer is not None:
            self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        # From pinned memory a batch is copied while the GPU still works on the one before.
        return DataLoader(_Batches(self), batch_size=None, num_workers=0, pin_memory=not self._on_cpu)

    @property
    def _on_cpu(self) -> bool:
        return self.trainer is None or self.trainer.strategy.root_device.type == "cpu"

    def evaluation_sequences(self, most_tokens: int | None) -> int:
        """Windows of a forward pass without gradients: as many as a training step's, at least what a GPU wants or a
        CPU cache holds, at most `most_tokens` where memory binds."""
        least = 1024 if self._on_cpu else 4096
        tokens = most_tokens or max(least, self.sequences // self.micro_batches * self.context_length)
        return max(1, tokens // self.context_length)

    def report_windows(self, count: int) -> Tensor:
        """A fixed part of the held-out windows, evenly spaced: (count, context_length + 1)."""
        if count >= len(self.held_out):
            return self.held_out
        return self.held_out[torch.linspace(0, len(self.held_out) - 1, count).round().long()]
