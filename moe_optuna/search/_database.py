"""A relational storage that waits for its server."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError

from moe_optuna.errors import InputError

__all__ = ["Database", "open_database"]

PATIENCE = 600.0
"""Seconds that a server may be away."""
_AWAY = (OperationalError, InterfaceError)
_logger = logging.getLogger("moe_optuna")


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, tried again while the server does not answer.

    What was done before the answer was lost is done again, which changes nothing: attributes take the same value, a
    trial is finished once, and a trial that was created or popped without anybody knowing is reaped like a dead
    controller's.
    """

    @functools.wraps(method)
    def call(self: Database, *args: Any, **kwargs: Any) -> Any:
        begin, pause = time.monotonic(), 0.1
        while True:
            try:
                return method(self, *args, **kwargs)
            except (StorageInternalError, *_AWAY) as error:
                cause = error if isinstance(error, _AWAY) else error.__cause__
                if not isinstance(cause, _AWAY):
                    raise
                if time.monotonic() - begin > PATIENCE:
                    raise InputError(
                        f"no answer for {PATIENCE:.0f} s; the same command resumes", where=self.engine.url.host
                    ) from None
                if pause == 0.1:
                    _logger.warning("the database does not answer, waiting for it")
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    return call


class Database(RDBStorage):
    """Optuna's relational storage; its server may be away for ten minutes."""


# Beside the public methods those that Optuna's cache in front of it calls.
_CACHED = ("_create_new_trial", "_get_best_trial_id", "_get_trials", "_set_trial_param")
for _name in (*BaseStorage.__abstractmethods__, *_CACHED, "get_trial_id_from_study_id_trial_number"):
    setattr(Database, _name, _waiting(getattr(RDBStorage, _name)))
Database.__abstractmethods__ = frozenset()


def open_database(url: str) -> Database:
    """Connect, and make the tables where there are none.

    Raises:
        SQLAlchemyError, ImportError, StorageInternalError: As `RDBStorage`.
    """
    for _ in range(4):
        try:
            return Database(url, engine_kwargs={"pool_pre_ping": True})
        except (ProgrammingError, IntegrityError):  # another controller is making the same tables
            time.sleep(0.5)
    return Database(url, engine_kwargs={"pool_pre_ping": True})
