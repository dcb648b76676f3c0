"""The controller: owns the studies, gives trials to workers, and loses none.

``ask -> launch -> report / should_prune -> tell``, in one thread that sleeps in `Executor.wait`. It never imports
torch, so it holds no device.

=======================================  ==========================================================================
what happens to a trial                  what becomes of it
=======================================  ==========================================================================
the worker dies, also of a CUDA error    tried again from its checkpoint, `RETRIES` times; then FAIL, with the reason
it raises, or its loss is not finite     FAIL, with the reason; its architecture is not trained again in this study
a file cannot be written or read         tried again, `RETRIES` times; then given back, and the search stops
bad input (a missing data file)          given back, and the search stops
Ctrl-C, SIGTERM                          saved and given back; the next run resumes it under the same number
the controller dies                      its lease goes stale; as above
=======================================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from moe_optuna.errors import InputError
from moe_optuna.search._channel import Message
from moe_optuna.search._events import Observer
from moe_optuna.search._lease import Leases
from moe_optuna.search._local import Executor
from moe_optuna.search._storage import together
from moe_optuna.search._work import Run, Tally, Work

if TYPE_CHECKING:
    from types import FrameType

    from moe_optuna.architecture import MoEArchitecture

__all__ = ["RETRIES", "Controller"]

RETRIES = 3
"""How often a trial is tried again after its worker died or a file could not be written."""
TICK = 0.5
"""Longest sleep [s]: how late a signal or a beat can be noticed."""
FRUITLESS = 100
"""Proposals in a row that cannot be trained, after which the study has nothing left to propose."""
_DEATHS = "moe_optuna:deaths"


@dataclass
class Controller:
    """Runs studies on the workers of an executor.

    Args:
        executor: The workers.
        leases: This controller's leases.
        observer: Told of everything that happens.
        finished: Called after each trial that ended, with its study.
        grace: Seconds that workers have to save their trials when the search is stopped.

    Attributes:
        stopping: Whether it is being stopped.
        hurried: Whether somebody asked twice.
    """

    executor: Executor
    leases: Leases
    observer: Observer = lambda event: None
    finished: Callable[[Work], None] = lambda work: None
    grace: float = 20.0
    stopping: bool = False
    hurried: bool = False
    _running: dict[int, Run] = field(default_factory=dict)
    _failed: dict[MoEArchitecture, str] = field(default_factory=dict)
    _tally: Tally = Tally()

    def prepare(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Have a worker make the text ready, and another where it dies, `RETRIES` times; what the text is.

        Raises:
            InputError: Where none can.
            KeyboardInterrupt: Where the search was stopped.
        """
        chosen: int | None = None
        deaths = 0
        while True:
            if chosen is None and (available := self.executor.available()):
                chosen = available[deaths % len(available)]
                self.executor.send(chosen, {"prepare": recipe})
            for worker, message in self.executor.wait(TICK):
                if "prepared" in message:
                    return dict(message["prepared"])
                if "failed" in message:
                    raise InputError(message["failed"]["reason"])
                if worker == chosen and "died" in message:
                    chosen, deaths = None, deaths + 1
                    if deaths > RETRIES:
                        reason = f"workers that prepared the text died, the last: {message['died']}"
                        raise InputError(f"{reason}; tried {deaths} times; the same command goes on")
            if self.stopping:
                raise KeyboardInterrupt

    def run(self, work: Work) -> None:
        """Bring the study to its number of trials.

        Raises:
            InputError: Where the search cannot go on, for a reason that its user can remove.
            KeyboardInterrupt: Where it was stopped; every trial is saved and given back.
        """
        self._failed = work.failures()
        self._count(work)
        try:
            self._look_after(work)  # before anything new: what a killed controller left comes first
            while not self.stopping:
                if self.leases.beat(work.study):
                    self._look_after(work)
                    self._count(work)  # others may have finished trials
                self._fill(work)
                if not self._running and not self._others(work):
                    return
                for worker, message in self.executor.wait(TICK):
                    self._handle(work, worker, message)
            raise KeyboardInterrupt
        finally:
            self._give_back_all(work)

    def _fill(self, work: Work) -> None:
        """Give trials to idle workers."""
        for worker in self.executor.available():
            while worker not in self._running and not self.stopping:
                run = self._next(work)
                if run is None:
                    return
                self._launch(work, worker, run)

    def _others(self, work: Work) -> bool:
        """Whether trials are still to end that this controller does not run: another's, or one that waits for a
        worker to be up."""
        tally = self._count(work)
        if tally.running or tally.waiting:
            return True
        return not self.executor.available() and tally.trained < work.trials

    def _next(self, work: Work) -> Run | None:
        """A trial to train: one given back, one enqueued or a new one; ``None`` where the study needs no more."""
        for _ in range(FRUITLESS):
            if self.stopping:
                return None
            tally = self._count(work)
            if not tally.waiting:
                exhausted = work.exhausted()
                fruitless = exhausted and tally.failed and not tally.trained + tally.running
                if fruitless or tally.failed > max(3, work.trials):
                    reason = next(reversed(self._failed.values()), "")
                    raise InputError(f"{tally.failed} trials failed, the last: {reason}", where=work.study.study_name)
                if exhausted or tally.trained + tally.running >= work.trials:
                    return None
            trial = work.study.ask()
            with together(work.study._storage), contextlib.suppress(optuna.TrialPruned):
                self.leases.take(work.study, trial._trial_id)
                if (other := work.enqueued_before(trial)) is not None:  # by another controller, at the same moment
                    trial.set_user_attr("infeasible", f"a repeat with the seed of trial {other}")
                    raise optuna.TrialPruned
                architecture = work.phase.suggest(trial)
                if architecture not in self._failed or trial.user_attrs.get("seed") is not None:
                    return work.run(trial, architecture)  # another seed of it, as a repeat is, may end well
                trial.set_user_attr("infeasible", f"failed before: {self._failed[architecture]}"[:500])
            work.study.tell(trial, state=TrialState.PRUNED)
        self._note(work, f"{work.study.study_name}: nothing left to try")
        return None

    def _launch(self, work: Work, worker: int, run: Run) -> None:
        self._tell("start", work, run)
        if run.steps and run.prunes(work.seed):  # decided before, and not told: the controller died in between
            run.verdict = "pruned"
            self._finish(work, run, {})
            return
        self._running[worker] = run
        self.executor.send(worker, {"run": run.task})

    def _handle(self, work: Work, worker: int, message: Message) -> None:
        run = self._running.get(worker)
        if run is None:
            return
        if "report" in message or "reports" in message:
            run.begun = True
            for index, loss in message.get("reports", [message.get("report")]):
                self._report(work, run, int(index), float(loss))
            if "report" in message:
                stop = self.stopping or run.verdict == "lost"
                self.executor.send(worker, {"stop": True} if stop else {"go": not run.verdict})
            return
        del self._running[worker]
        if run.verdict == "lost":
            return
        if "interrupted" in message and not run.verdict:
            self._give_back(work, run)
        elif "result" in message or (run.verdict and {"died", "failed"} & message.keys()):
            if message.get("result", {}).get("stopped") and not run.verdict:
                self._retry(work, run, "its training stopped by itself", fail=True)
            else:
                self._finish(work, run, message.get("result", {}))
        elif "died" in message and not run.begun:
            self._give_back(work, run)  # a worker that dies before it takes up the trial did not die of it
        elif "died" in message:
            # A bus error is a mapped file that became shorter, or a full disk under one: not the architecture's doing.
            fault = "SIGBUS" not in message["died"]
            self._retry(work, run, f"the worker died, {message['died']}", fail=fault)
        elif message["failed"]["kind"] == "trial":
            run.verdict, run.reason = "failed", message["failed"]["reason"]
            self._finish(work, run, {})
        elif message["failed"]["kind"] == "system":
            self._retry(work, run, message["failed"]["reason"], fail=False)
        else:
            self._give_back(work, run)
            raise InputError(message["failed"]["reason"])

    def _report(self, work: Work, run: Run, index: int, loss: float) -> None:
        if run.verdict == "lost":
            return
        if not math.isfinite(loss):
            run.verdict, run.reason = "failed", f"the loss is {loss} at report {index}"
            return
        if index not in run.steps:
            run.steps.add(index)
            try:
                run.trial.report(loss, index)
            except UpdateFinishedTrialError:  # another controller took this one for dead and finished the trial
                run.verdict = "lost"
                return
        if not run.verdict and index < work.recipe.get("reports", math.inf) and run.prunes(work.seed):
            run.verdict = "pruned"  # never at the last report, where all is trained
        self._tell("report", work, run, loss=loss, fraction=index / max(1, work.recipe.get("reports", 1)))

    def _finish(self, work: Work, run: Run, result: dict[str, Any]) -> None:
        """Tell the study how the trial ended."""
        loss = result.get("loss")
        if not run.verdict and not (isinstance(loss, (int, float)) and math.isfinite(loss)):
            run.verdict, run.reason = "failed", f"the loss is {loss}"
        try:
            for name in ("tokens", "seconds", "bits_per_byte"):
                if isinstance(value := result.get(name), (int, float)):
                    run.trial.set_user_attr(name, value)
            if collapsed := result.get("diagnostics", {}).get("collapsed_routers"):
                run.trial.set_user_attr("collapsed_routers", collapsed)
            if run.verdict == "failed":
                run.trial.set_user_attr("reason", run.reason)
                self._failed[run.architecture] = run.reason
                work.study.tell(run.trial, state=TrialState.FAIL)
            elif run.verdict == "pruned":
                work.study.tell(run.trial, state=TrialState.PRUNED)
            else:
                work.study.tell(run.trial, cast(float, loss))
        except (UpdateFinishedTrialError, ValueError):
            # Another controller took this one for dead and finished the trial: that result stands.
            if not work.frozen(run.trial).state.is_finished():
                raise
        shutil.rmtree(run.task["checkpoint"], ignore_errors=True)
        self._count(work)
        self.finished(work)
        self._tell("end", work, run, loss=loss, fraction=1.0, state=run.verdict or "complete", message=run.reason)

    def _retry(self, work: Work, run: Run, reason: str, *, fail: bool) -> None:
        """Give the trial back, to be resumed from its checkpoint; after `RETRIES` times it fails, or, where it is not
        to blame, the search stops."""
        deaths = work.frozen(run.trial).system_attrs.get(_DEATHS, 0) + 1
        last = deaths > RETRIES
        if last and fail:
            run.verdict, run.reason = "failed", f"{reason}; tried {deaths} times"
            self._finish(work, run, {})
            return
        if not self.stopping:  # a worker that ends while the search does has its reason there
            attribute = 0 if last else deaths
            with contextlib.suppress(UpdateFinishedTrialError):  # as in `_report`; then there is nothing to give back
                work.study._storage.set_trial_system_attr(run.trial._trial_id, _DEATHS, attribute)
        self._note(work, f"trial {run.trial.number} goes back: {reason}")
        self._give_back(work, run)
        if last:
            raise InputError(f"{reason}; tried {deaths} times; the same command resumes", where=run.task["checkpoint"])

    def _give_back(self, work: Work, run: Run) -> None:
        with contextlib.suppress(OSError):  # with no room in the journal, the next run takes it up as a dead one's
            if self.leases.holds(trial := work.frozen(run.trial)):
                self.leases.give_back(work.study, trial)
        self._tell("end", work, run, state="returned")

    def _give_back_all(self, work: Work) -> None:
        """Have the workers save what they train, and give it back."""
        if self.hurried:
            return
        for worker in self._running:
            self.executor.send(worker, {"stop": True})
        deadline = time.monotonic() + self.grace
        with contextlib.suppress(InputError):  # workers that cannot start; there is a first error on its way
            while self._running and time.monotonic() < deadline:
                for worker, message in self.executor.wait(TICK):
                    if {"result", "interrupted"} & message.keys():
                        self._handle(work, worker, message)
                    elif {"died", "failed"} & message.keys() and worker in self._running:
                        self._give_back(work, self._running.pop(worker))
        for worker in list(self._running):
            self._give_back(work, self._running.pop(worker))

    def _look_after(self, work: Work) -> None:
        """Take back what dead controllers left, and drop what others took."""
        mine = {run.trial.number for run in self._running.values()}
        for number in self.leases.reap(work.study, mine):
            self._note(work, f"trial {number} is taken up again")
        for worker, run in self._running.items():
            if not self.leases.holds(work.frozen(run.trial)):
                run.verdict = "lost"
                self.executor.send(worker, {"stop": True})

    def _tell(self, kind: Any, work: Work, run: Run, **values: Any) -> None:
        self.observer(replace(work.event(kind, self._tally), trial=run.trial.number, **values))

    def _note(self, work: Work, message: str) -> None:
        self.observer(replace(work.event("note", self._tally), message=message))

    def _count(self, work: Work) -> Tally:
        self._tally = Tally.of(work.study)
        return self._tally

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Stop cleanly on SIGINT and SIGTERM, at once on the second; only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping:
                self.hurried = True
                raise KeyboardInterrupt
            self.stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
