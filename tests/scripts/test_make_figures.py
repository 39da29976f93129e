"""Every figure of the papers has a miniature; these are found, run one after the other, and each gets its figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.configuration.compose import build
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.report.figures.figure import LAYOUTS
from classifier_lens.runner.results.reader import read_run
from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED
from classifier_lens.runner.types import UserError
from classifier_lens.scripts import make_figures
from tests.runner.report.figures.test_figure import flip, run_folder
from tests.test_config import CONF, configured, nodes
from tests.test_docs import TINY

PLANTED = sorted(path.stem for path in make_figures.EXPERIMENTS.glob("*.yaml"))


def test_what_is_composed_are_the_figures_of_the_folder_or_what_is_named(tmp_path: Path) -> None:
    for name in ("tab02", "fig06", "uvce", "workshop_fig2", "diffexplainer_fig02"):
        (tmp_path / f"{name}.yaml").touch()
    (tmp_path / "fig07.txt").touch()
    assert make_figures.select_experiments(None, tmp_path) == ["diffexplainer_fig02", "fig06", "tab02", "workshop_fig2"]
    assert make_figures.select_experiments("uvce, fig06", tmp_path) == ["uvce", "fig06"]
    with pytest.raises(
        UserError,
        match="only=c: no such experiment; allowed are diffexplainer_fig02, fig06, tab02, uvce, workshop_fig2",
    ):
        make_figures.select_experiments("c", tmp_path)


def test_every_figure_of_the_papers_has_a_miniature() -> None:
    """DiG-IN's have their names, those of the other paper have them behind its own."""
    prefixes = {"dig_in": "", "diagnose": "", "diffexplainer": "diffexplainer_"}
    papers = {
        prefix + path.stem
        for group, prefix in prefixes.items() for path in (CONF / "experiment" / group).glob("*.yaml")
        if path.stem != "published"
    }  # fmt: skip
    assert set(make_figures.select_experiments(None)) == papers


def test_the_page_of_experiments_names_the_miniatures() -> None:
    page = (make_figures.ROOT / "docs" / "guides" / "reproduce_the_papers.md").read_text()
    assert set(re.findall(r"experiment=planted/(\w+)", page)) >= set(make_figures.select_experiments(None))
    assert set(re.findall(r"experiment=planted/(\w+)", page)) <= set(PLANTED)


def settings(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """The parts of a configuration that have this setting."""
    return (node for _, node in nodes(value) if key in node)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.mark.parametrize("name", PLANTED)
def test_every_miniature_asks_its_questions(
    name: str, make_generator: Callable[..., LatentDiffusion], caches: Path
) -> None:
    """With the networks and pictures that it names, but few training pictures and a tiny generator."""
    built: dict[str, dict[str, Any]] = {}  # of a sweep, classifiers and data that several runs have
    for found in configured(f"{make_figures.GROUP}/{name}"):
        config = deepcopy(found)
        for key, few in {"count": 64, "samples": 1}.items():
            for node in settings(config["task"], key):
                node[key] = few
        for cache in settings(config, "folder"):
            cache["folder"] = str(caches)
        key = repr([config[part] for part in ("classifier", "data", "select")])
        parts = build(config, generator=make_generator(steps=2), logger=None, **built.get(key, {}))
        built[key] = {"classifier": parts.classifier, "data": parts.data}
        assert config["task"]["_target_"].split(".")[-2] in LAYOUTS and 1 <= config["limit"] <= 8
        problems, total = parts.task.problems(
            TaskInputs(parts.data, parts.classifier, parts.generator, config["seed"], 1)
        )
        assert len(problems) == 1 and (total is None or total >= config["limit"])


def test_the_runs_of_an_experiment_are_those_of_its_sweep() -> None:
    guides = ["planted_clean", "planted_vit", "planted_robust", "planted_shortcut"]
    assert make_figures.expand_sweep(["experiment=planted/fig19", "limit=1"]) == [
        ["experiment=planted/fig19", "limit=1", f"classifier={guide}"] for guide in guides
    ]
    assert make_figures.expand_sweep(["experiment=planted/fig06"]) == [["experiment=planted/fig06"]]
    assert make_figures.expand_sweep(["experiment=planted/fig19", "hydra.mode=RUN"]) == [
        ["experiment=planted/fig19", "hydra.mode=RUN"]
    ]
    panels = [
        make_figures.compose_config(job)["panel"] for job in make_figures.expand_sweep(["experiment=planted/fig10"])
    ]
    assert panels == [{"label": "fiddler crab", "unit": 61}, {"label": "prairie chicken", "unit": 50}]


def test_each_gets_its_figure_and_one_that_cannot_run_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = ["original", "start", "result", "difference"]
    asked = []

    def solve(name: str, overrides: Sequence[str]) -> tuple[list[Path], int]:
        asked.append((name, list(overrides)))
        if name == "b":
            raise UserError("b=1: is wrong")
        code = {"a": DONE, "c": FAILED, "d": 143}[name]
        return [run_folder(tmp_path / name, "uvce", [flip("x")], pictures)], code

    monkeypatch.setattr(make_figures, "run_experiment", solve)
    out = tmp_path / "figures"
    options = make_figures.Options(figures=str(out))
    assert make_figures.make_figures(["a", "b", "c", "d", "a"], options, ["limit=1"]) == 143
    assert asked == [(name, ["limit=1"]) for name in "abcd"]
    assert {path.name for path in out.iterdir()} == {"a.png", "a.pdf", "c.png", "c.pdf"}
    assert capsys.readouterr().err == "b: b=1: is wrong\n"
    assert make_figures.make_figures(["a", "c"], options, []) == FAILED
    assert make_figures.make_figures(["a", "b"], options, []) == BAD_INPUT


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def note(*given: object) -> int:
        calls.append(given)
        return DONE

    monkeypatch.setattr(make_figures, "make_figures", note)
    command = ["only=uvce", "figures=/tmp/x", "limit=1", "max_blocks=2", "pdf=false", "optimizer.steps=2"]
    assert make_figures.main(command) == DONE
    options = make_figures.Options("uvce", "/tmp/x", max_blocks=2, pdf=False)
    assert calls == [(["uvce"], options, ["limit=1", "optimizer.steps=2"])]
    assert make_figures.main(["max_blocks=0"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("max_blocks=0: allowed are whole numbers from 1")
    assert make_figures.main(["only=nothing"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("only=nothing: no such experiment; allowed are ")


def test_the_runs_of_a_sweep_make_one_figure(tiny_folder: Path, tmp_path: Path) -> None:
    small = [
        *TINY, f"generator.path={tiny_folder}", f"outputs={tmp_path}", "limit=1", "batch=1", "logger=none",
        "hydra.sweeper.params.classifier='planted_clean,planted_vit'",
    ]  # fmt: skip
    assert make_figures.make_figures(["fig19"], make_figures.Options(figures=str(tmp_path / "figures")), small) == DONE
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"fig19.png", "fig19.pdf"}
    folders, _ = make_figures.run_experiment("fig19", small)
    assert [folder.parent.name for folder in folders] == ["planted_ddim-planted_clean", "planted_ddim-planted_vit"]
    assert len({read_run(folder).records[0]["name"] for folder in folders}) == 1


@pytest.mark.slow
def test_a_run_is_made_once_and_its_figure_again(tmp_path: Path) -> None:
    small = [f"outputs={tmp_path}", "limit=1", "batch=1", "optimizer.steps=1", "generator.steps=2", "logger=none"]
    (folder,), code = make_figures.run_experiment("uvce", small)
    result = folder / "images" / read_run(folder).records[0]["name"] / "result.json"
    before = result.stat().st_mtime_ns
    assert make_figures.run_experiment("uvce", small) == ([folder], code)
    assert result.stat().st_mtime_ns == before
