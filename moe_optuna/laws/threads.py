"""One thread for linear algebra: the matrices here are small, trainings run beside, and no answer may depend on the
machine."""

from __future__ import annotations

import contextlib
from functools import cache
from threading import Lock
from typing import Any

__all__ = ["one_thread"]


@cache
def _pools() -> Any:
    import scipy.linalg  # noqa: F401 - it brings a library of its own, which must be there to be limited
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneThread(contextlib.ContextDecorator):
    """The limit is the process's: of calls that overlap in several threads the first sets it and the last lifts it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit = _pools().limit(limits=1, user_api="blas")
                with _pools().limit():  # no limit: threadpoolctl ends the rule that none but this thread may lift ours
                    pass
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                with self._limit:  # the end of which lifts it
                    pass


one_thread = _OneThread()
"""Context or decorator in which BLAS has one thread."""
