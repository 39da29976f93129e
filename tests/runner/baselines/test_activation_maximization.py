"""The baselines of other papers, with the settings of their YAML, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.multi_image import MultiImageGenerator
from classifier_lens.models.generator.prompt_diffusion import PromptDiffusion, embedding_controls
from classifier_lens.models.generator.prompt_tuning import SoftPrompt
from classifier_lens.models.seeded_noise import GRAY
from classifier_lens.runner.baselines.methods import Baseline
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.optimization import checkpoint, loop
from classifier_lens.runner.optimization.loop import OptimizationState, OptimizerSettings
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Controls,
    Objective,
    Problem,
    UserError,
)
from classifier_lens.tasks.objectives.loss_terms import class_log_prob, unit_activation
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.feature_attack import FeatureAttack
from tests.conftest import TinyClassifier, initialize

Make = Callable[..., LatentDiffusion]
OURS = ("yosinski", "mahendran_vedaldi", "feature_attack", "generator_prior")
NAMES = ("pixels", *OURS)
MANY = partial(
    PromptDiffusion,
    tokens=SoftPrompt(None),
    num_initializations=1,
    images_per_step=1,
    validation_images=2,
    images_per_result=3,
)
TARGETS = (4, 7)


def problems(n: int = 2, prompt: str = "a picture of *2") -> list[Problem]:
    """Questions without a picture, of which the second has an example."""
    draw = torch.Generator().manual_seed(5)
    found = [
        Problem(
            name=f"p{i}",
            seed=i,
            edit=CaptionEdit.unchanged(prompt, "viaduct"),
            load=None,
            image_name=f"p{i}",
            preserve="none",
        )
        for i in range(n)
    ]
    return [*found[:1], *(replace(p, load_top_example=torch.rand(3, 16, 16, generator=draw).clone) for p in found[1:])]


def objective(targets: tuple[int, ...] = TARGETS) -> Objective:
    classifier = TinyClassifier()
    classifier.weight *= 0.05
    return {"class_log_prob": (1.0, class_log_prob(classifier, torch.tensor(targets)))}


@cache
def settings(*overrides: str) -> dict[str, Any]:
    return compose_config(overrides)


def made(name: str, generator: LatentDiffusion, *more: str, several: bool = True) -> Baseline:
    """The contestant of a preset with five steps and two pictures at most."""
    ours = () if name == "pixels" else (f"baseline.{name}.steps=5",)
    most = () if name == "feature_attack" else (f"baseline.{name}.max_images=2",)
    own = settings(f"task.baseline={name}", *ours, *most, *more)["baseline"][name]
    how = OptimizerSettings(torch.optim.Adam, 5, {"pixels": 0.01, "latent": 0.01}, None, None, True, None)
    contestant: Baseline = instantiate(own, _convert_="all")(generator, MANY if several else embedding_controls, how)
    return contestant


def begun(one: Baseline, asked: list[Problem]) -> tuple[Controls, Any]:
    start = initialize(one.initializer, asked, **DISABLED_PROMPT_TO_PROMPT)
    return start.controls, start.context


def descended(one: Baseline, asked: list[Problem], targets: tuple[int, ...] = TARGETS) -> OptimizationState:
    controls, context = begun(one, asked)
    *_, state = loop.optimize(
        one.generator, context, controls, one.adapt_objective(objective(targets)), lambda scene, k: scene,
        one.optimizer, loop.initial_state(controls),
    )  # fmt: skip
    return state


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_falls_within_five_steps(name: str, make_generator: Make) -> None:
    state = descended(made(name, make_generator("lcm")), problems())
    assert len(state.history) == 6
    assert (state.best_loss < torch.tensor(state.history[0]["total"])).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_equals_batched(name: str, make_generator: Make) -> None:
    one, asked = made(name, make_generator("lcm")), problems()
    together = descended(one, asked)
    for i in range(2):
        alone = descended(one, asked[i : i + 1], TARGETS[i : i + 1])
        for key, values in alone.best_controls.items():
            torch.testing.assert_close(values[0], together.best_controls[key][i], rtol=0, atol=2e-3)
        totals = [[evaluation["total"][j] for evaluation in s.history] for s, j in ((alone, 0), (together, i))]
        assert totals[0] == pytest.approx(totals[1], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_descent_is_an_undisturbed_one(name: str, make_generator: Make, tmp_path: Path) -> None:
    """To the last bit: jitter, blur and momentum go on where they were."""
    one, asked = made(name, make_generator("lcm")), problems()
    whole = descended(one, asked)
    controls, context = begun(one, asked)
    terms = one.adapt_objective(objective())
    states = loop.optimize(
        one.generator, context, controls, terms, lambda scene, k: scene, one.optimizer, loop.initial_state(controls)
    )
    for _ in range(3):
        checkpoint.save(tmp_path / "state", next(states), {})
    state = checkpoint.load(tmp_path / "state", torch.device("cpu"), {}, 4)
    assert state.step == 3
    *_, state = loop.optimize(one.generator, context, controls, terms, lambda scene, k: scene, one.optimizer, state)
    assert state.history == whole.history
    assert all(torch.equal(state.best_controls[key], values) for key, values in whole.best_controls.items())


@pytest.mark.parametrize("name", NAMES)
def test_only_its_own_control_is_moved(name: str, make_generator: Make) -> None:
    generator = make_generator("lcm")
    one, control = made(name, generator), "latent" if name == "generator_prior" else "pixels"
    before, _ = begun(one, problems())
    after = descended(one, problems()).controls
    assert {key for key in before if not torch.equal(before[key], after[key])} == {control}
    for network in (generator.networks.vae, generator.networks.unet, generator.networks.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_as_many_pictures_as_the_methods_or_fewer(name: str, make_generator: Make) -> None:
    one = made(name, make_generator("lcm"))
    controls, context = begun(one, problems())
    pictures = one.generator.images(controls, context)
    count = 1 if name == "feature_attack" else 2
    assert pictures.shape == (2, count, 3, 16, 16) and 0 <= pictures.min() and pictures.max() <= 1
    assert isinstance(one.generator, MultiImageGenerator) == (count > 1)
    assert len({tuple(picture.flatten().tolist()) for picture in pictures.flatten(0, 1)}) == 2 * count, "all differ"
    single = made(name, make_generator("lcm"), several=False)
    controls, context = begun(single, problems())
    assert single.generator.images(controls, context).shape == (2, 1, 3, 16, 16)
    assert one.generator.decode_prompts(*begun(one, problems())) == ["", ""], "no words took part"


def test_pixels_of_words_are_drawn_of_them(make_generator: Make) -> None:
    generator, (asked,) = make_generator("lcm"), problems(1, "a photograph of a viaduct")
    drawn = generator.sample([asked.edit.source], [asked.seed])
    for name in ("pixels", "yosinski"):
        one = made(name, generator, several=False)
        controls, context = begun(one, [asked])
        assert torch.equal(controls["pixels"], drawn) == (name == "pixels")
        assert one.generator.decode_prompts(controls, context) == [asked.edit.target if name == "pixels" else ""]


def test_a_given_picture_is_started_from_by_all(make_generator: Make) -> None:
    asked = replace(
        problems(2, "a viaduct")[1], load=torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)).clone
    )
    assert asked.image is not None
    for name in set(NAMES) - {"generator_prior"}:
        start = initialize(made(name, make_generator("lcm"), several=False).initializer, [asked])
        assert torch.equal(start.controls["pixels"][0], asked.image)
        assert torch.equal(start.reference.original[0], asked.image)


def test_an_attack_starts_from_the_example_and_from_noise_without_one(make_generator: Make) -> None:
    asked = problems()
    start = initialize(made("feature_attack", make_generator("lcm")).initializer, asked)
    controls, reference = start.controls, start.reference
    assert asked[1].load_top_example is not None and torch.equal(controls["pixels"][1], asked[1].load_top_example())
    assert 0.01 < (controls["pixels"][0] - GRAY).std() < 0.1
    assert torch.equal(reference.original, controls["pixels"])
    encoded = make_generator("lcm").networks.encode(controls["pixels"])
    torch.testing.assert_close(reference.original_latent, encoded)


@pytest.mark.parametrize("radius", [0.5, 50.0])
def test_an_attack_is_the_feature_attack(radius: float, make_generator: Make) -> None:
    """The same image as `tasks.units.feature_attack` makes; distances do not count."""
    asked, unit, classifier = problems()[1], Unit(FEATURES, 2), TinyClassifier()
    one = made("feature_attack", make_generator("lcm"), f"baseline.feature_attack.regularizers.l2_ball.radius={radius}")
    terms: Objective = {
        "unit_activation": (1.0, unit_activation(classifier, [unit], torch.ones(1))),
        "pixel_distance": (1e6, lambda scene: scene.image.square().flatten(1).sum(dim=1)),
    }
    assert set(one.adapt_objective(terms)) == {"unit_activation"}
    controls, context = begun(one, [asked])
    *_, state = loop.optimize(
        one.generator,
        context,
        controls,
        one.adapt_objective(terms),
        lambda scene, k: scene,
        one.optimizer,
        loop.initial_state(controls),
    )
    assert asked.load_top_example is not None
    example = asked.load_top_example()
    wanted = FeatureAttack(radius, 0.2, 5)(classifier, example, unit, 1.0)
    torch.testing.assert_close(state.controls["pixels"][0], wanted)
    assert (wanted - example).norm() == pytest.approx(min(radius, 1.0), rel=0.1)


def test_every_start_keeps_its_own_ball(make_generator: Make) -> None:
    """Also where an answer is several pictures."""
    ball = "{_target_: classifier_lens.runner.baselines.regularizers.l2_ball, _partial_: true, radius: 0.3}"
    one = made("yosinski", make_generator("lcm"), f"+baseline.yosinski.regularizers.ball={ball}")
    before, _ = begun(one, problems())
    after = descended(one, problems()).controls
    lengths = (after["pixels"] - before["pixels"]).flatten(-3).norm(dim=-1)
    assert lengths.shape == (2, 2) and (lengths < 0.3 + 1e-4).all() and (lengths > 0.2).all()


def test_start_latents_keep_their_lengths(make_generator: Make) -> None:
    one = made("generator_prior", make_generator("lcm"))
    before, _ = begun(one, problems())
    after = descended(one, problems()).controls

    def lengths(controls: Controls) -> Tensor:
        return controls["latent"].flatten(-3).norm(dim=-1)

    torch.testing.assert_close(lengths(after), lengths(before))


def test_a_prior_draws_under_the_empty_prompt(make_generator: Make) -> None:
    generator, asked = make_generator("lcm"), problems(1)
    one = made("generator_prior", generator, several=False)
    controls, context = begun(one, asked)
    assert torch.equal(one.generator.images(controls, context)[:, 0], generator.sample([""], [asked[0].seed]))


def test_jitter_moves_what_is_descended_on_and_not_what_is_judged(make_generator: Make) -> None:
    one = made("mahendran_vedaldi", make_generator("lcm"), "baseline.mahendran_vedaldi.jitter=3")
    controls, context = begun(one, problems())
    scenes = [one.generator(controls, one.generator.step_context(context, k))[-1] for k in (0, 0, 1)]
    assert torch.equal(scenes[0].views, scenes[1].views) and not torch.equal(scenes[0].views, scenes[2].views)
    plain = one.generator(controls, context)[-1]
    assert torch.equal(plain.views, controls["pixels"]) and torch.equal(scenes[0].image, plain.image)
    assert not torch.equal(scenes[0].views, plain.views)
    still = made("yosinski", make_generator("lcm"))
    _, context = begun(still, problems())
    assert still.generator.step_context(context, 1) is context


def test_the_papers_are_shown_whole_pictures_and_have_penalties_of_their_own(make_generator: Make) -> None:
    contestants = {name: made(name, make_generator("lcm")) for name in NAMES}
    assert {name for name, one in contestants.items() if one.uses_augmentation} == {"pixels"}
    terms = {name: set(one.adapt_objective(objective())) for name, one in contestants.items()}
    assert terms.pop("mahendran_vedaldi") == {"class_log_prob", "total_variation", "alpha_norm"}
    assert all(own == {"class_log_prob"} for own in terms.values())


def test_less_than_one_picture_is_refused(make_generator: Make) -> None:
    with pytest.raises(UserError, match="max_images=0"):
        made("yosinski", make_generator("lcm"), "baseline.yosinski.max_images=0")
