"""The plain loop that speed is measured against computes what the runner computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.types import Objective, Reference, Scene
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import class_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import TinyClassifier, contexts_of, initialize

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[CounterfactualProblem]]
AUGMENT = RandomCrops(crops=4, noise_std=0.05, power=0.3, min_crop_fraction=0.75, new_crops_per_prediction=False)


def asked(reference: Reference, problems: list[CounterfactualProblem], classifier: TinyClassifier) -> Objective:
    term = class_log_prob(classifier, torch.tensor([p.target for p in problems]))
    return {"class_log_prob": (1.0, term), **distances(reference, {"latent_distance": 25.0, "pixel_distance": 250.0})}


def halved(make_problems: Problems) -> list[CounterfactualProblem]:
    """A problem whose left half is free."""
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1.0
    return [replace(problem, mask=mask) for problem in make_problems(1)]


def crops(problems: list[CounterfactualProblem], classifier: TinyClassifier) -> Callable[[Scene, int], Scene]:
    return lambda scene, k: AUGMENT(scene, [p.seed for p in problems], k, classifier.size)


@pytest.mark.parametrize("last", [1, 3])
def test_equal_controls_give_the_same_loss_and_gradient(
    last: int, make_generator: Make, make_problems: Problems, tiny_classifier: TinyClassifier
) -> None:
    """With injection and blending; the bar of the relative error is 1e-4."""
    generator, problems = make_generator(last_x0_predictions=last), halved(make_problems)
    start = initialize(generator, problems)
    context = contexts_of(generator, start)[-1]
    assert float(context.cross_replace_steps) > 0 and float(context.background_blend_steps) > 0
    controls = {name: value + 0.05 * torch.randn_like(value) for name, value in start.controls.items()}
    objective, augment = asked(start.reference, problems, tiny_classifier), crops(problems, tiny_classifier)
    leaves = {name: value.clone().requires_grad_() for name, value in controls.items()}
    losses = [evaluate(objective, augment(scene, 2)).total for scene in generator(leaves, context)]
    total = torch.stack([(i + 1) / sum(range(last + 1)) * loss.sum() for i, loss in enumerate(losses)]).sum()
    ours = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    value, theirs = plain_loop.loss_and_gradient(
        plain_loop.plain_model(generator), controls, context, objective, augment, 2, 2
    )
    assert value == pytest.approx(float(total.detach()), rel=1e-5)
    for name, gradient in ours.items():
        assert gradient.norm() > 0
        assert (theirs[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_the_same_inversion_schedule_and_descent(
    make_generator: Make, make_problems: Problems, tiny_classifier: TinyClassifier
) -> None:
    generator, problems = make_generator(), halved(make_problems)
    own, picture = plain_loop.plain_model(generator), problems[0].image
    assert picture is not None
    course = generator.invert(picture[None], [problems[0].edit.source], [problems[0].seed])
    latent, nulls = plain_loop.invert(own, picture[None], problems[0].edit.source)
    torch.testing.assert_close(latent, course["latent"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nulls, course["null"], rtol=1e-3, atol=1e-4)
    start = initialize(generator, problems)
    recorded = plain_loop.record_attention_maps(own, latent, generator.networks.embed([problems[0].edit.source]), nulls)
    text = generator.networks.embed([problems[0].edit.source])
    for layer, maps in generator.record_attention(course, text, 2)[0].items():
        torch.testing.assert_close(recorded[1][layer], maps[:, 1], rtol=1e-3, atol=1e-4)
    objective = asked(start.reference, problems, tiny_classifier)
    origin = loop.choose_initialization(generator, start, objective)
    best = plain_loop.select_schedule(own, start.controls, contexts_of(generator, start), objective)
    assert origin.candidate_indices == [best]
    controls, context = generator.select(start, origin.candidate_indices)
    rates = {"latent": 0.01, "text": 0.01, "null": 0.01}
    descent = OptimizerSettings(torch.optim.Adam, 2, rates, None, None, True, None)
    augment, begun = crops(problems, tiny_classifier), loop.initial_state(controls)
    *_, state = loop.optimize(generator, context, controls, objective, augment, descent, begun)
    found = plain_loop.optimize(own, controls, context, objective, augment, rates, 2, 1)
    for name, value in state.controls.items():
        assert (found[name] - value).norm() < 1e-3 * (value - controls[name]).norm(), name


def test_other_samplers_are_refused(make_generator: Make) -> None:
    with pytest.raises(TypeError, match="the plain loop needs a DDIM sampler, not Lcm"):
        plain_loop.plain_model(make_generator(sampler="lcm"))


def test_the_plain_loop_has_float32(make_generator: Make) -> None:
    generator = make_generator()
    generator.networks = copy.deepcopy(generator.networks)
    generator.networks.to_channels_last()
    for network in (generator.networks.unet, generator.networks.vae, generator.networks.text_encoder):
        network.bfloat16()
    own = plain_loop.plain_model(generator).networks
    assert generator.networks.unet.dtype == torch.bfloat16
    assert own.unet.dtype == own.vae.dtype == own.text_encoder.dtype == torch.float32
    assert own.unet.conv_in.weight.is_contiguous() and not generator.networks.unet.conv_in.weight.is_contiguous()


def test_blocks_are_computed_again_in_a_copy(make_generator: Make) -> None:
    generator = make_generator()
    own = plain_loop.plain_model(generator)
    assert own.networks.unet.is_gradient_checkpointing and not generator.networks.unet.is_gradient_checkpointing
    assert own.networks.vae.decoder.gradient_checkpointing and not generator.networks.vae.decoder.gradient_checkpointing
