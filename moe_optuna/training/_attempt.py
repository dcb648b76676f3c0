"""What surrounds a training: garbage that the one before left, and memory that is short."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moe_optuna.training._result import TrainingFailure

__all__ = ["ShortOfMemoryError", "micro_batches", "own_objects_alone", "short_of_memory"]

_left_over = False  # whether the last training failed


class ShortOfMemoryError(TrainingFailure):
    """A training that found no memory for a step, which may take less in parts."""


@contextmanager
def own_objects_alone() -> Iterator[None]:
    """The garbage collector looks at what comes to be within, and no further: to look through a process' modules again
    and again costs some percent of a small step. At the end it looks once: trainer and model refer to each other, and a
    process that trains one model after the other would keep all their memory until it looked everywhere. What a failed
    training leaves is its error's until that is gone, and is looked for when the next one begins."""
    global _left_over
    if _left_over:
        gc.collect()
    _left_over = True
    gc.freeze()
    try:
        yield
        _left_over = False
    finally:
        gc.collect()
        gc.unfreeze()


@contextmanager
def short_of_memory(kind: type[TrainingFailure] = TrainingFailure) -> Iterator[None]:
    """What a device's allocator or Python says where memory is short, as a failure of the training."""
    try:
        yield
    except TrainingFailure:  # told already, within
        raise
    except (RuntimeError, MemoryError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in first:
            raise kind(f"memory is short: {first}") from error
        raise


def micro_batches(sequences: int, most: int) -> list[int]:
    """Numbers of equal forward passes that a step of so many sequences may have: the fewest of at most `most`, or of
    one, and what to go on to where memory is short, each at least twice the one before."""
    found: list[int] = []
    for number in (n for n in range(1, sequences + 1) if sequences % n == 0):
        if sequences // number <= max(1, most) and (not found or number >= 2 * found[-1]):
            found.append(number)
    return found
