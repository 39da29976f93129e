"""Imports point one way: runner.types <- runner.ranges, runner.text, runner.protocols, runner.files, runner.tensor_file
<- models, tasks, data <- the rest of runner <- run.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("data", "models", "runner", "scripts", "tasks", "tests", "run")
ALLOWED = {
    "data": {"data", "runner.types", "runner.ranges", "runner.text", "runner.protocols"},
    "models": {
        "models",
        "runner.types",
        "runner.ranges",
        "runner.text",
        "runner.protocols",
        "runner.files",
        "runner.counted",
        "runner.faults",
        "runner.tensor_file",
    },
    "tasks": {
        "tasks",
        "data",
        "runner.types",
        "runner.ranges",
        "runner.text",
        "runner.counted",
        "runner.faults",
        "runner.protocols",
    },
    "runner": {"runner", "models", "tasks", "data"},
    "run.py": {"runner"},
}


def imported(tree: ast.AST) -> set[str]:
    """The modules of this project that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            # `from runner import types` names a module in its second half.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def wrong(place: str, source: str) -> set[str]:
    """Imports of a file in `place` that point the wrong way."""
    allowed = ALLOWED[place]
    return {n for n in imported(ast.parse(source)) if not any(n == a or n.startswith(f"{a}.") for a in allowed)}


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("models", "from tasks.uvce import Uvce", {"tasks.uvce.Uvce"}),
        ("tasks", "def f():\n    import models.steps", {"models.steps"}),
        ("data", "from runner.run import run", {"runner.run.run"}),
        ("models", "from runner import types, record", {"runner.record"}),
        ("models", "from runner.types import UserError", set()),
        ("run.py", "import models.diffusion", {"models.diffusion"}),
    ],
)
def test_the_check_sees_what_it_should(place: str, source: str, found: set[str]) -> None:
    assert wrong(place, source) == found


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_point_one_way(place: str) -> None:
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): bad for file in files if (bad := wrong(place, file.read_text()))}
    assert not found


def test_types_import_nothing_of_this_project() -> None:
    assert not imported(ast.parse((ROOT / "runner" / "types.py").read_text()))


def test_only_what_composes_and_checks_knows_hydra() -> None:
    knowing = {
        str(file.relative_to(ROOT))
        for place in ALLOWED
        for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
        if any(
            isinstance(node, (ast.Import, ast.ImportFrom)) and "hydra" in ast.unparse(node)
            for node in ast.walk(ast.parse(file.read_text()))
        )
    }
    submitting = {"runner/submit.py", "runner/submit_settings.py"}  # whose words are run.py's
    assert (
        knowing
        == {"run.py", *(f"runner/{name}.py" for name in ("compose", "overrides", "resolvers", "schema"))} | submitting
    )
