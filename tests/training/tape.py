"""A CUDA graph's stand-in on a CPU: what a step did, operation by operation, done again on the same memory.

As in a graph, numbers of Python are frozen, and no operation may give one to Python. And as on a machine with a GPU,
where a tensor that nobody says a device for lies on the host: here it lies nowhere, and what reads it fails.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class _Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function in ASKS:
            raise RuntimeError(f"{function} asks the device for a number")
        result = function(*arguments, **(named or {}))
        self.done.append((function, arguments, named or {}, tree_leaves(result)))
        return result


class Tape:
    """Records by doing, so that what was recorded is not done when it is first asked for."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.replays = 0

    def warm(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with torch.device("meta"), _Listening() as heard:
            work()
        self.recorded = [str(function) for function, *_ in heard.done]

        @torch.no_grad()
        @torch.autocast("cpu", enabled=False)  # what it cast has been recorded
        def replay() -> None:
            self.replays += 1
            if self.replays == 1:
                return
            for function, arguments, named, before in heard.done:
                _put(before, tree_leaves(function(*arguments, **named)), function)

        return replay


def _put(before: Iterable[Any], now: Iterable[Any], function: Any) -> None:
    """New results where the old ones lie; views and what was changed in place lie there already."""
    if any(returned.alias_info is not None for returned in function._schema.returns):
        return
    for old, new in zip(before, now, strict=True):
        if isinstance(old, Tensor):
            old.detach().copy_(new)
