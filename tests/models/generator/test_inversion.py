"""Inversion on predictors whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from classifier_lens.models.generator.inversion import ddim_invert, null_text_inversion
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.noise_schedule import (
    NoiseSchedule,
    classifier_free_guidance,
    ddim_schedule,
    ddim_step,
)
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import Problem
from tests.conftest import contexts_of, initialize

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def schedule(steps: int) -> NoiseSchedule:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    found = ddim_schedule(scheduler.alphas_cumprod.double(), steps)
    return NoiseSchedule(found.timesteps, found.alphas_cumprod, found.alphas_cumprod_next)


def sample(predict: Predict, z: Tensor, text: Tensor, null: Tensor, plan: NoiseSchedule, w: float) -> Tensor:
    for i in range(len(plan)):
        t = plan.timesteps[i]
        eps = classifier_free_guidance(predict(z, t, null[:, i]), predict(z, t, text), w)
        z, _ = ddim_step(z, eps, plan.alphas_cumprod[i], plan.alphas_cumprod_next[i])
    return z


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_text(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Noise that depends on text and time alone: inversion then has no error."""
    return text.mean(dim=(1, 2))[:, None, None, None] * (t / 1000) * torch.ones_like(z)


def linear(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Noise linear in latent and text."""
    return 0.2 * z + from_text(z, t, text)


def test_sampling_after_inversion_returns_to_the_picture() -> None:
    z0, text, plan = draw(2, 4, 3, 3), draw(2, 5, 6, seed=1), schedule(20)
    trajectory = ddim_invert(from_text, z0, text, plan)
    assert trajectory.shape == (2, 21, 4, 3, 3) and torch.equal(trajectory[:, -1], z0)
    back = sample(from_text, trajectory[:, 0], text, text[:, None].expand(-1, 20, -1, -1), plan, 1.0)
    torch.testing.assert_close(back, z0)


def test_the_error_of_a_linear_predictor_falls_with_the_number_of_steps() -> None:
    z0, text = draw(1, 4, 3, 3), draw(1, 5, 6, seed=1)

    def error(steps: int) -> float:
        plan = schedule(steps)
        start = ddim_invert(linear, z0, text, plan)[:, 0]
        back = sample(linear, start, text, text[:, None].expand(-1, steps, -1, -1), plan, 1.0)
        return (back - z0).norm().item() / z0.norm().item()

    errors = [error(steps) for steps in (10, 40, 160)]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2] > 0


def test_every_step_of_an_inversion_is_a_ddim_step_back() -> None:
    z0, text, plan = draw(1, 4, 2, 2), draw(1, 5, 6, seed=1), schedule(10)
    trajectory = ddim_invert(linear, z0, text, plan)
    for i in range(10):
        clean, noisy = trajectory[:, i + 1], trajectory[:, i]
        eps = linear(clean, plan.timesteps[i], text)
        torch.testing.assert_close(ddim_step(noisy, eps, plan.alphas_cumprod[i], plan.alphas_cumprod_next[i])[0], clean)


def test_null_text_lands_on_the_recorded_latents() -> None:
    z0, text, null, plan = draw(1, 4, 2, 2), draw(1, 5, 6, seed=1), draw(1, 5, 6, seed=2), schedule(20)
    trajectory = ddim_invert(from_text, z0, text, plan)
    found = null_text_inversion(from_text, trajectory, text, null, plan, 3.0, lr=0.1, inner_steps=200, tolerance=1e-10)
    assert found.shape == (1, 20, 5, 6)
    fitted = sample(from_text, trajectory[:, 0], text, found, plan, 3.0)
    unfitted = sample(from_text, trajectory[:, 0], text, null[:, None].expand(-1, 20, -1, -1), plan, 3.0)
    assert (fitted - z0).norm() < 0.02 * (unfitted - z0).norm()


def test_each_sample_stops_for_itself() -> None:
    """Sample 0 begins with the text as its null text, so nothing is left to fit; sample 1 must be fitted."""
    z0, text, plan = draw(2, 4, 2, 2), draw(2, 5, 6, seed=1), schedule(10)
    null = torch.stack([text[0], draw(5, 6, seed=2)])
    trajectory = ddim_invert(from_text, z0, text, plan)
    together = null_text_inversion(from_text, trajectory, text, null, plan, 3.0, lr=0.1)
    assert torch.equal(together[0], text[0].expand(10, -1, -1))
    assert not torch.equal(together[1], null[1].expand(10, -1, -1))
    alone = null_text_inversion(from_text, trajectory[1:], text[1:], null[1:], plan, 3.0, lr=0.1)
    torch.testing.assert_close(together[1:], alone, rtol=1e-12, atol=0)


def test_a_tolerance_that_is_met_fits_nothing_and_the_inner_steps_are_a_limit() -> None:
    z0, text, null, plan = draw(1, 4, 2, 2), draw(1, 5, 6, seed=1), draw(1, 5, 6, seed=2), schedule(5)
    calls = 0

    def counted(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return from_text(z, t, text)

    trajectory = ddim_invert(from_text, z0, text, plan)
    untouched = null_text_inversion(counted, trajectory, text, null, plan, 3.0, tolerance=1e9)
    assert torch.equal(untouched[0], null.expand(5, -1, -1)) and calls == 5 * 2  # the text, and one look
    calls = 0
    null_text_inversion(counted, trajectory, text, null, plan, 3.0, inner_steps=4, tolerance=0.0, tolerance_growth=0.0)
    assert calls == 5 * (2 + 4)


def test_the_update_after_the_last_look_may_be_made() -> None:
    """As published: where the first loss is below the tolerance already, each step's N_t is updated once, in each
    sample as if it were alone."""
    z0, text, null, plan = draw(2, 4, 2, 2), draw(2, 5, 6, seed=1), draw(2, 5, 6, seed=2), schedule(5)
    trajectory = ddim_invert(from_text, z0, text, plan)
    found = null_text_inversion(from_text, trajectory, text, null, plan, 3.0, tolerance=1e9, last_update=True)
    first = null.clone().requires_grad_()
    adam = torch.optim.Adam([first], lr=0.01)
    t, levels = plan.timesteps[0], (plan.alphas_cumprod[0], plan.alphas_cumprod_next[0])
    eps = classifier_free_guidance(from_text(trajectory[:, 0], t, first), from_text(trajectory[:, 0], t, text), 3.0)
    (ddim_step(trajectory[:, 0], eps, *levels)[0] - trajectory[:, 1]).square().sum().backward()
    adam.step()
    torch.testing.assert_close(found[:, 0], first.detach(), rtol=1e-6, atol=1e-6)
    settings: dict[str, Any] = {"tolerance": 1e-4, "lr": 0.1, "last_update": True}
    together = null_text_inversion(from_text, trajectory, text, null, plan, 3.0, **settings)
    alone = null_text_inversion(from_text, trajectory[1:], text[1:], null[1:], plan, 3.0, **settings)
    torch.testing.assert_close(together[1:], alone, rtol=1e-9, atol=1e-12)


def test_samples_that_have_stopped_are_not_computed_further() -> None:
    """The first has nothing to fit: after one look it is left out, and its latent is the one that was seen."""
    z0, text, plan = draw(2, 4, 2, 2), draw(2, 5, 6, seed=1), schedule(10)
    null = torch.stack([text[0], draw(5, 6, seed=2)])
    seen: list[int] = []

    def counted(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        seen.append(len(z))
        return from_text(z, t, text)

    null_text_inversion(counted, ddim_invert(from_text, z0, text, plan), text, null, plan, 3.0, tolerance_growth=0.0)
    assert seen[:4] == [2, 2, 1, 1] and sum(seen) == 10 * (2 + 2 + 9 + 1)


def test_steps_without_guidance_have_nothing_to_fit() -> None:
    z0, text, null, plan = draw(1, 4, 2, 2), draw(1, 5, 6, seed=1), draw(1, 5, 6, seed=2), schedule(5)
    trajectory = ddim_invert(from_text, z0, text, plan)
    found = null_text_inversion(from_text, trajectory, text, null, plan, 3.0, lr=0.1, guidance_interval=range(2, 4))
    assert torch.equal(found[:, :2], null[:, None].expand(-1, 2, -1, -1)) and torch.equal(found[:, 3], found[:, 4])
    assert not torch.equal(found[:, 2], null)


def test_guidance_one_leaves_the_null_text_without_a_gradient() -> None:
    z0, text, null, plan = draw(1, 4, 2, 2), draw(1, 5, 6, seed=1), draw(1, 5, 6, seed=2), schedule(5)
    trajectory = ddim_invert(from_text, z0, text, plan)
    found = null_text_inversion(from_text, trajectory, text, null, plan, 1.0, tolerance=0.0, tolerance_growth=0.0)
    assert torch.equal(found[0], null.expand(5, -1, -1))


# --- inversions that were kept -------------------------------------------------------------------------------


def test_a_kept_inversion_gives_the_same_bits(
    make_generator: Callable[..., LatentDiffusion], make_problems: Callable[[int], list[Problem]], tmp_path: Path
) -> None:  # fmt: skip
    generator, problems = make_generator(cache=TensorCache(str(tmp_path))), make_problems(2)
    first = initialize(generator, problems)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    second = initialize(generator, problems)
    plain = initialize(make_generator(), problems)
    for start in (second, plain):
        for name, value in first.controls.items():
            assert torch.equal(start.controls[name], value)
        assert all(torch.equal(getattr(start.reference, key), value) for key, value in vars(first.reference).items())
        for mine, theirs in zip(contexts_of(generator, start), contexts_of(generator, first), strict=True):
            for name, value in vars(theirs).items():
                if isinstance(value, Tensor):
                    assert torch.equal(getattr(mine, name), value), name
            assert all(torch.equal(mine.attention_maps[layer], maps) for layer, maps in theirs.attention_maps.items())


def test_kept_inversions_are_found_by_everything_that_decides_them(
    make_generator: Callable[..., LatentDiffusion], make_problems: Callable[[int], list[Problem]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cache, problems = TensorCache(str(tmp_path)), make_problems(1)
    assert problems[0].image is not None
    image, prompt = problems[0].image[None], [problems[0].edit.source]
    make_generator(cache=cache).invert(image, prompt, [0])

    def computed(images: Tensor, prompts: list[str], seed: int = 0, **changes: object) -> bool:
        before = len(list(tmp_path.iterdir()))
        make_generator(cache=cache, **changes).invert(images, prompts, [seed])
        return len(list(tmp_path.iterdir())) > before

    assert not computed(image, prompt) and not computed(image, prompt, seed=1), "DDIM draws nothing"
    assert computed(image + 1 / 255, prompt)
    assert computed(image, [prompt[0] + " again"])
    assert computed(image, prompt, steps=3)
    assert computed(image, prompt, guidance_scale=2.0)
    assert computed(image, prompt, sampler="lcm") and computed(image, prompt, seed=1, sampler="lcm")
    assert not computed(image, prompt, sampler="lcm")


def test_every_part_of_a_key_decides_it() -> None:
    cache, values = TensorCache(None), torch.arange(4.0)
    assert cache.key("a", values, 1) == cache.key("a", values.clone(), 1)
    keys = [cache.key("a", values, 1), cache.key("a", values + 1, 1), cache.key("b", values, 1), cache.key("a", values)]
    keys += [cache.key("a", "b"), cache.key("ab"), cache.key("b", "a"), cache.key(1), cache.key("1")]
    assert len(set(keys)) == len(keys)


def test_rows_come_back_by_their_own_keys_and_only_together(tmp_path: Path) -> None:
    cache = TensorCache(str(tmp_path / "deep"))
    latent, rank = torch.rand(3, 2, 2), torch.arange(3)
    cache.save(["a", "b", "c"], latent=latent, rank=rank)
    found = cache.load(["c", "a"])
    assert found is not None and torch.equal(found["latent"], latent[[2, 0]]) and found["rank"].tolist() == [2, 0]
    assert cache.load(["a", "d"]) is None
    assert {path.suffix for path in (tmp_path / "deep").iterdir()} == {".safetensors"}, "nothing half-written stays"


def test_a_cache_without_a_folder_keeps_nothing() -> None:
    cache = TensorCache(None)
    cache.save(["a"], latent=torch.zeros(1, 2))
    assert cache.load(["a"]) is None
