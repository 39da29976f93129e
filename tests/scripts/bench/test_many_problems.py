"""The benchmark of large runs, on small ones."""

from __future__ import annotations

import json
from pathlib import Path

from classifier_lens.scripts.bench import many_problems


def test_a_run_of_finished_problems_is_whole(tmp_path: Path) -> None:
    names = many_problems.write_finished_run(tmp_path / "run", 6)
    folder = many_problems.RunFolder(tmp_path / "run")
    assert folder.find_damage(names) == {}
    many_problems.collect(folder, names)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {
        "results": 6, "successes": 4, "successes_at_start": 0,
    }  # fmt: skip


def test_what_a_start_costs_is_told_per_problem() -> None:
    start, page = many_problems.startup(3)
    assert start.name == "start with 3 done" and start.unit == "ms" and 0 < start.value < 1000
    assert page.value < 5 and "then a pause of" in page.detail


def test_photographs_are_as_many_files_of_few_contents(tmp_path: Path) -> None:
    many_problems.write_photographs(tmp_path, 3)
    files = sorted((tmp_path / "rock crab").iterdir())
    assert len(files) == 3 and len({file.stat().st_ino for file in files}) == 1
