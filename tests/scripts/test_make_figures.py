"""The planted experiments are found, run one after the other, and each gets its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from runner.figures import LAYOUTS, read_run
from runner.run import BAD_INPUT, DONE, FAILED, STOPPED
from runner.types import UserError
from scripts import make_figures
from tests.runner.test_figures import flip, run_folder


def test_experiments_are_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / name).touch()
    assert make_figures.select(None, tmp_path) == ["a", "b"]
    assert make_figures.select("b, a", tmp_path) == ["b", "a"]
    with pytest.raises(UserError, match="only=c: no such experiment; allowed are a, b"):
        make_figures.select("c", tmp_path)


def test_every_experiment_of_this_repository_is_of_a_task_that_has_a_figure() -> None:
    names = make_figures.select(None)
    assert len(names) >= 5
    for name in names:
        config = make_figures.configure([f"experiment={make_figures.GROUP}/{name}"])
        assert config["task"]["_target_"].split(".")[-2] in LAYOUTS


def test_each_gets_its_figure_and_one_that_cannot_run_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = ["original", "start", "best", "difference"]
    asked = []

    def solve(name: str, overrides: Sequence[str]) -> tuple[Path, int]:
        asked.append((name, list(overrides)))
        if name == "b":
            raise UserError("b=1: is wrong")
        return run_folder(tmp_path / name, "uvce", [flip("x")], pictures), {"a": DONE, "c": FAILED, "d": STOPPED}[name]

    monkeypatch.setattr(make_figures, "solve", solve)
    out = tmp_path / "figures"
    assert make_figures.make_figures(["a", "b", "c", "d", "a"], str(out), ["limit=1"]) == STOPPED
    assert asked == [(name, ["limit=1"]) for name in "abcd"]
    assert {path.name for path in out.iterdir()} == {"a.png", "a.pdf", "c.png", "c.pdf"}
    assert capsys.readouterr().err == "b: b=1: is wrong\n"
    assert make_figures.make_figures(["a", "c"], str(out), []) == FAILED
    assert make_figures.make_figures(["a", "b"], str(out), []) == BAD_INPUT


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def note(*given: object) -> int:
        calls.append(given)
        return DONE

    monkeypatch.setattr(make_figures, "make_figures", note)
    assert make_figures.main(["only=uvce", "figures=/tmp/x", "limit=1", "optimizer.steps=2"]) == DONE
    assert calls == [(["uvce"], "/tmp/x", ["limit=1", "optimizer.steps=2"])]
    assert make_figures.main(["only=nothing"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("only=nothing: no such experiment; allowed are ")


@pytest.mark.slow
def test_a_run_is_made_once_and_its_figure_again(tmp_path: Path) -> None:
    small = [f"outputs={tmp_path}", "limit=1", "batch=1", "optimizer.steps=1", "generator.steps=2", "logger=none"]
    folder, code = make_figures.solve("uvce", small)
    result = folder / "images" / read_run(folder).records[0]["name"] / "result.json"
    before = result.stat().st_mtime_ns
    assert make_figures.solve("uvce", small) == (folder, code)
    assert result.stat().st_mtime_ns == before
