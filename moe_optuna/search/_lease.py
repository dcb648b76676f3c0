"""Leases: which RUNNING trial has somebody who runs it.

Optuna knows that a trial is RUNNING, not whether whoever ran it still lives (a journal has no heartbeat). Here a trial
carries the name of its controller, and each controller counts beats in an attribute of the study. A controller is dead
when its process is gone (same machine), or when its count stood still for `TERM` seconds of the *observer's* monotonic
clock: no two clocks are ever compared, so a clock that jumps, or that is wrong, takes no trial from anybody.

A trial of a dead controller goes back to WAITING, with its number and parameters; the next `ask` of any controller
takes it up, and the storage lets only one have it. A controller that was taken for dead and lives after all finds that
its trial carries another name, and drops it; and a trial is finished once, whoever tells first.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["Leases"]

BEAT = 5.0
"""Seconds between two beats."""
TERM = 45.0
"""Seconds without a beat after which a controller is dead."""
_OWNER = "moe_optuna:controller"
_COUNT = "moe_optuna:beat:"


class Leases:
    """The leases of one controller, and its view of the others'.

    Args:
        exclusive: Whether nobody else can be running trials of these studies (the folder's lock is held): then every
            trial of another controller is stale at once, and beats are not needed.
        clock: Seconds that never go back.
        term: Seconds without a beat after which a controller is dead.
    """

    def __init__(self, *, exclusive: bool, clock: Callable[[], float] = time.monotonic, term: float = TERM) -> None:
        self.name = f"{_machine()}/{os.getpid()}/{_started(os.getpid())}/{uuid.uuid4().hex[:8]}"
        self._exclusive = exclusive
        self._clock = clock
        self._term = term
        self._count = 0
        self._next = float("-inf")
        self._looked = float("-inf")
        self._seen: dict[tuple[str, str], tuple[object, float]] = {}

    def take(self, study: Study, trial_id: int) -> None:
        """Put this controller's name on a trial."""
        study._storage.set_trial_system_attr(trial_id, _OWNER, self.name)

    def holds(self, trial: FrozenTrial) -> bool:
        """Whether the trial is still this controller's."""
        return trial.system_attrs.get(_OWNER) == self.name and trial.state == TrialState.RUNNING

    def beat(self, study: Study) -> bool:
        """Show that this controller lives, where it is time; whether it was."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + min(BEAT, self._term / 4)
        if not self._exclusive:
            self._count += 1
            study._storage.set_study_system_attr(study._study_id, _COUNT + self.name, self._count)
        return True

    def give_back(self, study: Study, trial: FrozenTrial) -> bool:
        """Let the next `ask` have the trial, as it is; not where somebody took or finished it since `trial` was
        read. Whether it was let go."""
        now = study._storage.get_trial(trial._trial_id)
        if now.state != TrialState.RUNNING or now.system_attrs.get(_OWNER) != trial.system_attrs.get(_OWNER):
            return False
        try:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        except UpdateFinishedTrialError:  # this very moment
            return False
        return True

    def reap(self, study: Study, mine: Collection[int] = ()) -> list[int]:
        """Give back the trials of dead controllers, and those of this one that are not among `mine`; their numbers."""
        now = self._clock()
        if now - self._looked > self._term / 2:  # asleep, or without a database: whoever was, too, must have a chance
            self._seen.clear()
        self._looked = now
        running = study._storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        beats = study._storage.get_study_system_attrs(study._study_id)
        reaped = []
        for trial in running:
            owner = trial.system_attrs.get(_OWNER, "")
            if owner == self.name:
                stale = trial.number not in mine
            else:
                stale = self._dead(study, owner or f"trial {trial.number}", beats)
            if stale and self.give_back(study, trial):
                reaped.append(trial.number)
        return reaped

    def _dead(self, study: Study, owner: str, beats: dict[str, object]) -> bool:
        if self._exclusive:
            return True
        if owner.startswith(f"{_machine()}/"):
            _, process, started, _ = owner.rsplit("/", 3)
            if _started(int(process)) != started:
                return True
        count, now = beats.get(_COUNT + owner), self._clock()
        seen = self._seen.setdefault((study.study_name, owner), (count, now))
        if seen[0] != count:
            self._seen[study.study_name, owner] = (count, now)
            return False
        return now - seen[1] > self._term


def _machine() -> str:
    """This machine, this boot of it, and the process namespace: where process numbers mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        boot = space = "-"
    return f"{socket.gethostname()}/{boot}/{space}"


def _started(process: int) -> str:
    """When the process started, in the kernel's ticks; empty where there is no such process."""
    try:
        # The second field is the program's name in parentheses and may hold blanks.
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1]
    except OSError:
        return ""
    state, *fields = text.split()
    return "" if state in "ZX" else fields[18]
