"""Laws of the differentiable generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from classifier_lens.models.generator import noise_schedule
from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.editable_region import editable_region
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.pipeline.networks import Networks, load_networks
from classifier_lens.models.generator.samplers import NullTextInversion, ddim
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.runner.types import PRESERVE_OPTIONS, CaptionEdit, Controls, Problem, UserError
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import contexts_of, double_precision, doubled, initialize, rows_of

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[CounterfactualProblem]]


def gradients(generator: LatentDiffusion, controls: Controls, context: DiffusionContext) -> dict[str, torch.Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in controls.items()}
    (generator(leaves, context)[-1].image ** 2).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def chained(generator: LatentDiffusion, controls: Controls, context: DiffusionContext) -> torch.Tensor:
    """The last x0-prediction."""
    embeddings = {name: base + controls[name] for name, base in context.embeddings.items()}
    return generator.denoise(controls["latent"], embeddings, context.variance_noise, context)[-1]


def test_a_ddim_step_equals_diffusers() -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    schedule = noise_schedule.ddim_schedule(scheduler.alphas_cumprod, 20)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
    assert schedule.timesteps[[0, 1, -1]].tolist() == [951, 901, 1]
    assert abs(schedule.alphas_cumprod_next[-1].item() - 0.99915) < 1e-5
    z, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(eps, t, z)
        ours, x0 = noise_schedule.ddim_step(z, eps, schedule.alphas_cumprod[i], schedule.alphas_cumprod_next[i])
        torch.testing.assert_close(ours, theirs.prev_sample)
        torch.testing.assert_close(x0, theirs.pred_original_sample)


def test_inversion_by_the_same_formula_walks_back() -> None:
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there, _ = noise_schedule.ddim_step(z, eps, 0.9, 0.3)
    back, _ = noise_schedule.ddim_step(there, eps, 0.3, 0.9)
    torch.testing.assert_close(back, z)


def test_guidance_one_is_the_text_and_zero_the_null_prediction() -> None:
    null, text = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(noise_schedule.classifier_free_guidance(null, text, 1.0), text) and torch.equal(
        noise_schedule.classifier_free_guidance(null, text, 0.0), null
    )


@pytest.mark.parametrize("mode", ["step", "block"])
def test_recomputed_gradient_equals_plain_gradient(mode: str, make_either: Make, make_problems: Problems) -> None:
    start = initialize(make_either(), make_problems(2))
    context = contexts_of(make_either(), start)[-1]  # with injection and blending
    plain = gradients(make_either(), start.controls, context)
    generator = make_either(gradient_checkpointing=mode)
    again = gradients(generator, start.controls, context)
    generator.networks.unet.disable_gradient_checkpointing()
    assert set(plain) == set(start.controls) == {"latent", *generator.sampler.embedding_names}
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)
        assert value.abs().sum() > 0


def test_schedules_compared_at_once_show_what_each_shows(make_either: Make, make_problems: Problems) -> None:
    """Steps that they share are computed once: the UNet sees fewer pictures than chains of their own would."""
    generator = make_either(
        prompt_to_prompt={"cross_replace_steps": [0.0, 0.3, 0.5], "background_blend_steps": [0.0, 0.5]}
    )
    start = initialize(generator, make_problems(3))
    assert len(start.candidates) == 6
    controls = {name: value + 0.1 * torch.randn_like(value) for name, value in start.controls.items()}
    seen = 0

    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += len(given[0])

    with torch.no_grad():
        wanted = [generator(controls, context)[-1] for context in contexts_of(generator, start)]
    counting = generator.networks.unet.register_forward_pre_hook(count)
    found = generator.render_candidates(replace(start, controls=controls))
    counting.remove()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.image, other.image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.latent, other.latent, rtol=1e-4, atol=1e-5)
    rows = 3 * len(generator.sampler.embedding_names)
    assert 0 < seen < 6 * len(generator) * rows
    assert len({float(scene.latent.sum()) for scene in found}) > 1


@pytest.mark.parametrize("change", [Networks.to_channels_last, pytest.param(Networks.compile, marks=pytest.mark.slow)])
def test_changed_networks_give_the_same_picture_and_gradient(
    make_generator: Make, make_problems: Problems, tiny_folder: Path, change: Callable[[Networks], None]
) -> None:
    start = initialize(make_generator(), make_problems(2), cross_replace_steps=[0.3], background_blend_steps=[0.0])
    found = []
    for changed in (False, True):
        networks = load_networks(str(tiny_folder), None, None, None, None, "float32", "cpu", "")
        if changed:
            change(networks)
        generator = make_generator()
        generator.networks = networks
        found.append((gradients(generator, start.controls, start.context), generator(start.controls, start.context)))
    (plain, pictures), (again, same) = found
    torch.testing.assert_close(same[-1].image, pictures[-1].image, rtol=1e-4, atol=1e-4)
    for name, value in plain.items():
        assert (again[name] - value).norm() < 1e-3 * value.norm(), name


def test_a_gradient_through_the_last_steps_alone(make_either: Make, make_problems: Problems) -> None:
    """Of the embeddings it is the whole one's part, of the start latent there is none; pictures are the same."""
    start = initialize(make_either(), make_problems(2))
    context = start.context
    whole, cut = (gradients(make_either(backprop_steps=k), start.controls, context) for k in (None, 2))
    assert "latent" not in cut and whole["latent"].abs().sum() > 0
    torch.testing.assert_close(cut["text"][:, 2:], whole["text"][:, 2:])
    assert cut["text"][:, :2].abs().sum() == 0 and whole["text"][:, :2].abs().sum() > 0
    with torch.no_grad():
        pictures = [make_either(backprop_steps=k)(start.controls, context)[-1].image for k in (None, 2)]
    assert torch.equal(*pictures)


def test_steps_without_guidance_have_the_text_branch_alone(
    make_generator: Make, tiny_pipe: StableDiffusionPipeline, make_problems: Problems
) -> None:
    networks, settings = Networks(tiny_pipe, "tiny"), NullTextInversion(0.01, 3, 1e-5, 2e-5, False)
    part, all_text = ddim(networks, 4, 3.0, settings, [0.25, 0.75]), ddim(networks, 4, 1.0, settings, [0.0, 1.0])
    whole = ddim(networks, 4, 3.0, settings, [0.0, 1.0])
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embeddings = {"text": networks.embed(["a red crab"] * 2), "null": networks.embed([""] * 2)}
    for i in range(4):
        with torch.no_grad():
            found, guided, plain = (s.predict(networks, z, embeddings, i, None) for s in (part, whole, all_text))
        torch.testing.assert_close(found, guided if i in (1, 2) else plain, rtol=1e-4, atol=1e-5)
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match=r"generator.guidance_interval=\[0.5, 0.5\]: allowed are two growing shares"):
        ddim(networks, 4, 3.0, settings, [0.5, 0.5])


def test_gradient_agrees_with_finite_differences(make_either: Make, make_problems: Problems) -> None:
    generator = make_either(steps=2)
    start = initialize(generator, make_problems(1))
    context = doubled(contexts_of(generator, start)[-1])
    controls = {name: value.double() for name, value in start.controls.items()}

    def value(leaves: Controls) -> torch.Tensor:
        """Before the cut to [0, 1], which lets gradients pass on purpose."""
        return (generator.networks.vae.decode(chained(generator, leaves, context)).sample ** 2).sum()

    with double_precision(generator):
        leaves = {name: x.clone().requires_grad_() for name, x in controls.items()}
        found = dict(zip(leaves, torch.autograd.grad(value(leaves), list(leaves.values())), strict=True))
        for name, gradient in found.items():
            direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)).double()
            h = 1e-6
            up, down = ({**controls, name: controls[name] + sign * h * direction} for sign in (1, -1))
            numeric = (value(up) - value(down)) / (2 * h)
            torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-8)


def test_a_batch_equals_its_samples(make_either: Make, make_problems: Problems) -> None:
    problems = make_problems(8)
    generator = make_either()
    together = initialize(generator, problems)
    grads = gradients(generator, together.controls, contexts_of(generator, together)[-1])
    for i in (0, 5):
        alone = initialize(generator, problems[i : i + 1])
        torch.testing.assert_close(alone.controls["latent"][0], together.controls["latent"][i], rtol=1e-4, atol=1e-4)
        row = slice(i, i + 1)
        own = rows_of(contexts_of(generator, together)[-1], row)
        mine = gradients(generator, {k: v[row] for k, v in together.controls.items()}, own)
        for name, value in mine.items():
            error = (value - grads[name][i : i + 1]).abs().max() / value.abs().max()
            # The first step of consistency sampling divides by √ᾱ_999 = 0.07, and rounding with it.
            assert error < (1e-5 if generator.sampler.embedding_names == ("text", "null") else 1e-4), (name, error)


def test_the_same_batch_gives_the_same_bits(make_either: Make, make_problems: Problems) -> None:
    generator = make_either()
    first, second = (initialize(generator, make_problems(4)) for _ in range(2))
    assert torch.equal(first.controls["latent"], second.controls["latent"])
    images = [generator(s.controls, contexts_of(generator, s)[-1])[-1].image for s in (first, second)]
    assert torch.equal(*images)


def test_gradient_does_not_reach_the_networks_or_the_context(make_either: Make, make_problems: Problems) -> None:
    generator = make_either()
    start = initialize(generator, make_problems(1))
    gradients(generator, start.controls, start.context)
    for network in (generator.networks.vae, generator.networks.unet, generator.networks.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not start.context.embeddings["text"].requires_grad and not start.reference.original_latent.requires_grad


def test_null_text_inversion_reproduces_the_recorded_latents(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(2)
    images = torch.stack([p.image for p in problems if p.image is not None])
    drawn = generator.sampler.sample_inputs(generator.networks, [1, 2], 8)
    found = generator.invert(images, [p.edit.source for p in problems], [1, 2])
    text = generator.networks.embed([p.edit.source for p in problems])
    fitted = generator.record_attention(found, text, 0)[1][:, -1]
    plain = generator.record_attention({**found, "null": drawn["null"]}, text, 0)[1][:, -1]
    with torch.no_grad():
        encoded = generator.networks.encode(images)
    assert ((fitted - encoded) ** 2).mean() < ((plain - encoded) ** 2).mean()


def test_guidance_one_is_refused(make_generator: Make, make_problems: Problems) -> None:
    with pytest.raises(UserError, match=r"guidance_scale=1"):
        make_generator(guidance_scale=1.0).check(make_problems(1))


def test_a_caption_without_its_class_is_refused(make_generator: Make, make_problems: Problems) -> None:
    problem = make_problems(1)[0]
    lost = replace(problem, edit=replace(problem.edit, source="a photograph of something"))
    with pytest.raises(UserError, match="does not contain"):
        make_generator().check([lost])


def test_words_are_only_looked_for_where_they_are_used(make_generator: Make, make_problems: Problems) -> None:
    problem = make_problems(1)[0]
    lost = replace(problem, edit=CaptionEdit.unchanged("a photograph of something", "rock crab"))
    for keep in ("all", "none"):
        make_generator().check([replace(lost, preserve=keep)])
    make_generator().check([replace(lost, mask=torch.ones(1, 16, 16))])
    changed = replace(lost, preserve="all", edit=CaptionEdit("a photograph", "a viaduct", "rock crab", "viaduct"))
    for bad in (lost, replace(lost, preserve="foreground"), changed):
        with pytest.raises(UserError, match="does not contain"):
            make_generator().check([bad])


def test_blending_holds_the_background(make_either: Make, make_problems: Problems) -> None:
    generator = make_either(prompt_to_prompt={"cross_replace_steps": [1.0], "background_blend_steps": [1.0]})
    start = initialize(generator, make_problems(2))
    context = replace(start.context, latent_mask=torch.zeros_like(start.context.latent_mask))
    for i in range(len(generator)):
        torch.testing.assert_close(
            generator.blend_background(start.controls["latent"] + 1.0, i, context), context.original_trajectory[:, i]
        )
    torch.testing.assert_close(context.original_trajectory[:, 0], start.controls["latent"])  # z_T is held, too


@pytest.mark.parametrize(("first", "held"), [(0, [0, 1]), (1, [1, 2]), (3, [3])])
def test_blending_holds_a_share_of_the_chain_from_its_first_latent_on(
    first: int, held: list[int], make_generator: Make, make_problems: Problems
) -> None:
    """Half of 4 steps: the inputs of two of them, as far as there are as many."""
    generator = make_generator(
        prompt_to_prompt={"cross_replace_steps": [0.0], "background_blend_steps": [0.5]}, background_blend_start=first
    )
    start = initialize(generator, make_problems(1))
    context = start.context
    assert [i for i in range(4) if generator.is_blended(context, i).all()] == held
    for i in range(4):
        assert (
            generator.blend_background(start.reference.original_latent, i, context) is start.reference.original_latent
        ) == (i not in held)


def test_where_z_t_is_held_its_changes_have_no_effect(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(prompt_to_prompt={"cross_replace_steps": [0.0], "background_blend_steps": [0.5]})
    start = initialize(generator, make_problems(1))
    half = torch.zeros_like(start.context.latent_mask)
    half[..., :4] = 1.0
    context = replace(start.context, latent_mask=half)
    latent = start.controls["latent"].clone().requires_grad_()
    generator({**start.controls, "latent": latent}, context)[-1].latent.square().sum().backward()
    assert latent.grad is not None and latent.grad[..., :4].any() and not latent.grad[..., 4:].any()


def test_the_first_held_latent_is_one_of_the_chain(make_generator: Make) -> None:
    with pytest.raises(UserError, match="generator.background_blend_start=5: allowed are 0 … 4"):
        make_generator(background_blend_start=5)


@pytest.mark.parametrize("passes", [True, False])
def test_the_gradient_at_the_cut_to_the_range_of_images(make_generator: Make, passes: bool) -> None:
    """It passes, or stops where an image is cut; the image is the same."""
    networks = make_generator().networks
    networks.straight_through_clamp = passes
    latent = (30 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    with torch.no_grad():
        scaled = latent / networks.vae.config.scaling_factor
        cut = (networks.vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
    image = networks.decode(latent)
    torch.testing.assert_close(image, cut)
    outside = (cut == 0) | (cut == 1)
    assert outside.any()
    (gradient,) = torch.autograd.grad(image[outside].sum(), latent)
    assert bool(gradient.any()) == passes


# --- pictures of prompts -------------------------------------------------------------------------------------

PROMPT = "a photograph of a viaduct"


def drawn(seed: int, prompt: str = PROMPT, **changes: Any) -> Problem:
    """A problem without a picture, whose words stay."""
    settings: dict[str, Any] = {
        "name": f"d{seed}", "seed": seed, "edit": CaptionEdit.unchanged(prompt, "viaduct"), "load": None,
        "image_name": f"drawn-{seed}", "preserve": "none",
    }  # fmt: skip
    return Problem(**(settings | changes))


def test_a_sample_depends_on_its_own_prompt_and_seed_alone(make_either: Make) -> None:
    generator = make_either()
    prompts, seeds = [PROMPT, "a picture of a lifeboat", PROMPT], [3, 4, 5]
    together = generator.sample(prompts, seeds)
    assert together.shape == (3, 3, 16, 16) and 0 <= together.min() and together.max() <= 1
    assert not together.requires_grad and torch.equal(generator.sample(prompts, seeds), together)
    for i in range(3):
        torch.testing.assert_close(generator.sample(prompts[i : i + 1], seeds[i : i + 1])[0], together[i])
    assert not torch.allclose(together[0], together[2], atol=1e-3)
    assert not torch.allclose(generator.sample(["a picture of a lifeboat"], [3])[0], together[0], atol=1e-4)


def test_a_drawn_picture_is_the_sample_of_its_prompt_and_seed(make_either: Make) -> None:
    """And the chain at its start gives it, with its own maps injected or held as without: nothing is far from it."""
    generator = make_either()
    start = initialize(
        generator, [drawn(3), drawn(4)], cross_replace_steps=[0.0, 1.0], background_blend_steps=[0.0, 1.0]
    )
    assert len(start.candidates) == 4 and start.warnings == [[], []]
    for context in contexts_of(generator, start):
        torch.testing.assert_close(start.reference.original, generator.sample([PROMPT] * 2, [3, 4]))
        scene = generator(start.controls, context)[-1]
        torch.testing.assert_close(scene.image, start.reference.original)
        torch.testing.assert_close(scene.latent, start.reference.original_latent)
    assert torch.equal(start.controls["latent"], generator.networks.sample_noise([3, 4], 8, 1)[:, 0])


def test_held_by_its_own_chain_a_picture_stays_itself(make_either: Make, make_problems: Problems) -> None:
    """Where no word changes, maps injected and background held leave an inversion's picture as it is."""
    problem = make_problems(1)[0]
    own = replace(problem, edit=CaptionEdit.unchanged(problem.edit.source, problem.edit.source_words))
    generator = make_either()
    start = initialize(generator, [own], cross_replace_steps=[0.0, 1.0], background_blend_steps=[0.0, 1.0])
    plain, *others = (generator(start.controls, context)[-1].image for context in contexts_of(generator, start))
    for other in others:
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-4)


def test_drawn_and_given_pictures_share_a_batch(make_either: Make, make_problems: Problems) -> None:
    generator = make_either()
    problems: list[Problem] = [drawn(3, preserve="background"), make_problems(1)[0], drawn(4)]
    together = initialize(generator, problems)
    for i, problem in enumerate(problems):
        alone = initialize(generator, [problem])
        for name, value in alone.controls.items():
            torch.testing.assert_close(value[0], together.controls[name][i], rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(contexts_of(generator, alone), contexts_of(generator, together), strict=True):
            torch.testing.assert_close(mine.variance_noise[0], theirs.variance_noise[i], rtol=1e-4, atol=1e-4)
            for name, base in mine.embeddings.items():
                torch.testing.assert_close(base[0], theirs.embeddings[name][i], rtol=1e-4, atol=1e-4)
        for name, value in vars(alone.reference).items():
            torch.testing.assert_close(value[0], getattr(together.reference, name)[i], rtol=1e-4, atol=1e-4)
        assert list(together.warnings[i]) == list(alone.warnings[0])
    given = together.reference.original[1]
    assert problems[1].image is not None and torch.equal(given, problems[1].image)
    torch.testing.assert_close(
        together.reference.original_latent[1], generator.networks.encode(problems[1].image[None])[0]
    )


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_was_found_is_not_found_again(
    make_either: Make, make_problems: Problems, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed batch is initialized from it, bit for bit, with those steps alone in which maps are injected."""
    generator = make_either()
    problems: list[Problem] = [drawn(3, preserve="background"), make_problems(1)[0], drawn(4)]
    own = {"cross_replace_steps": [0.0, share], "background_blend_steps": [0.5]}
    first = initialize(generator, problems, **own)
    calls: list[int] = []
    predict = generator.predict

    def counted(z: torch.Tensor, embeddings: Any, i: int, *others: Any) -> torch.Tensor:
        calls.append(i)
        return predict(z, embeddings, i, *others)

    monkeypatch.setattr(generator, "record_originals", None)
    monkeypatch.setattr(generator, "predict", counted)
    # As from a checkpoint, which keeps no strides of dimensions of size 1.
    saved = {name: v.clone(memory_format=torch.contiguous_format) for name, v in first.precomputed.items()}
    again = initialize(generator, problems, saved, **own)
    assert calls == list(range(math.ceil(share * len(generator)))) and again.warnings == first.warnings
    assert all(torch.equal(value, first.controls[name]) for name, value in again.controls.items())
    one, same = first.context, again.context
    assert again.candidates == first.candidates
    assert all(maps.shape[1] == len(calls) for maps in same.attention_maps.values())
    assert same.attention_maps.keys() == (one.attention_maps.keys() if calls else set())
    for name, value in vars(first.reference).items():
        assert torch.equal(getattr(again.reference, name), value), name
    for name, value in vars(one).items():
        assert not isinstance(value, torch.Tensor) or torch.equal(getattr(same, name), value), name
    assert all(torch.equal(base, one.embeddings[name]) for name, base in same.embeddings.items())
    assert all(
        torch.equal(maps, one.attention_maps[layer][:, : len(calls)]) for layer, maps in same.attention_maps.items()
    )


def test_what_is_free_may_start_from_noise(make_either: Make, make_problems: Problems) -> None:
    """The inversion where the mask is 0, the seed's noise where it is 1, as long as either in between."""
    given = make_problems(1)[0]
    mask = torch.tensor([1.0, 0.25, 0.0, 0.0]).repeat_interleave(4).expand(1, 16, 16)
    kept = replace(given, preserve="background", mask=mask)
    generator = make_either(mask_postprocess={kind: lambda masks: masks for kind in ("pixels", "latents")})
    plain, again = (initialize(generator, [replace(kept, editable_from_noise=redrawn)]) for redrawn in (False, True))
    inverted, noise = plain.controls["latent"], generator.networks.sample_noise([given.seed], 8, 1)[:, 0]
    free = plain.context.latent_mask
    assert free.min() == 0 and free.max() == 1 and (free == 0.25).any()
    torch.testing.assert_close(again.controls["latent"], free.sqrt() * noise + (1 - free).sqrt() * inverted)
    assert torch.equal(again.context.original_trajectory, plain.context.original_trajectory), (
        "what is held is the original's"
    )
    assert torch.equal(initialize(generator, [given]).reference.original, again.reference.original)


def test_drawn_pictures_need_no_inversion_and_so_no_guidance(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(guidance_scale=1.0)
    generator.check([drawn(3)])
    torch.testing.assert_close(initialize(generator, [drawn(3)]).reference.original, generator.sample([PROMPT], [3]))
    with pytest.raises(UserError, match=r"guidance_scale=1"):
        generator.check([drawn(3), *make_problems(1)])


def test_a_recipe_names_all_that_a_sample_follows_from(make_generator: Make) -> None:
    plain = make_generator().fingerprint
    assert make_generator(last_x0_predictions=2, gradient_checkpointing="step").fingerprint == plain
    others = [
        make_generator(**change).fingerprint for change in ({"steps": 3}, {"guidance_scale": 2.0}, {"resolution": 8})
    ]
    assert len({plain, *others}) == 4


# --- what is free to change ----------------------------------------------------------------------------------


class Halves:
    """A segmenter whose masks are the left half, or nothing for pictures that are called so; it notes which words of
    which pictures it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(
        self, images: torch.Tensor, maps: torch.Tensor, words: Sequence[str], names: Sequence[str]
    ) -> torch.Tensor:
        assert len(images) == len(maps) == len(words) == len(names) and maps.shape[1:] == (1, 8, 8)
        self.asked += zip(words, names, strict=True)
        masks = torch.zeros_like(images[:, :1])
        masks[[i for i, name in enumerate(names) if name != "nothing"], :, :, :8] = 1.0
        return masks


SOFTENING = {"latents": MaskPostprocess(0, 3, 0.7, 3), "pixels": MaskPostprocess(3, 0, 0.0, 1)}


def test_masks_are_made_where_something_has_to_be_found(make_either: Make, make_problems: Problems) -> None:
    """For the kinds of `preserve` with a mask, unless the problem brings one; latents and pixels soften it each."""
    halves = Halves()
    generator = make_either(segmenter=halves, mask_postprocess=SOFTENING)
    brought = torch.zeros(1, 16, 16)
    brought[:, 4:12, 4:12] = 1.0
    problems = [replace(p, preserve=keep) for p, keep in zip(make_problems(4), PRESERVE_OPTIONS, strict=True)]
    problems.append(replace(make_problems(5)[4], preserve="foreground", mask=brought))
    start = initialize(generator, problems)
    searched = [p for p in problems if p.preserve in ("background", "foreground") and p.mask is None]
    assert halves.asked == [(p.words_to_segment, p.image_name) for p in searched]
    masks = torch.zeros(5, 1, 16, 16)
    masks[[PRESERVE_OPTIONS.index("background"), PRESERVE_OPTIONS.index("foreground")], :, :, :8] = 1.0
    masks[4] = brought
    region = {
        kind: editable_region(soften(masks), masks, [p.preserve for p in problems])
        for kind, soften in SOFTENING.items()
    }
    torch.testing.assert_close(start.reference.mask, region["pixels"])
    torch.testing.assert_close(start.context.latent_mask, torch.nn.functional.avg_pool2d(region["latents"], 2))
    assert list(map(list, start.warnings)) == [[]] * 5


def test_no_maps_are_kept_that_nobody_needs(make_either: Make, make_problems: Problems) -> None:
    generator, problem = make_either(), make_problems(1)[0]
    for keep, inject, kept in (("none", 0.0, 0), ("background", 0.0, 0), ("background", 0.2, 1), ("none", 0.7, 3)):
        maps = initialize(
            generator, [replace(problem, preserve=keep)], cross_replace_steps=[inject]
        ).context.attention_maps
        assert {values.shape[1] for values in maps.values()} == ({kept} if kept else set()), (keep, inject)


def test_an_empty_mask_is_told(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator(segmenter=Halves())
    problems = make_problems(2)
    start = initialize(generator, [replace(problems[0], image_name="nothing"), problems[1]])
    assert start.reference.mask[0].eq(1).all() and start.context.latent_mask[0].eq(1).all()
    assert [len(notes) for notes in start.warnings] == [1, 0] and "was empty" in start.warnings[0][0]


def test_a_tasks_schedules_replace_the_generators_own(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(1)

    def candidates(**schedules: list[float]) -> list[tuple[float, float]]:
        contexts = contexts_of(generator, initialize(generator, problems, **schedules))
        return [(round(a.cross_replace_steps.item(), 6), round(a.background_blend_steps.item(), 6)) for a in contexts]

    assert candidates() == [(0.3, 0.0), (0.3, 0.5), (0.5, 0.0), (0.5, 0.5)]
    assert candidates(cross_replace_steps=[0.0]) == [(0.0, 0.0), (0.0, 0.5)]
    assert candidates(cross_replace_steps=[0.2, 0.4], background_blend_steps=[1.0]) == [(0.2, 1.0), (0.4, 1.0)]
