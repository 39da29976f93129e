"""What the benchmark times runs to its end on the tiny generator, on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from classifier_lens.scripts.bench import bench, command_measures, plain_loop
from classifier_lens.scripts.bench.benchmarked_models import BenchmarkedModel, stable_diffusion
from classifier_lens.scripts.bench.explanation_timing import (
    time_explanation,
    time_plain_explanation,
    time_plain_prompt,
    time_prompt,
)
from classifier_lens.scripts.bench.result_line import ResultLine
from classifier_lens.scripts.bench.step_timing import (
    prepare_step,
    time_networks,
    time_step,
    time_step_parts,
    unet_timer,
)
from classifier_lens.scripts.bench.timed_run import prepare_run
from classifier_lens.scripts.weights.random_pipeline import ModelSize
from tests.cli import Cli

PARTS = {"inversion", "initialization", "search", "step", "rendering", "all"}


def words(cli: Cli, *more: str) -> list[str]:
    return [word for word in cli.arguments(*more) if not word.startswith(("outputs=", "logger="))]


@pytest.mark.parametrize("task", [("task=uvce",), ("task=disagreement", "classifier@rival=planted_clean")])
def test_both_sides_of_an_explanation(task: tuple[str, ...], cli: Cli) -> None:
    two, one = (prepare_run(words(cli, *task), batch) for batch in (2, 1))
    ours, theirs = time_explanation(two), time_plain_explanation(one)
    assert set(ours) == set(theirs) == PARTS
    for found in (ours, theirs):
        assert found["step"] > 0 and found["rendering"] > 0 and (found["inversion"] > 0) == (task[0] == "task=uvce")
        once = sum(value for name, value in found.items() if name not in ("step", "all"))
        assert found["all"] == pytest.approx(once + two.num_steps * found["step"])


def test_a_step_and_its_networks(cli: Cli) -> None:
    r = prepare_step(prepare_run(words(cli, "task=uvce"), 1))
    plain = plain_loop.plain_model(r.run.parts.diffusion)
    for networks in (r.run.parts.diffusion.networks, plain.networks):
        assert 0 < time_networks(r, networks)["unet"] < time_networks(r, networks)["all"] + 1
    assert time_step(r)["all"] > 0 and time_step(r, plain)["all"] > 0
    assert set(time_step_parts(r)) == {"chain", "decode", "classify", "backward"}


def test_both_sides_of_a_prompt(cli: Cli) -> None:
    asked = words(
        cli,
        "task=diffexplainer_class",
        f"generator.unet={cli.student}",
        "parametrization.num_initializations=3",
        "parametrization.images_per_step=2",
        "parametrization.validation_images=2",
        "parametrization.images_per_result=2",
        "task.images_per_prompt=1",
        "training.count=20",
    )
    two, one = (prepare_run(asked, batch) for batch in (2, 1))
    for found in (time_prompt(two), time_plain_prompt(one)):
        assert set(found) == {"search", "step", "rendering", "all"} and min(found.values()) > 0
    assert not one.parts.diffusion.networks.unet.is_gradient_checkpointing


def test_a_step_of_prompts_with_each_approximation(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (
        "parametrization.num_initializations=1",
        "parametrization.images_per_step=1",
        "parametrization.validation_images=1",
        "task.images_per_prompt=1",
        "training.count=20",
    )
    monkeypatch.setattr(bench, "PROMPTS", words(cli, "task=diffexplainer_class", "sampler=ddim", *few))
    monkeypatch.setattr(
        bench, "APPROXIMATIONS", ("generator.guidance_interval=[0.0,0.5]", "generator.backprop_steps=1")
    )
    lines = bench.prompt_variants(1)
    assert [line.name.strip() for line in lines] == ["default", *bench.APPROXIMATIONS]
    assert lines[0].value == 1 and all(line.value > 0 for line in lines)


@pytest.mark.slow
def test_what_logging_and_resuming_add(cli: Cli) -> None:
    logging, resuming = command_measures.logging_and_resuming(
        words(cli, "limit=2", "batch=2", "logger=none", "optimizer.steps=40")
    )
    assert 0 < logging.value < 100 and "save_result" in logging.detail
    assert 0 < resuming.value < 100 and all(part in resuming.detail for part in ("initialize", "load", "save"))


def test_a_step_with_other_heads(cli: Cli) -> None:
    assert all(unet_timer(cli.pipeline, heads, 2)()["all"] > 0 for heads in (1, 2))


@pytest.mark.slow
def test_a_step_with_more_heads_in_the_planted_shape() -> None:
    found = {line.name.strip(): line.value for line in bench.attention_heads(1)}
    assert set(found) == {f"{n} heads" for n in (4, 2, 8, 16)}
    assert found["4 heads"] == 1 and min(found.values()) > 0


@pytest.mark.slow
def test_the_peak_of_a_step_in_a_process_of_its_own(cli: Cli) -> None:
    assert 0 < command_measures.peak_step_memory(words(cli, "task=uvce"), 1) < 2**30


LINES = {
    "uvce batch 2", "uvce batch 1", "uvce lcm-4 batch 2", "inversion batch 2", "peak, batch 2", "peak, batch 1",
    "multiply-adds of a uvce step", "utilization of a uvce step",
}  # fmt: skip


def measured(subject: BenchmarkedModel) -> dict[str, ResultLine]:
    """All lines of a model's counterfactuals, by name."""
    lines = [
        *bench.counterfactual_speed(1, subject),
        *bench.mac_counts(1, subject),
        *bench.peak_memory_by_batch(subject),
        *bench.variants(1, subject),
    ]
    shares = bench.step_profile(1, subject)
    assert sum(line.value for line in shares) == pytest.approx(100)
    by_name = {line.name.strip(): line for line in lines}
    assert set(by_name) >= LINES | set(subject.variants)
    assert {name for name, line in by_name.items() if line.threshold} == {"uvce batch 2", "utilization of a uvce step"}
    assert by_name["inversion batch 2"].value > 0 and by_name["multiply-adds of a uvce step"].value > 0
    return by_name


def test_the_measures_of_a_model(cli: Cli) -> None:
    ddim = words(cli, "task=uvce")
    lcm = words(cli, "task=uvce", "sampler=lcm", f"generator.unet={cli.student}")
    variants = ("generator.channels_last=true",)
    subject = BenchmarkedModel(tuple(ddim), tuple(lcm), (2, 1), variants, {"uvce batch 2": 15.0}, 60.0)
    assert measured(subject)["uvce batch 2"].threshold == 15


@pytest.mark.slow
def test_the_measures_of_stable_diffusion_at_a_small_size() -> None:
    """In float32: bfloat16 takes minutes on processors without instructions for it."""
    size = ModelSize(
        (32, 32, 64, 64), (32,) * 4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    small = (
        "classifier.name=test_vit",
        "classifier.revision=null",
        "generator.resolution=64",
        "generator.steps=2",
        "generator.attention_maps.resolution=8",
        "generator.mask_postprocess.latents.blur_sigma=3",
        "generator.mask_postprocess.pixels.blur_sigma=3",
        "augment.crops=1",
    )
    with stable_diffusion(size, (2, 1), "float32", *small, inner_steps=1) as subject:
        lines = measured(replace(subject, variants=subject.variants[:2]))
    assert lines["uvce batch 2"].threshold == 15 and {"optimizer.autocast=null", "generator.channels_last=true"} <= set(
        lines
    )
