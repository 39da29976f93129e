"""`experiment=report`: which runs it starts, what a failed one costs, and one report from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from classifier_lens.runner import report_command
from classifier_lens.runner.cluster.submit import check_command
from classifier_lens.runner.command import JobResult
from classifier_lens.runner.run import BAD_INPUT, DONE
from classifier_lens.runner.types import UserError
from tests.cli import Cli
from tests.runner.report.test_classifier_report import NOTHING, SAND, written

CLASSIFIER = "classifier=planted_shortcut"


class Jobs:
    """Stands for `run_job`: notes the configurations, and gives the prepared results by task."""

    def __init__(self, head: object = "a linear layer", **results: JobResult | Exception) -> None:
        self.configs: list[dict[str, Any]] = []
        self._results, self._head = results, head

    def __call__(self, make_config: Callable[[], dict[str, Any]], interrupt: object, announce: Any) -> JobResult:
        config = make_config()
        self.configs.append(config)
        announce(parts(head=self._head))
        result = self._results.get(config["options"]["task"], JobResult(DONE))
        if isinstance(result, Exception):
            raise result
        return result


def parts(num_classes: int = 10, head: object = "a linear layer") -> SimpleNamespace:
    """What the report reads of the parts of a run with a generator."""
    labels = tuple(map(chr, range(ord("a"), ord("a") + num_classes)))
    return SimpleNamespace(
        generator=SimpleNamespace(can_generate=True), classifier=SimpleNamespace(labels=labels, head=head)
    )


@pytest.fixture
def plan_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_command, "plan_lines", lambda plan, parts: ["the plan"])


@pytest.mark.usefixtures("plan_is_short")
def test_later_runs_take_the_classes_with_the_largest_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path, "concept_effect", [NOTHING, SAND])
    assert run.results is not None
    jobs = Jobs(concept_effect=JobResult(DONE, folder=run.results.folder))
    monkeypatch.setattr(report_command, "run_job", jobs)
    words = ["experiment=report", CLASSIFIER, "report.reference=planted_clean", "report.num_classes=1", "seed=3"]
    assert report_command.main([*words, f"outputs={tmp_path}"]) == DONE
    effects, audit, disagreement, counterfactuals = jobs.configs
    assert effects["task"]["classes"] is None and {config["seed"] for config in jobs.configs} == {3}
    assert audit["task"]["classes"] == disagreement["task"]["classes"] == ["fiddler crab"]
    assert disagreement["task"]["rival"]["path"] == "planted_clean"
    assert disagreement["task"]["start_classes"] == ["rock crab"]
    assert disagreement["task"]["context_phrases"] == ["on sand"]
    assert counterfactuals["select"]["classes"] == ["rock crab"] and counterfactuals["limit"] == 4
    out = capfd.readouterr().out
    assert out.index("the plan") < out.index("spurious_audit: python run.py experiment=report/spurious_audit")
    assert "'task.classes=[fiddler crab]'" in out
    assert "report.reference" not in out  # commands of single runs have none of the report's settings
    page = Path(out.strip().rpartition("report: ")[2])
    assert page.parent.name.startswith("planted_shortcut-") and "on sand" in page.read_text()


@pytest.mark.usefixtures("plan_is_short")
def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = Jobs(concept_effect=JobResult(BAD_INPUT, "no weights"), spurious_audit=RuntimeError("broken"))
    monkeypatch.setattr(report_command, "run_job", jobs)
    assert report_command.main(["experiment=report", CLASSIFIER, f"outputs={tmp_path}"]) == BAD_INPUT
    assert [config["options"]["task"] for config in jobs.configs] == ["concept_effect", "spurious_audit", "uvce"]
    assert jobs.configs[1]["task"]["classes"] == list("abcd")  # no effects are known
    page = next(tmp_path.glob("report/*/index.html")).read_text()
    assert "no weights" in page and "RuntimeError: broken" in page


def test_classes_are_chosen_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def announced(make_config: Any, interrupt: object, announce: Any) -> JobResult:
        try:
            announce(parts(1000))
        except UserError as error:
            return JobResult(BAD_INPUT, str(error))
        return JobResult(DONE)

    monkeypatch.setattr(report_command, "run_job", announced)
    monkeypatch.setattr(report_command, "plan_lines", lambda plan, parts: [])
    assert report_command.main(["experiment=report", CLASSIFIER, f"outputs={tmp_path}"]) == BAD_INPUT
    assert not list(tmp_path.glob("report/*"))


@pytest.mark.usefixtures("plan_is_short")
def test_a_sweep_makes_several_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_command, "run_job", Jobs())
    words = ["-m", "experiment=report", "classifier=planted_clean,planted_weak", f"outputs={tmp_path}"]
    assert report_command.is_report(words) and not report_command.is_report([*words[1:], "--cfg", "job"])
    assert report_command.main(words) == DONE
    names = {page.parent.name.rpartition("-")[0] for page in tmp_path.glob("report/*/index.html")}
    assert names == {"planted_clean", "planted_weak"}


@pytest.mark.usefixtures("plan_is_short")
def test_a_stopped_report_starts_no_further_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(concept_effect=JobResult(130, "stopped by SIGINT"))
    monkeypatch.setattr(report_command, "run_job", jobs)
    assert report_command.main(["experiment=report", CLASSIFIER, f"outputs={tmp_path}"]) == 130
    assert len(jobs.configs) == 1
    assert "the same command continues" in next(tmp_path.glob("report/*/index.html")).read_text()


@pytest.mark.usefixtures("plan_is_short")
def test_a_network_without_features_is_not_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(head=None)
    monkeypatch.setattr(report_command, "run_job", jobs)
    assert report_command.main(["experiment=report", CLASSIFIER, f"outputs={tmp_path}"]) == DONE
    assert [config["options"]["task"] for config in jobs.configs] == ["concept_effect", "uvce"]
    assert "no last linear layer" in next(tmp_path.glob("report/*/index.html")).read_text()


@pytest.mark.parametrize(("word", "line"), [
    ("report.reference=nope", "classifier@rival=nope: no such option"),
    ("report.num_classes=0", "report.num_classes=0: allowed are whole numbers"),
    ("report.clases=[urn]", "report.clases: no such key"),
])  # fmt: skip
def test_wrong_settings_end_before_anything_is_loaded(
    word: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report_command, "run_job", lambda *arguments: pytest.fail("a run is started"))
    assert report_command.main(["experiment=report", word]) == BAD_INPUT
    assert capfd.readouterr().err.startswith(line)


def test_it_is_not_submitted() -> None:
    with pytest.raises(UserError, match="experiment=report: its later runs depend on the first one"):
        check_command(["experiment=report", CLASSIFIER])


def test_a_task_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert report_command.main(["experiment=report", "task=uvce"]) == BAD_INPUT
    assert capfd.readouterr().err.startswith("task=uvce: experiment=report chooses its tasks")


def test_a_network_and_a_folder_without_a_generator(
    cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        pixels = (255 * torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(i))).byte()
        (tmp_path / "photographs").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photographs" / f"{i}.png")
    words = [
        "experiment=report", "classifier=callable", f"classifier.target={cli.network}:network", "classifier.size=16",
        f"classifier.labels={cli.labels}", "generator=none", "generator.resolution=16", "data=folder", "limit=2",
        f"data.path={tmp_path / 'photographs'}", "logger=none", f"outputs={cli.outputs}",
    ]  # fmt: skip
    outcome = cli.plain(capfd, *words)
    assert outcome.code == 0, outcome
    page = Path(outcome.out.strip().rpartition("report: ")[2])
    text = page.read_text()
    assert page.parent.parent == (cli.outputs / "report").resolve() and page.parent.name.startswith("callable-")
    assert "Left out, since it needs a generator" in text and "need a generator of images" in text
    for line in ("overlays: 9 on 3 images", "spurious_audit: left out, since it needs a generator"):
        assert line in outcome.out
    assert json.loads((page.parent / "findings.json").read_text()) is not None
    results = (cli.folder / "results.jsonl").stat().st_mtime_ns, (cli.folder / "images").stat().st_mtime_ns
    again = cli.plain(capfd, *words)
    assert again.code == 0 and again.out.splitlines()[-1] == outcome.out.splitlines()[-1]
    assert (cli.folder / "images").stat().st_mtime_ns == results[1]  # no result is computed twice
