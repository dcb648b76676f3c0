"""optuna-dashboard on a search: figures and notes at each study, and the server, on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from moe_optuna.architecture import COUNTS
from moe_optuna.errors import InputError
from moe_optuna.report import _words as words
from moe_optuna.report._run import Run

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.storages.journal import BaseJournalBackend

__all__ = ["annotate", "dashboard", "server"]


def annotate(studies: Iterable[Study], out: str | Path) -> None:
    """Give each study of a search its figures and a Markdown note; what an earlier call gave is replaced.

    Args:
        studies: Studies of the search whose folder is `out`; others get nothing.
        out: The folder, with `runs.csv` and whatever else there is of `laws.json` and `blueprint.json`.

    Raises:
        InputError: Where the folder is not one of a search, or a file in it is not what its name says.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object

    from moe_optuna.report._figures import study_figures

    run = Run.read(out)
    for study in studies:
        if not any(trial.study == study.study_name for trial in run.trials):
            continue
        for name, figure in study_figures(run, study.study_name).items():
            save_plotly_graph_object(study, figure, graph_object_id=name)
        save_note(study, _note(run, study.study_name))


def dashboard(
    out: str | Path, *, host: str = "127.0.0.1", port: int = 8080, storage: BaseStorage | None = None
) -> None:
    """Serve optuna-dashboard on a search until Ctrl-C, with figures and notes as of now at its studies.

    There is no authentication, and a visitor can delete studies: keep it on loopback.

    Args:
        out: The folder of the search.
        host, port: Where to listen.
        storage: The storage of the search; the journal in the folder unless given. Of a folder that cannot be written
            it is a copy, made now.

    Raises:
        InputError: Where there is no journal, the storage is not that of the search, a file in the folder is not what
            its name says, or the address cannot be listened on.
    """
    import optuna

    store = _journal(Path(out)) if storage is None else storage
    if storage is not None:
        found = set(optuna.get_all_study_names(storage))
        known = {trial.study for trial in Run.read(out).trials}
        if not (found & known if known else found):  # no row is there before the first training ends
            raise InputError(f"no study of the search in {out}, expected the storage it runs in", where="--storage")
    with server(out, host=host, port=port, storage=store) as listening:
        annotate([optuna.load_study(study_name=name, storage=store) for name in optuna.get_all_study_names(store)], out)
        if not _is_loopback(host):
            sys.stderr.write(
                f"warning: {host} can be reached from other machines, and the dashboard has no authentication: "
                "whoever reaches it can read and delete the studies\n"
            )
        sys.stderr.write(f"dashboard on http://{host}:{listening.server_port}/ (Ctrl-C to stop)\n")
        with contextlib.suppress(KeyboardInterrupt):
            listening.serve_forever()


def server(
    out: str | Path, *, host: str = "127.0.0.1", port: int = 8080, storage: BaseStorage | None = None
) -> WSGIServer:
    """The dashboard's server, bound and not yet serving; port 0 takes a free one.

    Raises:
        InputError: Where there is no journal, or the address cannot be listened on.
    """
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    artifacts = Path(out) / "artifacts"
    app = wsgi(
        _journal(Path(out)) if storage is None else storage,
        artifact_store=FileSystemArtifactStore(artifacts) if artifacts.is_dir() else None,
    )
    try:
        return make_server(host, port, _same_site(app) if _is_loopback(host) else app, _Threaded, _Quiet)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot be listened on ({error})", where=f"{host}:{port}") from None


PHASES = {
    0: "how much of the budget goes to FLOPs per token",
    1: "compute density and expansion ratio at the proxy width",
    2: "the width, and what else the space frees, with the triad locked",
}


def _note(run: Run, study: str) -> str:
    """The Markdown note of a study: phase, budget, triad, optimum and band of each axis, the least loss."""
    trials = [trial for trial in run.trials if trial.study == study]
    phase, compute = trials[0].phase, trials[0].compute
    lines = [f"**Phase {phase}**: {PHASES[phase]}, at C = {words.compute(compute)} training FLOPs (non_embedding)."]
    targets = {name: {trial[f"triad_{name}"] for trial in trials} for name in COUNTS}
    locked = [f"{name} {words.value(name, each.pop())}" for name, each in targets.items() if len(each) == 1]
    lines.append(f"Every trial is held to {', '.join(locked)} (non_embedding)." if locked else "")
    states = ", ".join(f"{sum(trial.state == state for trial in trials)} {state}" for state in run.counts)
    best = min((t for t in trials if t.state == "complete"), key=lambda trial: trial.loss, default=None)
    least = f"; least loss {words.value('loss', best.loss)} nats per token, trial {best.number}" if best else ""
    lines.append(f"Trials: {states}{least}.")
    fits = [fit for fit in run.fits if fit.phase == phase and math.isclose(fit.compute, compute)]
    if fits:
        rows = ["| axis | optimum, 95 % | 0.1 % band | within the noise |", "|---|---|---|---|"]
        for fit in fits:
            spans = (words.interval(fit.axis, ends) for ends in (fit.interval, fit.band, fit.band_noise))
            rows.append(f"| {fit.axis}: {words.value(fit.axis, fit.optimum)} | {' | '.join(spans)} |")
        lines.append("\n".join(rows))
        loss, sure = words.value("loss", fits[0].loss), words.interval("loss", fits[0].loss_interval)
        lines.append(f"Least loss of the fit: {loss} nats per token, 95 % {sure}.")
    return "\n\n".join(line for line in lines if line)


def _journal(out: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = out / "journal.log"
    if not path.is_file():  # the backend would make one
        raise InputError("no such file, expected the journal of a search that ran without --storage", where=path)
    try:
        if os.access(out, os.W_OK) and os.access(path, os.W_OK):
            return JournalStorage(JournalFileBackend(str(path)))
        sys.stderr.write(f"note: {out} cannot be written: it is shown as of now, and what is changed is not kept\n")
        return JournalStorage(_read_only(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError):
        raise InputError("not an Optuna journal", where=path) from None


def _read_only(path: Path) -> BaseJournalBackend:
    """A journal as it is now, to which whatever is added stays in memory."""
    from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

    records = list(JournalFileBackend(str(path)).read_logs(0))

    class Copy(BaseJournalBackend):
        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            return records[log_number_from:]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            records.extend(logs)

    return Copy()


class _Threaded(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # the page polls every few seconds
        pass


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _same_site(app: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse requests that a foreign page sends through the visitor's browser: by a rebound name, or from elsewhere."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN", f"http://{host}")
        if _is_loopback(host.rpartition(":")[0].strip("[]") or host) and origin == f"http://{host}":
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"not from this page\n"]

    return guarded
