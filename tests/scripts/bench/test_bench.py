"""The benchmark's arithmetic, its command line and its page; what it measures is tiny here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench import bench, command_measures
from classifier_lens.scripts.bench.result_line import ResultLine, speedup
from classifier_lens.scripts.bench.timing import (
    count_macs,
    fit_line,
    matmul_throughput,
    peak_memory,
    seconds,
    time_interleaved,
)
from classifier_lens.scripts.choices import select_names


def test_contestants_take_turns_and_medians_are_told() -> None:
    order: list[str] = []
    values = {"a": iter([1.0, 9.0, 2.0]), "b": iter([4.0, 5.0, 6.0])}

    def contestant(name: str) -> dict[str, float]:
        order.append(name)
        return {"all": next(values[name])}

    found = time_interleaved({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, 3)
    assert order == ["a", "b"] * 3 and found == {"a": {"all": 2.0}, "b": {"all": 5.0}}


def test_seconds_operations_and_memory() -> None:
    assert 0.05 <= seconds(lambda: time.sleep(0.05)) < 1.0
    assert count_macs(lambda: torch.zeros(3, 4) @ torch.zeros(4, 5)) == 3 * 4 * 5
    assert matmul_throughput(torch.device("cpu"), torch.float32, side=64) > 0
    before = peak_memory(lambda: None)
    assert peak_memory(lambda: torch.ones(64, 2**20)) - before > 200 * 2**20


def test_a_line_of_least_squares() -> None:
    start, slope, fit = fit_line([1, 2, 3], [5, 7, 9])
    assert (start, slope, fit) == pytest.approx((3, 2, 1))
    assert fit_line([1, 2, 3, 4], [1, -1, 1, -1])[2] == pytest.approx(0.2)


def test_a_ratio_is_of_times_and_is_judged_by_its_bar() -> None:
    line = speedup("uvce batch 8", 2.0, 9.0, 3.0)
    assert (line.value, line.unit, line.passed) == (4.5, "x", True)
    assert str(line).split() == "uvce batch 8 4.5x ours 2.00 s reference 9.00 s threshold ≥ 3x pass".split()
    assert (
        not speedup("a", 2.0, 5.0, 3.0).passed
        and ResultLine("b", 3.0, "%", "", 2.0, higher_is_better=False).verdict == "threshold ≤ 2% fail"
    )
    assert ResultLine("c", 3.0, "%", "").passed and ResultLine("c", 3.0, "%", "").verdict == ""


def test_measures_are_chosen_by_their_beginnings() -> None:
    names = list(bench.MEASURES)
    assert select_names("only", "all", names) == names and select_names("only", "mem, uv", names) == ["uvce", "memory"]
    names = ["planted.vae", "planted.uvce", "planted.uvce.pixels", "cifar10.vae"]
    assert select_names("rows", "cifar10,planted.v", names) == ["planted.vae", "cifar10.vae"]
    assert select_names("rows", "planted.uvce", names) == ["planted.uvce"], "a whole name is no beginning"
    assert select_names("rows", "planted.uv, planted.uvce", names) == ["planted.uvce", "planted.uvce.pixels"]
    for empty in ("", " , "):
        with pytest.raises(UserError, match="^only="):
            select_names("only", empty, names)


@pytest.mark.parametrize(("word", "said"), [
    ("only=nothing", "only=nothing: allowed are "), ("repeats=0", "repeats=0: allowed are whole numbers from 1"),
    ("speed=1", "speed=1: unknown key; allowed are only, "), ("repeats=x", "repeats=x: "),
])  # fmt: skip
def test_bad_words_end_in_one_line(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([word]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(said) and "\n" not in error


def test_a_page_keeps_what_is_not_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    fast, slow = ResultLine("fast", 4.0, "x", "ours 1.00 s", 3.0), ResultLine("slow", 1.0, "x", "ours 3.00 s", 3.0)
    monkeypatch.setattr(bench, "MEASURES", {"one": lambda repeats: [fast], "two": lambda repeats: [slow] * repeats})
    assert bench.main(["write=true", "repeats=2"]) == 1
    assert capsys.readouterr().out.count("threshold ≥ 3x fail") == 2
    assert bench.main(["only=two", "write=true", "repeats=1"]) == 1 and bench.main(["only=one"]) == 0
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert list(kept) == ["one", "two"] and len(kept["two"]["lines"]) == 1
    assert kept["one"]["command"] == "python scripts/bench/bench.py write=true repeats=2"
    page = (tmp_path / "speed.md").read_text()
    assert "| fast | 4 x | ours 1.00 s | threshold ≥ 3x pass |" in page and "threshold ≥ 3x fail" in page


def test_the_committed_page_shows_the_committed_numbers() -> None:
    results = json.loads((bench.RESULTS / "speed.json").read_text())
    assert (bench.RESULTS / "speed.md").read_text() == bench.format_table(results)


def test_every_timed_call_exists() -> None:
    calls = (*command_measures.LOGGING_CALLS, *command_measures.DURABILITY_CALLS, *command_measures.RESUME_CALLS)
    assert all(callable(getattr(owner, name)) for owner, name in calls)
