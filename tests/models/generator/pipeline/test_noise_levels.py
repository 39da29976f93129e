"""The noise levels and times of a pipeline's scheduler, beside diffusers' own."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from classifier_lens.models.generator import noise_schedule
from classifier_lens.models.generator.guidance import check_guidance
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.pipeline.noise_levels import check_nonzero_snr, read_scheduler, to_ddim_scheduler
from classifier_lens.models.generator.samplers import NullTextInversion, ddim, lcm
from classifier_lens.runner.types import UserError

PLAIN = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}, {"steps_offset": 0}, {"steps_offset": 7},
    {"set_alpha_to_one": True}, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"prediction_type": "v_prediction", "timestep_spacing": "linspace", "rescale_betas_zero_snr": True},
    {"num_train_timesteps": 500}, {"trained_betas": [0.001 + 0.00002 * i for i in range(1000)]},
]  # fmt: skip


def networks(
    pipe: StableDiffusionPipeline, folder: Path, config: dict[str, Any], kind: Any = DDIMScheduler
) -> Networks:
    """The tiny pipeline with a scheduler that was written to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    written = {"_class_name": kind.__name__, "_diffusers_version": "0.42.1", **config}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    own = StableDiffusionPipeline(**{**pipe.components, "scheduler": None}, requires_safety_checker=False)
    own.register_modules(scheduler=read_scheduler("generator.path=x", folder))
    return Networks(own, "tiny")


@pytest.mark.parametrize("count", [1, 3, 4, 20, 50])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_times_and_levels_are_those_of_diffusers(
    change: dict[str, Any], count: int, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """And so are its steps of what the UNet predicts, also where nothing but noise is left at first."""
    config = {**PLAIN, **change}
    theirs = DDIMScheduler(**config)
    theirs.set_timesteps(count)
    ours = ddim(networks(tiny_pipe, tmp_path, config), count, 3.0, None, [0.0, 1.0]).schedule
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod[theirs.timesteps])
    assert ours.v_prediction == (config.get("prediction_type") == "v_prediction")
    z, predicted = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(theirs.timesteps):
        moved, x0 = noise_schedule.ddim_step(
            z, predicted, ours.alphas_cumprod[i], ours.alphas_cumprod_next[i], ours.v_prediction
        )
        wanted = theirs.step(predicted, t, z)
        assert moved.isfinite().all() and x0.isfinite().all()
        torch.testing.assert_close(moved, wanted.prev_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x0, wanted.pred_original_sample, rtol=1e-4, atol=1e-4)


def test_spacings_by_hand() -> None:
    assert noise_schedule.leading(1000, 4, 1).tolist() == [751, 501, 251, 1]
    assert noise_schedule.trailing(1000, 4, 1).tolist() == [999, 749, 499, 249]
    assert noise_schedule.linspace(1000, 4, 1).tolist() == [999, 666, 333, 0]


@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler])
def test_other_solvers_of_the_same_levels(kind: Any) -> None:
    """A pipeline's scheduler may be any: its levels count, and what it leaves out it leaves to its own class."""
    given = {name: value for name, value in PLAIN.items() if name.startswith("beta")}
    assert torch.equal(to_ddim_scheduler("x", kind(**given)).alphas_cumprod, DDIMScheduler(**PLAIN).alphas_cumprod)
    assert torch.allclose(to_ddim_scheduler("x", kind()).alphas_cumprod, kind().alphas_cumprod)
    assert to_ddim_scheduler("x", kind(**given, timestep_spacing="trailing")).config.timestep_spacing == "trailing"
    assert to_ddim_scheduler("x", kind(**given)).config.timestep_spacing == "leading"


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ({"prediction_type": "sample"}, DDIMScheduler, "prediction_type=sample .*epsilon, v_prediction"),
        ({"clip_sample": True}, DDIMScheduler, "clip_sample=true"),
        ({"thresholding": True}, DDIMScheduler, "thresholding=true"),
        ({"timestep_spacing": "karras"}, DDIMScheduler, "timestep_spacing=karras .*leading, trailing, linspace"),
        ({"beta_schedule": "sqrt"}, DDIMScheduler, "sqrt is not implemented"),
        ({"trained_betas": [0.1, 0.2]}, DDIMScheduler, "trained_betas has 2 values .*num_train_timesteps=1000"),
        ({"beta_end": 3.0}, DDIMScheduler, "betas"),
        ({"beta_start": -0.5}, DDIMScheduler, "betas"),
        ({}, FlowMatchEulerDiscreteScheduler, "FlowMatchEulerDiscreteScheduler, without noise levels"),
    ],
)
def test_what_has_no_steps_here_is_one_line(
    config: dict[str, Any], kind: Any, said: str, tiny_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    plain = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000} if kind is DDIMScheduler else {}
    with pytest.raises(UserError, match=said) as caught:
        networks(tiny_pipe, tmp_path, {**plain, **config}, kind)
    assert str(caught.value).startswith("generator.path=x: ") and "\n" not in str(caught.value)


def test_a_scheduler_of_unknown_code_or_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    for text in (
        '{"_class_name": "MyScheduler"}',
        "{}",
        "[]",
        "no json",
        '{"_class_name": "DDIMScheduler", "beta_start": "x"}',
    ):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
        with pytest.raises(UserError, match=r"^generator.path=x: its scheduler cannot be read") as caught:
            read_scheduler("generator.path=x", tmp_path)
        assert "\n" not in str(caught.value)


def test_what_a_file_leaves_out_is_not_asked_for(tmp_path: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    """DDIM's own defaults would cut x0-predictions, which no pipeline of latents does."""
    config = {name: value for name, value in PLAIN.items() if name != "clip_sample"}
    assert ddim(networks(tiny_pipe, tmp_path, config), 20, 3.0, None, [0.0, 1.0]).schedule.timesteps[0] == 951


NO_SIGNAL = {**PLAIN, "rescale_betas_zero_snr": True}


def test_no_step_goes_by_noise_where_there_is_nothing_else(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """With a zero terminal signal-to-noise ratio x0 = (z − √(1 − ᾱ) ε) / √ᾱ is 0 / 0 at the last training step."""
    leading = ddim(networks(tiny_pipe, tmp_path, NO_SIGNAL), 20, 3.0, None, [0.0, 1.0]).schedule
    assert leading.timesteps[0] == 951 and leading.zero_snr_timestep is None
    for spacing in ("trailing", "linspace"):
        own = networks(tiny_pipe, tmp_path, {**NO_SIGNAL, "timestep_spacing": spacing})
        with pytest.raises(UserError, match=r"no signal left at time 999 \(rescale_betas_zero_snr.*v_prediction"):
            ddim(own, 20, 3.0, None, [0.0, 1.0])
    with pytest.raises(UserError, match=r"no signal left at time 999"):
        lcm(networks(tiny_pipe, tmp_path, NO_SIGNAL), 4, 1.0, None, [0.0, 1.0], 50)
    check_nonzero_snr(noise_schedule.ddim_schedule(DDIMScheduler(**PLAIN).alphas_cumprod, 20))


def test_a_chain_from_nothing_but_noise(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Where v is predicted drawn images, inversions and the gradient to the start are finite; of the start alone a
    first x0-prediction of ᾱ = 0 knows what the text says."""
    config = {**NO_SIGNAL, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    own = networks(tiny_pipe, tmp_path, config)
    text, null = own.embed(["a red crab"]), own.embed([""])
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sampler = ddim(own, 4, 3.0, NullTextInversion(0.01, 2, 1e-5, 2e-5, False), [0.0, 1.0])
    predicted = sampler.predict(own, z, {"text": text, "null": null}, 0, None)
    following, x0 = sampler.advance(z, predicted, torch.zeros_like(z), 0)
    assert sampler.schedule.zero_snr_timestep == 999 and torch.equal(x0, -predicted)
    assert torch.autograd.grad(following.sum(), z)[0].isfinite().all()
    found = sampler.invert(own, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), ["a crab"], [0])
    assert all(values.isfinite().all() for values in found.values()) and found["null"].shape[1] == 4
    consistent = lcm(own, 2, 1.0, None, [0.0, 1.0], 50)
    assert all(v.isfinite().all() for v in consistent.invert(own, z.detach(), ["a crab"], [0]).values())


@pytest.mark.parametrize("velocity", [False, True])
def test_a_shift_of_the_noise_is_one_of_the_noise(velocity: bool) -> None:
    schedule = replace(noise_schedule.ddim_schedule(DDIMScheduler(**PLAIN).alphas_cumprod, 20), v_prediction=velocity)
    z, predicted, noise = torch.randn(3, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    shifted = schedule.shift_noise(predicted, noise, 3)
    own, other = (noise_schedule.predict_eps(z, p, schedule.alphas_cumprod[3], velocity) for p in (predicted, shifted))
    torch.testing.assert_close(other - own, noise)


def test_guidance_by_the_noise_is_refused_where_there_is_nothing_else() -> None:
    alphas = DDIMScheduler(**NO_SIGNAL).alphas_cumprod
    for spacing, told in (("leading", None), ("trailing", 999)):
        schedule = replace(noise_schedule.ddim_schedule(alphas, 4, spacing=spacing), v_prediction=True)
        assert schedule.zero_snr_timestep == told
        generator: Any = SimpleNamespace(sampler=SimpleNamespace(schedule=schedule))
        with (
            nullcontext()
            if told is None
            else pytest.raises(UserError, match="^task.baseline=classifier_guidance: .* time 999")
        ):
            check_guidance(generator)


def test_times_beyond_the_trained_ones_are_refused() -> None:
    alphas = DDIMScheduler(**PLAIN).alphas_cumprod
    with pytest.raises(UserError, match=r"generator.steps=1000: begins at time 1000 .*trained are 0 … 999"):
        noise_schedule.ddim_schedule(alphas, 1000)
    assert noise_schedule.ddim_schedule(alphas, 1000, offset=0).timesteps[0] == 999


def test_a_recipe_knows_its_times(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Equal weights with another schedule make other pictures: nothing that was kept of one is the other's."""
    settings = {
        repr(ddim(networks(tiny_pipe, tmp_path, {**PLAIN, **change}), 20, 3.0, None, [0.0, 1.0]).fingerprint)
        for change in CHANGES[:9]
    }
    assert len(settings) == 9
