"""Imports point one way: runner.types, runner.result_schema, runner.paths <- runner.protocols, runner.files,
runner.errors <- models, tasks, data <- the rest of runner <- run.py."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"runner.types", "runner.result_schema", "runner.paths", "runner.protocols", "runner.files", "runner.errors"}
SHARED |= {"runner.configuration.value_ranges", "runner.logging.loop_progress", "runner.user_code", "runner.lazy_part"}
PLACES = ("conf", "data", "models", "runner", "scripts", "tasks")
ALLOWED = {
    "data": {"data"} | SHARED,
    "models": {"models"} | SHARED,
    "tasks": {"tasks", "data"} | SHARED,
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
    return {name.removeprefix("classifier_lens.") for name in names if name.startswith(("classifier_lens.", "tests."))}


def wrong(place: str, source: str) -> set[str]:
    """Imports of a file in `place` that point the wrong way."""
    allowed = ALLOWED[place]
    return {n for n in imported(ast.parse(source)) if not any(n == a or n.startswith(f"{a}.") for a in allowed)}


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("models", "from classifier_lens.tasks.uvce import Uvce", {"tasks.uvce.Uvce"}),
        ("tasks", "def f():\n    import classifier_lens.models.devices", {"models.devices"}),
        ("data", "from classifier_lens.runner.run import run", {"runner.run.run"}),
        ("models", "from classifier_lens.runner import types, retry", {"runner.retry"}),
        ("models", "from classifier_lens.runner.types import UserError", set()),
        ("run.py", "import classifier_lens.models.hub", {"models.hub"}),
        ("runner", "from tests import cli", {"tests.cli"}),
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
    composing = ("compose", "override_errors", "resolvers", "schema")
    submitting = {"runner/cluster/submit.py", "runner/cluster/submit_settings.py"}  # whose words are run.py's
    assert knowing == {"runner/command.py", *(f"runner/configuration/{name}.py" for name in composing)} | submitting


def packages() -> list[Path]:
    """Every folder of code."""
    return sorted({file.parent for place in PLACES for file in (ROOT / place).rglob("*.py")})


def test_every_folder_says_what_lives_there() -> None:
    for folder in packages():
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert 1 <= len(text.splitlines()) <= 3, folder


def test_no_folder_is_crowded() -> None:
    """At most twenty files, and at the root of scripts/, with what a user types, ten."""
    crowded = {str(folder): n for folder in packages() if (n := len([p for p in folder.iterdir() if p.is_file()])) > 20}
    assert not crowded and len([p for p in (ROOT / "scripts").iterdir() if p.is_file()]) <= 10


def test_modules_of_scripts_hide_no_other_package() -> None:
    """Python puts a script's own folder first, so a neighbor must not be called as what somebody else imports."""
    taken = sys.stdlib_module_names | set(importlib.metadata.packages_distributions())
    assert not {file.stem for file in (ROOT / "scripts").rglob("*.py")} & taken
