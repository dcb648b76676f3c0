"""The house: which room may import which, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moe_optuna

PACKAGE = Path(moe_optuna.__file__).parent

# A room may use the rooms named here and itself; third parties are listed where a room must do without some.
ROOMS = {
    "errors": set(),
    "files": {"errors"},
    "parts": {"errors", "architecture"},  # for annotations only
    "architecture": {"errors", "files", "parts"},
    "triad": {"errors", "files", "architecture"},
    "memory": {"errors", "files", "parts", "architecture"},
    "interchange": {"errors", "files", "parts", "architecture", "memory"},
    "laws": {"errors", "files", "architecture", "triad"},
    "space": {"errors", "files", "parts", "architecture", "triad", "memory"},
    "samplers": {"errors", "files", "architecture", "triad", "space", "laws", "pruners"},
    "pruners": {"errors", "files", "laws", "space", "samplers"},
    "problems": {"errors", "files", "architecture", "triad", "space", "laws"},
    "training": {"errors", "files", "parts", "architecture", "memory"},
}
ROOMS["search"] = set(ROOMS) - {"problems"}
ROOMS["report"] = set(ROOMS) - {"problems"}
ROOMS["cli"] = set(ROOMS)
ROOMS["__main__"] = {"cli"}
FORBIDDEN = {
    "files": {"numpy", "pydantic", "optuna", "torch", "lightning"},
    "errors": {"numpy", "pydantic", "optuna", "torch", "lightning"},
    "architecture": {"numpy", "pydantic", "optuna", "torch", "lightning"},
    "triad": {"numpy", "pydantic", "optuna", "torch", "lightning"},
    "interchange": {"optuna", "torch", "lightning"},
    "space": {"torch", "lightning", "plotly"},
    "laws": {"optuna", "torch", "lightning", "plotly"},
    "training": {"optuna", "plotly"},
}


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in _imports(path):
        top, *rest = name.split(".")
        assert top not in FORBIDDEN.get(room, set()), f"{path} imports {name}"
        if top != "moe_optuna" or not rest or rest[0] == "__version__":
            continue
        assert rest[0] == room or rest[0] in ROOMS[room], f"{path} imports {name}"
        private = [part for part in rest[1:] if part.startswith("_") and not part.startswith("__")]
        assert rest[0] == room or not private, f"{path} reaches into {name}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, moe_optuna, moe_optuna.laws, moe_optuna.space, moe_optuna.architecture;"
        "print([m for m in ('torch', 'lightning', 'plotly', 'ray', 'sklearn', 'scipy', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    for name in moe_optuna.__all__:
        assert callable(getattr(moe_optuna, name)), name
