"""An optimizer step recorded once and replayed: a CUDA graph (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).

A step of a small model is a thousand kernels of some microseconds each. Launched one by one from Python, the GPU waits
for most of them; replayed, it has them all at once. What is recorded are kernels and addresses: numbers of Python are
frozen, so that everything that changes from step to step is read from memory on the device (`Pace`), and nothing in a
step may wait for the GPU's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["CapturedStep", "CudaGraphs", "Pace", "Recorder"]

WARM_STEPS = 3
"""Steps before the recording: libraries set themselves up in the first ones, which a recording does not allow."""

Work = Callable[[], None]


class Pace(NamedTuple):
    """What changes from step to step.

    Attributes:
        rate: Factor of the peak learning rates.
        bias: By how much the routers' selection biases move.
        renewed: Share of the averaged weights that the step replaces.
    """

    rate: float | Tensor
    bias: float | Tensor
    renewed: float | Tensor


Step = Callable[[Sequence[Tensor], Pace], None]
"""Takes the windows of an optimizer step, one tensor a micro-batch, and its pace."""


class Recorder(Protocol):
    """How work is recorded."""

    def warm(self, work: Work) -> None:
        """Do it, as it will be recorded."""
        ...

    def record(self, work: Work) -> Work:
        """Record it without doing it, and return what does it.

        Raises:
            RuntimeError: Where it cannot be recorded; nothing has been done then.
        """
        ...


class CudaGraphs:
    """Records on the current GPU."""

    def __init__(self) -> None:
        self._aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm(self, work: Work) -> None:
        """Do it on a stream of its own, on which autograd will also find the parameters when it is recorded."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            work()
        torch.cuda.current_stream().wait_stream(self._aside)

    def record(self, work: Work) -> Work:
        """Record it without doing it, and return what does it."""
        graph = torch.cuda.CUDAGraph()
        # cuBLAS' workspaces, which torch keeps by stream, are to be the graph's own: whoever clears them, as Lightning
        # does before and after a training, would free those of the warm steps, and replays would still write there.
        if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
            torch._C._cuda_clearCublasWorkspaces()
        # The outer stream, since `torch.cuda.graph` stays on its own where a recording ends badly.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=self._aside):
            work()
        return graph.replay


class CapturedStep:
    """A step that is recorded after a few steps, and from then on replayed.

    Args:
        step: What a step does.
        paces: Of every step of the training.
        device: Where.
        recorder: How it is recorded.
        forget: Called where that failed half way: clears what Python holds of it.

    Attributes:
        replayed: Steps that were replayed.
        failure: Why the step could not be recorded, where it could not: all steps are done one operation at a time.
    """

    def __init__(
        self, step: Step, paces: Sequence[Pace], device: torch.device, recorder: Recorder, forget: Work
    ) -> None:
        self._step, self._recorder, self._forget = step, recorder, forget
        self._paces = torch.tensor(paces, dtype=torch.float32, device=device)  # (steps, 3)
        self._pace = torch.empty(3, device=device)
        self._windows: list[Tensor] = []
        self._replay: Work | None = None
        self._warm_steps = 0
        self.replayed, self.failure = 0, ""

    def __call__(self, windows: Sequence[Tensor], number: int) -> None:
        """Do step `number`, from 0, on windows that have the same shapes in every step."""
        if not self._windows:
            self._windows = [torch.empty_like(window) for window in windows]
        for own, window in zip(self._windows, windows, strict=True):
            own.copy_(window, non_blocking=True)
        self._pace.copy_(self._paces[number])
        if self._replay is None and self._warm_steps >= WARM_STEPS and not self.failure:
            try:
                self._replay = self._recorder.record(self._work)
            except RuntimeError as error:
                # After what went wrong the end of the recording may fail for it, and says less.
                first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                reason, *_ = str(first).splitlines() or [type(first).__name__]
                self.give_up(reason)
        if self._replay is None:
            self._warm_steps += 1
            self._recorder.warm(self._work)
        else:
            self.replayed += 1
            self._replay()

    def give_up(self, reason: str) -> bool:
        """Do the steps to come one operation at a time, and give back the memory of the recorded one; whether there was
        one."""
        was_recorded, self._replay = self._replay is not None, None
        self.failure = self.failure or reason
        self._forget()
        return was_recorded

    def _work(self) -> None:
        self._step(self._windows, Pace(*self._pace.unbind()))
