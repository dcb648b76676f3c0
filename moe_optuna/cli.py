"""The `moe-optuna` command: parses, calls the rooms, prints. With ``--json`` one object goes to standard output.

Bad input gives one line on standard error and exit status 2.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from moe_optuna.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="moe-optuna",
    help="From a compute budget to a Mixture-of-Experts architecture.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130

# Click's exception for a wrong command line, under whichever name Typer carries it.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to standard output and nothing else there.")
]
SpaceName = Annotated[str, typer.Argument(metavar="SPACE", help="A search space: its name, or a TOML file.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a search.")]


def _show(payload: dict[str, Any], as_json: bool, render: str) -> None:
    """Print the payload as JSON, or through the function of `report.terminal` named `render`."""
    if as_json:
        try:
            sys.stdout.write(json.dumps(payload, allow_nan=False) + "\n")
        except ValueError:  # absurd coefficients overflow
            raise InputError("the answer is not finite; expected input within what the laws can say") from None
        return
    from rich.console import Console

    from moe_optuna.report import terminal

    draw: Callable[[dict[str, Any]], Any] = getattr(terminal, render)
    Console().print(draw(payload))


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"moe-optuna {metadata.version('moe-optuna')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What comes before a command."""


@app.command()
def search(
    space: SpaceName,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; runs/SPACE unless given.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL; a journal in the folder unless given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Trials side by side; one a core or GPU unless given.")] = None,
    devices_per_trial: Annotated[int, typer.Option(help="GPUs of one trial.")] = 1,
    executor: Annotated[str, typer.Option(help="Where workers run: local or ray.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of an existing Ray cluster.")] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the samplers and of the first trial of each architecture.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Run or resume the ladder of budgets; fit, extrapolate and report."""
    from moe_optuna.report import write_report
    from moe_optuna.search import search as run_search
    from moe_optuna.search.progress import display

    with display(quiet=as_json) as observer:
        result = run_search(
            space,
            out=out,
            storage=storage,
            workers=workers,
            devices_per_trial=devices_per_trial,
            executor=executor,
            ray_address=ray_address,
            seed=seed,
            observer=observer,
        )
    report = write_report(result.out)
    _show(result.to_dict() | {"report": str(report)}, as_json, "render_search")


@app.command()
def plan(
    compute: Annotated[float, typer.Option(help="Training FLOPs.")],
    laws: Annotated[Path | None, typer.Option(help="laws.json of a search; the published laws unless given.")] = None,
    space: Annotated[
        str | None,
        typer.Option(help="Search space of the architecture; that of the laws (space.toml beside them) unless given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The architecture for a compute budget, its band, and alternatives that suit the hardware."""
    from moe_optuna.files import SPACE_FILE
    from moe_optuna.laws import LadderLaws
    from moe_optuna.search import plan as make_plan
    from moe_optuna.space import SearchSpace

    if space is None and laws is not None and (beside := laws.parent / SPACE_FILE).is_file():
        space = str(beside)
    blueprint = make_plan(
        compute,
        laws=LadderLaws.load(laws) if laws is not None else None,
        space=SearchSpace.load(space) if space is not None else None,
    )
    _show(blueprint.to_dict(), as_json, "render_plan")


@app.command()
def count(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An architecture, or a Hugging Face config.json.")],
    context_length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence; the file's own unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """FLOPs per token, active and total parameters, in both conventions."""
    from moe_optuna.interchange import count_payload, read

    _show(count_payload(read(file, context_length=context_length)), as_json, "render_count")


@app.command()
def lattice(
    space: SpaceName,
    compute: Annotated[float | None, typer.Option(help="Training FLOPs; the allocation law gives M.")] = None,
    compute_density: Annotated[float | None, typer.Option(help="M/Na, with --compute.")] = None,
    expansion_ratio: Annotated[float | None, typer.Option(help="N/Na, with --compute.")] = None,
    flops_per_token: Annotated[float | None, typer.Option(help="M; with --active-params and --total-params.")] = None,
    active_params: Annotated[float | None, typer.Option(help="Na.")] = None,
    total_params: Annotated[float | None, typer.Option(help="N.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the architectures.")] = False,
    as_json: AsJson = False,
) -> None:
    """How many architectures of a space meet a triad, and why none does."""
    from moe_optuna.space import SearchSpace, lattice_payload

    payload = lattice_payload(
        SearchSpace.load(space),
        compute=compute,
        compute_density=compute_density,
        expansion_ratio=expansion_ratio,
        flops_per_token=flops_per_token,
        active_params=active_params,
        total_params=total_params,
        list_all=list_all,
    )
    _show(payload, as_json, "render_lattice")


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.csv", help="One row a run; columns by their words.")],
    law: Annotated[str, typer.Option(help="The law: chinchilla, routed, leverage, holistic, ...")],
    group: Annotated[
        str | None, typer.Option(help="Column whose equal labels err together (an architecture): drawn together.")
    ] = None,
    bootstraps: Annotated[int, typer.Option(help="Bootstrap fits behind the intervals.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a law to runs, with intervals and a held-out score."""
    from moe_optuna import laws

    columns = laws.read_runs(runs, law, group=group)
    fitted = laws.fit(law, columns, bootstraps=bootstraps, seed=seed, groups=columns.pop("group", None))
    _show(fitted.to_dict(), as_json, "render_fit")


@app.command()
def leverage(
    activation_ratio: Annotated[float, typer.Option(help="A = top_k / n_experts.")],
    granularity: Annotated[float, typer.Option(help="G = 2 d_model / d_expert.")],
    compute: Annotated[float, typer.Option(help="Training FLOPs.")],
    law: Annotated[
        Path | None, typer.Option(help="What `fit --law leverage --json` printed; the published law unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Efficiency leverage over a dense model: its compute over that of the MoE at equal loss."""
    from moe_optuna import laws

    fitted = laws.Fit.load(law) if law is not None else None
    answer = laws.leverage(activation_ratio, granularity, compute, law=fitted)
    _show(answer.to_dict(), as_json, "render_leverage")


@app.command()
def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An architecture, a blueprint or a Hugging Face config.json.")
    ],
    to: Annotated[str, typer.Option(help="hf, megatron or torchtitan.")],
    as_json: AsJson = False,
) -> None:
    """The configuration that a training framework takes."""
    from moe_optuna import interchange

    text = interchange.export(interchange.read(file), to)
    sys.stdout.write(json.dumps({"to": to, "text": text}) + "\n" if as_json else text.rstrip("\n") + "\n")


@app.command()
def report(folder: Folder, as_json: AsJson = False) -> None:
    """Write report.html again."""
    from moe_optuna.report import write_report

    path = str(write_report(folder))
    sys.stdout.write((json.dumps({"report": path}) if as_json else path) + "\n")


@app.command()
def dashboard(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to serve on; there is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 8080,
    storage: Annotated[
        str | None, typer.Option(help="Storage URL of the search; the journal in the folder unless given.")
    ] = None,
) -> None:
    """Open optuna-dashboard on a search."""
    from moe_optuna.report import dashboard as serve

    opened = None
    if storage is not None:
        from moe_optuna.search import open_storage

        opened = open_storage(storage, folder, workers=1, create=False)
    serve(folder, host=host, port=port, storage=opened)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: bad input ends in one line and status 2, Ctrl-C in status 130."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    if sys.stdout is None:
        _fail("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sign that the terminal's encoding lacks must not end a search
        sys.stdout.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            # What is asked outside of a law's range is a note of the answer itself.
            warnings.filterwarnings("ignore", message=".* outside the range of ")
            warnings.showwarning = lambda message, *_, **__: print(f"moe-optuna: {message}", file=sys.stderr)
            status = app(words, standalone_mode=False)
        sys.stdout.flush()
        if status == _INTERRUPTED:
            raise KeyboardInterrupt  # which typer has made a status of
    except InputError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        _fail(getattr(error, "format_message", error.__str__)())
    except (KeyboardInterrupt, typer.Abort):
        saved = "; what it was training is saved, and the same command goes on" if words[0] == "search" else ""
        sys.stderr.write(f"interrupted{saved}\n")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:  # a folder that cannot be written, a full disk behind a redirection
        _fail(f"{error.filename or 'cannot go on'}: {error.strerror or error}")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        sys.stderr.write("moe-optuna: " + " ".join(message.split()) + "\n")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would try again as it ends, and make a status of its own of it
            with contextlib.suppress(OSError):
                stream.close()
    sys.exit(2)
