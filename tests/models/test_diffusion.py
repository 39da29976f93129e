"""Laws of the differentiable generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from models import steps
from models.diffusion import LatentDiffusion
from runner.types import Anchor, Controls, Problem, UserError
from tests.conftest import double_precision, doubled

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[Problem]]


def gradients(generator: LatentDiffusion, controls: Controls, anchor: Anchor) -> dict[str, torch.Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in controls.items()}
    (generator(leaves, anchor)[-1].image ** 2).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def test_a_ddim_step_equals_diffusers() -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    schedule = steps.ddim_schedule(scheduler.alphas_cumprod, 20)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
    assert schedule.timesteps[[0, 1, -1]].tolist() == [951, 901, 1]
    assert abs(schedule.alphas_next[-1].item() - 0.99915) < 1e-5
    z, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(eps, t, z)
        ours, x0 = steps.ddim_step(z, eps, schedule.alphas[i], schedule.alphas_next[i])
        torch.testing.assert_close(ours, theirs.prev_sample)
        torch.testing.assert_close(x0, theirs.pred_original_sample)


def test_inversion_by_the_same_formula_walks_back() -> None:
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, _ = steps.ddim_step(z, eps, 0.9, 0.3)
    back, _ = steps.ddim_step(there, eps, 0.3, 0.9)
    torch.testing.assert_close(back, z)


def test_guidance_one_is_the_text_and_zero_the_null_prediction() -> None:
    null, text = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(steps.guide(null, text, 1.0), text) and torch.equal(steps.guide(null, text, 0.0), null)


@pytest.mark.parametrize("mode", ["step", "block"])
def test_recomputed_gradient_equals_plain_gradient(mode: str, make_generator: Make, make_problems: Problems) -> None:
    start = make_generator().begin(make_problems(2))
    anchor = replace(start.anchors[-1])  # with injection and blending
    plain = gradients(make_generator(), start.controls, anchor)
    generator = make_generator(recompute=mode)
    again = gradients(generator, start.controls, anchor)
    generator.unet.disable_gradient_checkpointing()
    assert set(plain) == {"latent", "text", "null"}
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)
        assert value.abs().sum() > 0


def test_gradient_agrees_with_finite_differences(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(steps=2)
    start = generator.begin(make_problems(1))
    anchor = doubled(start.anchors[-1])
    controls = {name: value.double() for name, value in start.controls.items()}

    def value(leaves: Controls) -> torch.Tensor:
        """Before the cut to [0, 1], which lets gradients pass on purpose."""
        return (generator.vae.decode(generator.chain(leaves, anchor)[-1]).sample ** 2).sum()

    with double_precision(generator):
        leaves = {name: x.clone().requires_grad_() for name, x in controls.items()}
        found = dict(zip(leaves, torch.autograd.grad(value(leaves), list(leaves.values())), strict=True))
        for name, gradient in found.items():
            direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).double()
            h = 1e-6
            up, down = ({**controls, name: controls[name] + sign * h * direction} for sign in (1, -1))
            numeric = (value(up) - value(down)) / (2 * h)
            torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-8)


def test_a_batch_equals_its_samples(make_generator: Make, make_problems: Problems) -> None:
    problems = make_problems(8)
    generator = make_generator()
    together = generator.begin(problems)
    grads = gradients(generator, together.controls, together.anchors[-1])
    for i in (0, 5):
        alone = generator.begin(problems[i : i + 1])
        torch.testing.assert_close(alone.controls["latent"][0], together.controls["latent"][i], rtol=1e-4, atol=1e-4)
        row = lambda value: value[i : i + 1]  # noqa: B023, E731
        anchor = together.anchors[-1]
        own = replace(
            anchor, **{k: row(v) for k, v in vars(anchor).items() if isinstance(v, torch.Tensor)},
            maps={layer: row(m) for layer, m in anchor.maps.items()},
        )  # fmt: skip
        mine = gradients(generator, {k: row(v) for k, v in together.controls.items()}, own)
        for name, value in mine.items():
            error = (value - grads[name][i : i + 1]).abs().max() / value.abs().max()
            assert error < 1e-5, (name, error)


def test_the_same_batch_gives_the_same_bits(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator()
    first, second = (generator.begin(make_problems(4)) for _ in range(2))
    assert torch.equal(first.controls["latent"], second.controls["latent"])
    images = [generator(s.controls, s.anchors[-1])[-1].image for s in (first, second)]
    assert torch.equal(*images)


def test_gradient_does_not_reach_the_networks_or_the_anchor(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator()
    start = generator.begin(make_problems(1))
    gradients(generator, start.controls, start.anchors[0])
    for network in (generator.vae, generator.unet, generator.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not start.anchors[0].text.requires_grad and not start.anchors[0].encoded.requires_grad


def test_null_text_inversion_reproduces_the_recorded_latents(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(null_text=make_generator().settings)
    problems = make_problems(2)
    images = torch.stack([p.image for p in problems])
    latent, null = generator.invert(images, [p.edit.source for p in problems])
    text = generator.embed([p.edit.source for p in problems])
    fitted = generator.record(latent, text, null)[1][:, -1]
    plain = generator.record(latent, text, generator.embed([""] * 2)[:, None].expand_as(null))[1][:, -1]
    with torch.no_grad():
        encoded = generator.encode(images)
    assert ((fitted - encoded) ** 2).mean() < ((plain - encoded) ** 2).mean()


def test_guidance_one_is_refused(make_generator: Make, make_problems: Problems) -> None:
    with pytest.raises(UserError, match=r"guidance=1"):
        make_generator(guidance=1.0).check(make_problems(1))


def test_a_caption_without_its_class_is_refused(make_generator: Make, make_problems: Problems) -> None:
    problem = make_problems(1)[0]
    lost = replace(problem, edit=replace(problem.edit, source="a photograph of something"))
    with pytest.raises(UserError, match="does not contain"):
        make_generator().check([lost])


def test_blending_holds_the_background(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(schedules=type(make_generator().schedules)([1.0], [1.0]))
    start = generator.begin(make_problems(2))
    anchor = replace(start.anchors[0], latent_mask=torch.zeros_like(start.anchors[0].latent_mask))
    z = start.controls["latent"] + 1.0
    z, _ = generator.step(z, anchor.text[:, 0], anchor.null[:, 0], 0, anchor)
    torch.testing.assert_close(z, anchor.templates[:, 0])
