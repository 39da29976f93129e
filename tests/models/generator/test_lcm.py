"""Laws of consistency sampling, beside diffusers' own scheduler and pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

from classifier_lens.models.generator import noise_schedule
from classifier_lens.models.generator.inversion import edit_friendly_inversion
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.samplers import NullTextInversion, lcm
from classifier_lens.runner.types import Problem, UserError

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[Problem]]
PROMPTS = ["a photograph of a viaduct", "a picture of a lifeboat on sand"]


def scheduler(**settings: Any) -> LCMScheduler:
    return LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        **settings,
    )  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [*range(1, 9), 17, 25, 50])
def test_the_times_are_those_of_diffusers(count: int) -> None:
    theirs = scheduler()
    theirs.set_timesteps(count, original_inference_steps=50)
    ours = noise_schedule.lcm_schedule(theirs.alphas_cumprod, count)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() and len(ours) == count
    assert torch.equal(ours.alphas_cumprod_next[:-1], ours.alphas_cumprod[1:]) and ours.alphas_cumprod_next[-1] == 1


def test_four_steps_by_hand_and_those_of_a_student_of_four_times() -> None:
    alphas = scheduler().alphas_cumprod
    assert noise_schedule.lcm_schedule(alphas, 4).timesteps.tolist() == [999, 759, 499, 259]
    assert noise_schedule.lcm_schedule(alphas, 4, 4).timesteps.tolist() == [999, 749, 499, 249]
    assert noise_schedule.lcm_schedule(alphas, 1, 4).timesteps.tolist() == [999]


@pytest.mark.parametrize(
    ("count", "original", "said"),
    [(0, 50, "steps=0: allowed are 1 … 50"), (5, 4, "steps=5: allowed are 1 … 4"), (1, 1001, "1 … 1000")],
)
def test_times_that_do_not_exist_are_refused(count: int, original: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        noise_schedule.lcm_schedule(scheduler().alphas_cumprod, count, original)


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_step_equals_diffusers_for_equal_noise(count: int, settings: dict[str, Any]) -> None:
    """Also of v, from nothing but noise."""
    theirs, (z, predicted), velocity = scheduler(**settings), draw(2, 3, 4, 8, 8), bool(settings)
    theirs.set_timesteps(count, original_inference_steps=50)
    ours = noise_schedule.lcm_schedule(theirs.alphas_cumprod, count)
    for i, t in enumerate(theirs.timesteps):
        # The scheduler draws its noise from a generator: the same numbers again.
        step = theirs.step(predicted, t, z, generator=torch.Generator().manual_seed(i))
        noise = draw(*z.shape, seed=i)
        following, x0 = noise_schedule.lcm_step(
            z, predicted, noise, t, ours.alphas_cumprod[i], ours.alphas_cumprod_next[i], velocity
        )
        torch.testing.assert_close(following, step.prev_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x0, step.denoised, rtol=1e-5, atol=1e-5)


def test_a_consistency_function_ends_where_it_starts_at_time_zero() -> None:
    z, eps = draw(2, 1, 4, 8, 8)
    assert torch.equal(noise_schedule.consistency_function(z, eps, 0, 0.5), z)
    torch.testing.assert_close(
        noise_schedule.consistency_function(z, eps, 999, 0.5),
        noise_schedule.predict_x0(z, eps, 0.5),
        rtol=1e-6,
        atol=1e-5,
    )


def test_the_last_steps_noise_has_no_effect() -> None:
    z, eps, one, other = draw(4, 1, 4, 8, 8)
    first, second = (noise_schedule.lcm_step(z, eps, noise, 259, 0.8, 1.0)[0] for noise in (one, other))
    assert torch.equal(first, second)


def test_the_guidance_is_told_as_diffusers_tells_it() -> None:
    scales = torch.tensor([1.0, 3.0, 8.5])
    told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, embedding_dim=64)
    torch.testing.assert_close(noise_schedule.guidance_embedding(scales, 64), told, rtol=0, atol=1e-3)


def test_a_chain_equals_diffusers_pipeline(tiny_lcm_pipe: StableDiffusionPipeline, make_generator: Make) -> None:
    """The same start latents, and the noise that the scheduler draws on its way."""
    parts = {k: v for k, v in tiny_lcm_pipe.components.items() if k != "scheduler"}
    theirs = LatentConsistencyModelPipeline(**parts, scheduler=scheduler(), requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    generator = make_generator("lcm", steps=4, guidance_scale=5.0)
    latent, drawn = draw(2, 4, 8, 8), torch.Generator().manual_seed(7)
    noise = [torch.randn(2, 4, 8, 8, generator=drawn) for _ in range(3)]
    expected = theirs(
        PROMPTS, height=16, width=16, num_inference_steps=4, guidance_scale=5.0, latents=latent, output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    course = {"latent": latent, "noise": torch.stack([*noise, torch.zeros_like(latent)], dim=1)}
    embeddings = generator.step_embeddings(generator.networks.embed(PROMPTS), course)
    with torch.no_grad():
        image = generator.networks.decode(generator.denoise(latent, embeddings, course["noise"])[-1])
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)


# --- inversion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_an_inversion_returns_to_the_picture(count: int, make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator("lcm", steps=count), make_problems(2)
    images = torch.stack([p.image for p in problems if p.image is not None])
    course = generator.invert(images, PROMPTS, [1, 2])
    with torch.no_grad():
        encoded = generator.networks.encode(images)
        reconstructed = generator.networks.decode(encoded)
    x0 = generator.record_attention(course, generator.networks.embed(PROMPTS), 0)[2]
    # The last offset brings all but its own rounding back, also where one step alone divides by √ᾱ_999 = 0.07.
    torch.testing.assert_close(x0, encoded, rtol=0, atol=5e-6)
    torch.testing.assert_close(generator.networks.decode(x0), reconstructed, rtol=0, atol=5e-6)


def test_an_inversion_returns_in_half_precision_too(make_generator: Make, make_problems: Problems) -> None:
    """A latent that differs in its last digit may round to another number there, and lead elsewhere."""
    generator, problems = make_generator("lcm", steps=8), make_problems(16)
    images = torch.stack([p.image for p in problems if p.image is not None])
    prompts = [p.edit.source for p in problems]
    with torch.no_grad():
        encoded = generator.networks.encode(images)
    try:
        generator.networks.unet.to(torch.bfloat16)
        course = generator.invert(images, prompts, range(16))
        x0 = generator.record_attention(course, generator.networks.embed(prompts), 0)[2]
    finally:
        generator.networks.unet.float()
    torch.testing.assert_close(x0, encoded, rtol=0, atol=5e-6)


def test_another_prompt_does_not_return(make_generator: Make, make_problems: Problems) -> None:
    generator, problem = make_generator("lcm"), make_problems(1)[0]
    assert problem.image is not None
    course = generator.invert(problem.image[None], PROMPTS[:1], [1])
    other = generator.record_attention(course, generator.networks.embed(PROMPTS[1:]), 0)[2]
    with torch.no_grad():
        assert (other - generator.networks.encode(problem.image[None])).abs().max() > 1e-3


def test_the_latents_of_an_inversion_are_independently_noised_pictures() -> None:
    """Of a network that predicts nothing: what each step has to add is known by hand."""
    schedule = noise_schedule.lcm_schedule(scheduler().alphas_cumprod, 3)
    z0, noise = draw(1, 2, 2, 2), draw(1, 3, 2, 2, 2, seed=1)
    latent, constants = edit_friendly_inversion(lambda z, i: torch.zeros_like(z), z0, noise, schedule)
    a = schedule.alphas_cumprod
    torch.testing.assert_close(latent, a[0].sqrt() * z0 + (1 - a[0]).sqrt() * noise[:, 0])
    for i in (1, 2):
        torch.testing.assert_close(constants[:, i - 1], (a[i] / (1 - a[i])).sqrt() * z0 + noise[:, i])
    assert torch.equal(constants[:, 2], z0)


def test_inversions_differ_by_their_seed(make_generator: Make, make_problems: Problems) -> None:
    generator, problem = make_generator("lcm"), make_problems(1)[0]
    assert problem.image is not None
    images = problem.image[None].expand(3, -1, -1, -1)
    course = generator.invert(images, PROMPTS[:1] * 3, [1, 1, 2])
    assert torch.allclose(course["noise"][0], course["noise"][1], atol=1e-5)
    assert not torch.allclose(course["noise"][0], course["noise"][2], atol=0.1)


# --- one branch --------------------------------------------------------------------------------------------------


def test_every_step_is_one_row_of_the_network(make_generator: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {}
    for name in ("ddim", "lcm"):
        generator, seen = make_generator(name), list[int]()
        forward = generator.networks.unet.forward
        monkeypatch.setattr(
            generator.networks.unet,
            "forward",
            lambda z, *a, seen=seen, forward=forward, **k: (seen.append(len(z)), forward(z, *a, **k))[1],
        )
        generator.sample(PROMPTS, [1, 2])
        rows[name] = seen
    assert rows == {"ddim": [4] * 4, "lcm": [2] * 4}


def test_a_drawn_chain_starts_where_ddim_starts_and_has_noise_of_its_own(make_generator: Make) -> None:
    generator = make_generator("lcm")
    drawn = generator.sampler.sample_inputs(generator.networks, [3, 4], 8)
    assert torch.equal(drawn["latent"], generator.networks.sample_noise([3, 4], 8, 1)[:, 0])
    assert drawn["noise"].shape == (2, 4, 4, 8, 8) and not drawn["noise"][:, -1].any()
    levels = torch.cat([drawn["latent"][:, None], drawn["noise"][:, :-1]], dim=1).flatten(0, 1)
    assert len({tuple(level.flatten().tolist()) for level in levels}) == 8


def test_the_scale_that_is_told_matters_and_is_part_of_the_recipe(make_generator: Make) -> None:
    low, high = (make_generator("lcm", guidance_scale=w) for w in (1.0, 6.0))
    assert not torch.allclose(low.sample(PROMPTS, [1, 2]), high.sample(PROMPTS, [1, 2]), atol=1e-4)
    assert low.fingerprint != high.fingerprint


def test_settings_without_effect_are_refused(
    tiny_pipe: StableDiffusionPipeline, tiny_lcm_pipe: StableDiffusionPipeline
) -> None:
    untold = Networks(tiny_pipe, "x")
    assert lcm(untold, 4, 1.0, None, [0.0, 1.0], 50).guidance_scale is None
    with pytest.raises(UserError, match=r"guidance_scale=3.0: this UNet has no guidance scale"):
        lcm(untold, 4, 3.0, None, [0.0, 1.0], 50)
    with pytest.raises(UserError, match="null_text"):
        lcm(Networks(tiny_lcm_pipe, "x"), 4, 3.0, NullTextInversion(0.01, 3, 1e-5, 2e-5, False), [0.0, 1.0], 50)


def test_a_folders_unet_takes_the_place_of_the_pipelines_own(
    tiny_folder: Path, tiny_lcm_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    from classifier_lens.models.generator.pipeline.networks import load_networks

    tiny_lcm_pipe.unet.save_pretrained(tmp_path / "student" / "unet")
    settings: dict[str, Any] = {
        "lora": None,
        "revision": None,
        "variant": None,
        "dtype": "float32",
        "device": "cpu",
        "download_hint": "get them",
    }
    own = load_networks(str(tiny_folder), None, **settings)
    other = load_networks(str(tiny_folder), str(tmp_path / "student"), **settings)
    assert other.has_guidance_embedding and not own.has_guidance_embedding and own.digest != other.digest
    for name, value in other.unet.state_dict().items():
        assert torch.equal(value, tiny_lcm_pipe.unet.state_dict()[name]), name
    with pytest.raises(UserError, match=r"generator.unet=\S+nowhere: no weights .*get them"):
        load_networks(str(tiny_folder), str(tmp_path / "nowhere"), **settings)
