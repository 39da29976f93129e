"""Runs without a generator: what they can ask, what they refuse, and that no network of one is looked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.models.generator.pixel_space import PixelGenerator, init_from_prompt
from classifier_lens.models.generator.prompt_diffusion import embedding_controls
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.models.segmenter.segmenter import AttentionSegmenter, TextPromptedSegmenter
from classifier_lens.runner.baselines.methods import (
    BaselineFactory,
    generator_prior,
    guidance,
    no_baseline,
    pixels,
    start_only,
)
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.loop import OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import Problem, UserError
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import class_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import TinyClassifier, initialize

DESCENT = OptimizerSettings(
    torch.optim.Adam, 4, {"pixels": 0.01, "latent": 0.1, "classifier_guidance": 0.2}, None, None, True, None
)
WEIGHTS = {"latent_distance": 25.0, "pixel_distance": 250.0}
Problems = Callable[[int], list[CounterfactualProblem]]


class Dark(TextPromptedSegmenter):
    """Whatever the words, what is dark."""

    digest = "dark"

    def mask(self, image: Tensor, words: str) -> Tensor:
        return (image.mean(dim=0, keepdim=True) < 0.5).float()


def space(segmenter: Segmenter | None = None) -> NoGenerator:
    return NoGenerator(
        16, MaskPostprocess(0, 3, 0.7, 3), {"pixels": 1.0}, 0.04, segmenter or AttentionSegmenter(0.3), "cpu"
    )


def undrawn(problem: Problem) -> Problem:
    return replace(problem, load=None, preserve="none")


def test_given_images_begin_as_they_are_and_are_their_own_originals(make_problems: Problems) -> None:
    problems = [replace(problem, preserve="all") for problem in make_problems(3)]
    start = initialize(space(), problems)
    images = torch.stack([problem.load() for problem in problems if problem.load is not None])
    reference = start.reference
    assert torch.equal(start.controls["pixels"], images) and torch.equal(reference.original, images)
    assert not reference.mask.any(), "keep=all frees nothing"
    assert space().decode_prompts(start.controls, None) == ["", "", ""]


def test_where_no_image_is_given_it_is_noise_about_gray_of_the_problems_seed(make_problems: Problems) -> None:
    problems = [undrawn(problem) for problem in make_problems(3)]
    reference = initialize(space(), problems).reference
    alone = initialize(space(), problems[1:2]).reference
    assert torch.equal(reference.original[1:2], alone.original), "as in a batch of its own"
    assert not torch.equal(reference.original[0], reference.original[1])
    assert reference.original.mean().item() == pytest.approx(0.5, abs=0.01)
    assert reference.original.std().item() == pytest.approx(0.04, rel=0.1)


def test_the_distance_is_that_of_pixels_alone(make_problems: Problems) -> None:
    problems = [replace(problem, preserve="all") for problem in make_problems(2)]
    start = initialize(space(), problems)
    reference = start.reference
    terms = distances(reference, WEIGHTS)
    assert terms.keys() == {"pixel_distance"}
    (scene,) = space()({"pixels": reference.original + 0.1}, None)
    assert evaluate(terms, scene).total.tolist() == pytest.approx([250 * 0.01] * 2, rel=1e-4)
    (same,) = space()(start.controls, None)
    assert evaluate(terms, same).total.tolist() == [0.0, 0.0]


def test_masks_are_the_problems_own_or_of_what_finds_words(make_problems: Problems) -> None:
    given = torch.zeros(1, 16, 16)
    given[:, :8] = 1.0
    first, second = make_problems(2)
    space().check([replace(first, mask=given)])
    reference = initialize(space(), [replace(first, mask=given)]).reference
    assert reference.mask[0, 0, :6].mean() > 0.99 and reference.mask[0, 0, 10:].max() < 0.01
    finds = space(Dark())
    finds.check([second])
    found = initialize(finds, [second])
    assert second.load is not None
    assert torch.equal(found.precomputed["masks"][0], Dark().mask(second.load(), second.words_to_segment))
    again = initialize(finds, [second], found.precomputed)
    assert torch.equal(again.reference.mask, found.reference.mask)


def test_a_segmenter_that_follows_attention_is_refused_where_a_mask_is_needed(make_problems: Problems) -> None:
    (problem,) = make_problems(1)
    with pytest.raises(UserError, match=r"generator=none: this segmenter needs .*task\.mask or segmenter=file"):
        space().check([problem])
    space().check([replace(problem, preserve="none")])


def test_nothing_is_drawn_and_nothing_attends() -> None:
    with pytest.raises(UserError, match="generator=none: an image of 'a crab' is needed"):
        space().sample(["a crab"], [0])
    with pytest.raises(UserError, match="generator=none: the attention map of .crab. is needed"):
        space().word_attention_maps(torch.zeros(3, 16, 16), "a crab", "crab", 0)


def test_pixels_descend(make_problems: Problems) -> None:
    problems = [replace(problem, preserve="none") for problem in make_problems(2)]
    one = pixels(space(), embedding_controls, DESCENT, partial(init_from_prompt, std=0.04), 8)
    assert isinstance(one.generator, PixelGenerator)
    start = initialize(one.initializer, problems)
    context = start.context
    classifier, targets = TinyClassifier(), torch.tensor([p.target for p in problems])
    classifier.weight *= 0.05
    objective = {"class_log_prob": (1.0, class_log_prob(classifier, targets)), **distances(start.reference, WEIGHTS)}
    *_, state = loop.optimize(
        one.generator,
        context,
        start.controls,
        objective,
        lambda scene, k: scene,
        one.optimizer,
        loop.initial_state(start.controls),
    )
    assert (state.best_loss < torch.tensor(state.history[0]["total"])).all()
    assert one.generator.decode_prompts(state.best_controls, context) == ["", ""], "no words are said"


@pytest.mark.parametrize(
    ("baseline", "name"),
    [
        (no_baseline, "none"),
        (start_only, "start_only"),
        (guidance, "classifier_guidance"),
        (partial(generator_prior, max_images=1, method=torch.optim.Adam, steps=1, lr=0.1), "generator_prior"),
    ],
)
def test_what_needs_a_generator_says_so(baseline: BaselineFactory, name: str) -> None:
    with pytest.raises(UserError, match=f"generator=none: task.baseline={name} needs a generator; without one allowed"):
        baseline(space(), embedding_controls, DESCENT)


def test_where_nothing_is_optimized_images_are_only_looked_at() -> None:
    images = space()
    for nothing in (replace(DESCENT, steps=0), replace(DESCENT, lr={"pixels": 0.0})):
        one = no_baseline(images, embedding_controls, nothing)
        assert one.initializer is one.generator is images


@pytest.mark.parametrize("domain", ["planted", "cifar10", "imagenet"])
def test_a_domains_images_are_those_of_its_generators(domain: str) -> None:
    """What stands in conf/domain/ for runs without a generator is what its generator has."""
    drawn, alone = (compose_config([f"domain={domain}", *more])["generator"] for more in ([], ["generator=none"]))
    assert alone["resolution"] == drawn["resolution"] and alone["mask_postprocess"] == drawn["mask_postprocess"][
        "pixels"
    ] | {"_target_": "classifier_lens.models.segmenter.mask_postprocess.MaskPostprocess"}
    assert alone["lr_scale"]["pixels"] == drawn["lr_scale"]["pixels"]


@pytest.mark.parametrize(
    "words",
    [
        ["generator=none", "task.baseline=pixels", "task.preserve=none"],
        ["task=input_gradients", "domain=imagenet", "segmenter=grabcut", "task.preserve=none"],
    ],
)
def test_no_network_of_a_generator_is_looked_for(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **settings: object) -> None:
        raise AssertionError("a generator is loaded")

    monkeypatch.setattr("classifier_lens.models.generator.latent_diffusion.load_networks", load)
    parts = build(compose_config([*words, "classifier=planted_clean", "data=planted", "data.count=20", "logger=none"]))
    assert isinstance(parts.generator, NoGenerator)
    with pytest.raises(UserError, match="generator=none: this needs a generator"):
        _ = parts.diffusion
