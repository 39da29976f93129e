"""Rows, their judging, selection, printing and recording; the planted rows on tiny models by way of the real runner."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from classifier_lens.data import planted
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.configuration.compose import build
from classifier_lens.runner.protocols import Classifier, TaskInputs
from classifier_lens.runner.types import CaptionEdit, UserError
from classifier_lens.scripts.evaluate import cifar10, estimates, evaluate, metric, oracles, planted_world
from classifier_lens.scripts.evaluate.bfloat16_emulation import Bfloat16Emulation
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, sample_images, target_prediction_rate
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from classifier_lens.tasks.uvce import Uvce


def row(name: str = "planted.a", estimate: Estimate | None = None, **changes: Any) -> Metric:
    """A row that costs nothing."""
    found = estimate or Estimate(0.8, 0.7, 0.95, "a note")
    return Metric(
        **{
            "name": name,
            "function": lambda setting, n: found,
            "sample_size": 64,
            "unit": "%",
            "threshold": 0.9,
            **changes,
        }
    )


# --- judging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("higher", "threshold", "n", "verdict"),
    [
        (True, 0.9, 64, "fail"), (True, 0.9, 63, "pass"), (True, 0.96, 63, "fail"), (True, 0.8, 64, "pass"),
        (False, 0.75, 64, "fail"), (False, 0.75, 63, "pass"), (False, 0.6, 63, "fail"), (False, 0.8, 64, "pass"),
    ],
)  # fmt: skip
def test_full_size_is_judged_by_the_value_and_a_smaller_one_by_the_favourable_end(
    higher: bool, threshold: float, n: int, verdict: str
) -> None:
    assert (
        evaluate.check_threshold(row(higher_is_better=higher, threshold=threshold), Estimate(0.8, 0.7, 0.95), n)
        == verdict
    )


@pytest.mark.parametrize(("low", "n", "verdict"), [(0.1, 64, "pass"), (0.0, 64, "fail"), (-0.1, 8, "pass")])
def test_an_interval_may_have_to_lie_above_something(low: float, n: int, verdict: str) -> None:
    assert evaluate.check_threshold(row(threshold=0.2, interval_threshold=0.0), Estimate(0.3, low, 0.5), n) == verdict


def test_no_bar_no_verdict_and_undefined_is_short() -> None:
    assert evaluate.check_threshold(row(threshold=None), Estimate(0.0, 0.0, 0.0), 64) == evaluate.NO_THRESHOLD
    assert evaluate.check_threshold(row(higher_is_better=False), Estimate(math.nan, math.nan, math.nan), 64) == "fail"


def test_the_table_has_every_row_once() -> None:
    names = [r.name for r in evaluate.METRICS]
    assert len(set(names)) == len(names)
    for what in ("confidence", "oracles", "background", "kid"):
        own, *beside = [
            r for r in evaluate.METRICS if r.name.startswith(f"planted.uvce_{what}") and "ratio" not in r.name
        ]
        rivals = [r.name.rpartition(".")[2] for r in beside]
        assert own.threshold is not None and rivals == ["start_only", "pixels", "classifier_guidance"]
        assert all(r.threshold is None for r in beside)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["metrics=planted.vea_psnr"], "metrics=planted.vea_psnr: allowed are planted.vae_psnr; "),
        (["metrics="], "metrics=: allowed are texts that are not empty"),
        (["n=1"], "n=1: allowed are whole numbers from 2"),
        (["n=many"], "n=many: "),
        (["seed=-1"], "seed=-1: allowed are whole numbers from 0"),
        (["device=tpu"], "device=tpu: allowed are auto, cpu, cuda"),
        (["dtype=float16"], "dtype=float16: allowed are float32, bfloat16"),
        (["size=3"], "size=3: unknown key; allowed are metrics, n, "),
        (["verbose"], "verbose: allowed are"),
        (
            ["metrics=planted.null_text_psnr_drop", "n=8", "write=true"],
            "write=true n=8: planted.null_text_psnr_drop is written at its full",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(said) and err.count("\n") == 1


# --- printing and recording ----------------------------------------------------------------------------------


def test_printed_lines_and_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kid = row("planted.b", Estimate(1.2, 0.5, 2.0), unit="×", threshold=1.5, higher_is_better=False)
    lack = row("cifar10.c", function=_lacking)
    assert evaluate.evaluate(evaluate.Options(), [row(), kid, row("planted.d", threshold=None)], "", tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == "planted.a 80.0 % [70.0, 95.0] ≥ 90.0 % fail 0.0 s a note".split()
    assert lines[2].split() == "planted.b 1.20 × [0.50, 2.00] ≤ 1.50 × pass 0.0 s".split()
    assert lines[4] == "1 pass, 1 fail, 1 without a threshold"
    assert evaluate.evaluate(evaluate.Options(), [kid], "", tmp_path) == 0
    assert evaluate.evaluate(evaluate.Options(), [kid, lack], "", tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "cifar10.c                               skipped: data.path=x: not there", "1 pass, 1 skipped",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def _lacking(setting: Setting, n: int) -> Estimate:
    raise UserError("data.path=x: not there")


def test_small_samples_are_no_larger_than_the_full_one() -> None:
    context = {"command": "c", "seed": 0, "machine": "m", "date": "d"}
    counting = row(function=lambda setting, n: Estimate(n, n, n))
    results = [evaluate.measure_metric(counting, evaluate.Options(n=n), context) for n in (None, 8, 100)]
    assert [(r.value, r.n) for r in results] == [(64, 64), (8, 8), (64, 64)]


def test_results_are_merged_by_row_and_say_how_they_came_about(tmp_path: Path) -> None:
    first, second = "planted.vae_psnr", "planted.mask_iou"
    chosen = evaluate.Options(write=True)
    evaluate.evaluate(chosen, [row("planted.of_old")], "long ago", tmp_path)
    evaluate.evaluate(chosen, [row(second), row(first, unit="dB")], "make it", tmp_path)
    evaluate.evaluate(chosen, [row(second, Estimate(math.nan, 0.7, 0.9), threshold=0.5)], "again", tmp_path)
    known = json.loads((tmp_path / "planted.json").read_text())
    assert [(r["metric"], r["command"], r["value"]) for r in known] == [
        (first, "make it", 0.8),
        (second, "again", None),
    ]
    page = (tmp_path / "planted.md").read_text()
    assert "| `planted.vae_psnr` | 0.80 dB | 0.70 … 0.95 | ≥ 0.90 dB | fail | 64 | 0 | a note | 1 |" in page
    assert "| `planted.mask_iou` | undefined | 70.0 … 90.0 | ≥ 50.0 % | fail |" in page
    assert "2. `again`: seed 0, 20" in page and f"torch {torch.__version__}" in page
    assert evaluate.weights_digest("planted") in page and not (tmp_path / "cifar10.md").exists()


@pytest.mark.parametrize("name", ["planted", "planted_bfloat16", "cifar10"])
def test_a_committed_page_shows_the_committed_numbers_of_known_metrics(name: str) -> None:
    results = json.loads((evaluate.RESULTS / f"{name}.json").read_text())
    assert {r["metric"] for r in results} <= {m.name for m in evaluate.METRICS}
    assert (evaluate.RESULTS / f"{name}.md").read_text() == evaluate.format_page(name, results)


def test_bfloat16_is_measured_as_a_gpu_computes_it_and_written_beside(tmp_path: Path) -> None:
    found: list[tuple[object, list[str]]] = []

    def noting(setting: Setting, n: int) -> Estimate:
        found.append((_get_current_dispatch_mode(), metric._overrides(setting, "planted_clean", ())))
        return Estimate(0.8, 0.7, 0.9)

    evaluate.evaluate(evaluate.Options(write=True, device="cpu"), [row(function=noting)], "plain", tmp_path)
    asked = evaluate.Options(write=True, device="cpu", dtype="bfloat16")
    evaluate.evaluate(asked, [row("planted.vae_psnr", function=noting)], "narrow", tmp_path)
    (before, plain), (within, narrow) = found
    assert before is None and isinstance(within, Bfloat16Emulation)
    assert narrow == [*plain, "generator.dtype=bfloat16", "optimizer.autocast=bfloat16"]
    page = (tmp_path / "planted_bfloat16.md").read_text()
    assert page.startswith("# Results: planted_bfloat16\n") and "`narrow`" in page and "bfloat16_emulation.py" in page
    assert "narrow" not in (tmp_path / "planted.md").read_text()


# --- rows ----------------------------------------------------------------------------------------------------


def answer(i: int, success: bool | None, shade: float = 0.5) -> Result:
    """An answer to question i, None where there is none; its picture is of one shade."""
    image = torch.full((3, 4, 4), 0.5)
    name = f"test-{i:05d}"
    edit = CaptionEdit.unchanged("", "")
    problem = CounterfactualProblem(
        name=f"{name}-x",
        seed=i,
        edit=edit,
        load=image.clone,
        image_name=name,
        preserve="background",
        source=0,
        target=1,
    )
    if success is None:
        return Result(problem, None, None, None, None)
    record = {"target": "x", "success": success, "confidence_after": {"x": 0.9 if success else 0.2}}
    return Result(problem, record, torch.full((3, 4, 4), shade), None, None)


SETTING = Setting(0, "cpu", "nowhere")


def test_confidence_counts_missing_answers_as_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [answer(0, True), answer(1, True), answer(2, False), answer(3, None)]
    monkeypatch.setattr(planted_world, "counterfactuals", lambda *_: given)
    found = planted_world.uvce_confident(SETTING, 4, "none")
    assert found.value == 0.5 and found.note == "2 of 4 predicted as the target"


def test_seconds_are_those_of_the_answers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    lasting = [replace(answer(i, True), record={"seconds": seconds}) for i, seconds in enumerate((2.0, 4.0))]
    given = [*lasting, answer(2, None)]
    monkeypatch.setattr(planted_world, "counterfactuals", lambda *_: given)
    assert planted_world.uvce_seconds(SETTING, 3, "none").value == 3.0
    monkeypatch.setattr(planted_world, "counterfactuals", lambda *_: given[2:])
    nothing = planted_world.uvce_seconds(SETTING, 1, "none")
    assert math.isnan(nothing.value) and nothing.note == "0 of 1 problems have a result"


def test_background_is_compared_with_the_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, nowhere = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, 4, 4, dtype=torch.bool)
    data = planted_world.ReconstructedImages(grey, grey, grey + 0.1, nowhere, nowhere)
    given = [answer(0, True, 0.5), answer(1, True, 0.62), answer(2, True, 0.7), answer(3, None)]
    monkeypatch.setattr(planted_world, "reconstructed_images", lambda *_: data)
    monkeypatch.setattr(planted_world, "counterfactuals", lambda *_: given)
    errors = planted_world.background_errors(SETTING, 4, "none")
    assert [own for own, _ in errors] == pytest.approx([0.0, 0.12, 0.2, math.inf], abs=1e-6)
    assert [least for _, least in errors] == pytest.approx([0.1] * 4)
    assert planted_world.uvce_background_preserved(SETTING, 4, "none").value == 0.5
    assert planted_world.uvce_background_error_ratio(SETTING, 4, "none").value == pytest.approx(1.6)


def test_transfer_is_a_difference_over_the_same_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [answer(0, True, 0.2), answer(1, True, 0.2), answer(2, True, 0.8), answer(3, None)]
    pixels = [answer(0, True, 0.2), answer(1, True, 0.8), answer(2, True, 0.8), answer(3, True, 0.8)]
    monkeypatch.setattr(cifar10, "counterfactuals", lambda s, n, b: own if b == "none" else pixels)
    monkeypatch.setattr(cifar10, "predicted_classes", lambda s, images: [int(x < 0.5) for x in images[:, 0, 0, 0]])
    found = cifar10.transfer_gain(SETTING, 4, "pixels")
    assert found.value == 0.25 and found.note == "50.0 % against 25.0 % for pixels"


def test_halves_share_no_picture_and_cover_n() -> None:
    seeds = [over[1] for seed in (0, 1) for over, _ in planted_world.problem_sets(Setting(seed, "cpu", ""), 5)]
    assert seeds == ["seed=0", "seed=1", "seed=2", "seed=3"]
    assert [count for _, count in planted_world.problem_sets(SETTING, 5)] == [3, 2]


def test_renders_have_the_classes_that_are_asked_for() -> None:
    images = planted_world.target_renders(SETTING, [3, 3, 7])
    scenes = planted.sample_scenes(3, planted.split_seed("validation", 0)).with_factors(label=3)
    assert images.shape == (3, 3, 64, 64)
    assert (images[:2] - planted.render(scenes).image[:2]).abs().max() <= 0.5 / 255 + 1e-6


def test_samples_depend_on_their_own_seed_alone(make_generator: Callable[..., LatentDiffusion]) -> None:
    generator = make_generator()
    prompts, seeds = (
        ["a photograph of a viaduct", "a picture of a lifeboat on sand", "an image of a partridge"],
        [3, 4, 5],
    )
    together, apart = (sample_images(generator, prompts, seeds, batch) for batch in (3, 1))
    assert together.shape == (3, 3, 16, 16) and (together - apart).abs().max() < 1.5 / 255
    assert not torch.equal(together[0], sample_images(generator, prompts[:1], [9])[0])


def test_rows_without_their_data_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CIFAR10", "CIFAR10_RESNETS"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setattr(metric, "_networks", {})
    monkeypatch.setattr(metric, "build", lambda config, **given: build(config, **{"generator": None, **given}))
    assert evaluate.main(["metrics=cifar10.vae,cifar10.uvce_target_rate", "n=2", f"outputs={tmp_path}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all("skipped: " in line and "absent" in line for line in lines[1:-1])
    assert lines[-1] == "2 skipped" and not (tmp_path / "uvce").exists()


# --- all of it, on tiny models -------------------------------------------------------------------------------


class TinyOracle:
    """Reads nothing true out of a picture, but always the same."""

    heads = {"class": planted.CLASSES, "background": planted.BACKGROUNDS}  # noqa: RUF012

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        return {name: self.features(images)[:, : len(names)] for name, names in self.heads.items()}

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def tiny_world(
    monkeypatch: pytest.MonkeyPatch, make_generator: Callable[..., LatentDiffusion], tiny_classifier: Classifier
) -> None:
    """The planted world with a tiny generator, classifier and oracles, and one step of optimisation."""
    generator, plain = make_generator(steps=2), metric._overrides

    def tiny(config: dict[str, Any]) -> Any:
        return build(config, generator=generator, classifier=tiny_classifier)

    def quick(setting: Setting, classifier: str, more: Any) -> list[str]:
        return [*plain(setting, classifier, more), "optimizer.steps=1", "augment.crops=2"]

    monkeypatch.setattr(metric, "_overrides", quick)
    monkeypatch.setattr(metric, "build_parts", tiny)
    monkeypatch.setattr(oracles, "oracle", lambda setting, name: TinyOracle())
    monkeypatch.setattr(estimates, "NUM_RESAMPLES", 50)  # of intervals, which are tested with the estimates


def test_all_planted_rows_by_way_of_the_runner(
    tiny_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.evaluate(evaluate.Options(n=2, outputs=str(tmp_path)), planted_world.METRICS, "") in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [r.name for r in planted_world.METRICS]
    folders = list((tmp_path / "uvce" / "planted_ddim-planted_clean").iterdir())
    records = [json.loads(text) for f in folders for text in (f / "results.jsonl").read_text().splitlines()]
    assert len(folders) == 8 and len(records) == 8
    assert {r["images"]["result"].split("/")[1] for r in records} == {r["name"] for r in records}


def test_runs_share_networks_of_equal_settings_and_no_others(tmp_path: Path) -> None:
    """The generator of a run is the one that its configuration says, wherever an experiment sets it."""
    setting = Setting(0, "cpu", str(tmp_path))
    plain = metric.domain_parts(setting, "planted_weak")
    other, config, _ = metric.prepare_problems(
        setting, "planted_weak", ("experiment=planted/fig25", "data.count=40"), 1
    )
    again, _, _ = metric.prepare_problems(setting, "planted_weak", ("task.mode=error", "data.count=40"), 1)
    assert again.generator is plain.generator and again.classifier is plain.classifier is other.classifier
    assert config["generator"]["steps"] == len(other.diffusion) == 10 != len(plain.diffusion)


def test_answered_questions_are_read_and_not_asked_again(
    tiny_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, overrides = Setting(0, "cpu", str(tmp_path)), ("task.baseline=start_only",)
    first = metric.compute_results(setting, "planted_clean", overrides, 2)
    metric.compute_results.cache_clear()
    monkeypatch.setattr("classifier_lens.runner.run.solve_batch", lambda *_: pytest.fail("solved again"))
    second = metric.compute_results(setting, "planted_clean", overrides, 2)
    assert [a.record for a in first] == [a.record for a in second]
    assert all(a.best is not None and a.best.shape == (3, 16, 16) for a in second)
    assert [planted_world.image_index(a.problem.name) for a in second] == [0, 1]


def test_problems_are_posed_once(tiny_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are searched for, in pictures that take longer to draw than the answers."""
    asked, plain = [], Uvce.problems

    def counted(task: Uvce, world: TaskInputs) -> tuple[list[CounterfactualProblem], int | None]:
        asked.append(task)
        return plain(task, world)

    monkeypatch.setattr(Uvce, "problems", counted)
    given = metric.compute_results(Setting(0, "cpu", str(tmp_path)), "planted_clean", ("task.baseline=start_only",), 2)
    assert len(asked) == 1 and len(given) == 2


def test_a_stopped_run_ends_the_evaluation(tiny_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "run", lambda parts, config: 143)
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["metrics=planted.uvce_confidence", "n=2", f"outputs={tmp_path}"])
    assert stop.value.code == 143


def test_unanswered_questions_are_no_result(tiny_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "run", lambda parts, config: 1)
    with pytest.raises(UserError, match="2 of 2 problems have no result"):
        metric.compute_results(Setting(0, "cpu", str(tmp_path)), "planted_clean", (), 2)


@pytest.mark.slow
def test_two_cheap_rows_on_the_shipped_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = evaluate.main(["metrics=planted.vae_psnr,planted.prompt_class", "n=2", f"outputs={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    assert code == int("fail" in lines[-1]) and len(lines) == 4 and "skipped" not in lines[-1]


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": [1.5, math.nan], "b": (math.inf, 2, "x"), "c": None}
    assert evaluate.json_safe(value) == {"a": [1.5, None], "b": [None, 2, "x"], "c": None}


def test_what_is_predicted_as_asked_counts_whatever_it_was_before() -> None:
    """A success needs a change; a row of predictions does not, and says how many there were before."""
    records = [{"target": "x", "predicted_before": b, "predicted_after": a} for b, a in ("yx", "xx", "yy", "xy")]
    given = [Result(None, record, None, None, None) for record in (*records, None)]
    estimate = target_prediction_rate(given)
    assert estimate.value == 0.4 and estimate.note == "2 of 5 originals already"
