"""What answers in the method's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.guidance import guided_sampling
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.pixel_space import PixelGenerator, init_from_generated
from classifier_lens.models.generator.prompt_diffusion import embedding_controls
from classifier_lens.runner.baselines.methods import BaselineFactory, guidance, no_baseline, pixels, start_only
from classifier_lens.runner.batch import Solver
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.results.result_warnings import ResultWarnings
from classifier_lens.runner.types import Controls, Objective, UserError
from classifier_lens.tasks.objectives.distances import pixel_distance
from classifier_lens.tasks.objectives.loss_terms import class_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import TinyClassifier, initialize, uvce

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[CounterfactualProblem]]
DESCENT = OptimizerSettings(
    torch.optim.Adam, 4, {"latent": 0.1, "pixels": 0.01, "classifier_guidance": 0.2}, None, None, True, None
)


def objective_of(problems: list[CounterfactualProblem], sharpness: float = 1.0) -> Objective:
    """The class alone, by a classifier that is less sure for a lower sharpness."""
    classifier, targets = TinyClassifier(), torch.tensor([p.target for p in problems])
    classifier.weight *= sharpness
    return {"class_log_prob": (1.0, class_log_prob(classifier, targets))}


def shifted(
    generator: LatentDiffusion, problems: list[CounterfactualProblem]
) -> tuple[Controls, DiffusionContext, Objective]:
    """A batch's start, with offsets to the embeddings and with maps and background held for half of the chain."""
    start = initialize(generator, problems, cross_replace_steps=[0.5], background_blend_steps=[0.5])
    draw = torch.Generator().manual_seed(0)
    controls = {
        name: value if name == "latent" else 0.1 * torch.randn(value.shape, generator=draw)
        for name, value in start.controls.items()
    }
    return controls, start.context, objective_of(problems, 0.05)


def test_the_method_itself_and_its_start(make_generator: Make) -> None:
    generator = make_generator()
    own = no_baseline(generator, embedding_controls, DESCENT)
    assert own.initializer is own.generator is generator and own.optimizer == DESCENT
    start = start_only(generator, embedding_controls, DESCENT)
    assert start.initializer is start.generator is generator
    assert start.optimizer.steps == 0 and start.optimizer.lr == DESCENT.lr


@pytest.mark.parametrize(
    "baseline", [no_baseline, start_only, partial(pixels, initialization=init_from_generated, max_images=1)]
)
def test_what_descends_begins_where_it_starts(
    baseline: BaselineFactory, make_generator: Make, make_problems: Problems
) -> None:
    one = baseline(make_generator(), embedding_controls, DESCENT)
    start = initialize(one.initializer, make_problems(1))
    controls, context = one.prepare(start.controls, start.context, {})
    assert controls is start.controls and context is start.context


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"task\.baseline=magic: allowed are none, start_only, pixels, classifier_g"):
        compose_config(["task.baseline=magic"])


def test_of_the_baselines_a_run_has_the_one_that_is_asked_for() -> None:
    for overrides in ([], ["task=attention_maps"]):
        assert set(compose_config(overrides)["baseline"]) == {"none"}
    asked = compose_config(["task.baseline=yosinski", "baseline.yosinski.steps=3"])["baseline"]
    assert set(asked) == {"yosinski"} and asked["yosinski"]["steps"] == 3


# --- pixels --------------------------------------------------------------------------------------------------


def test_pixels_start_at_the_original_and_descend(make_generator: Make, make_problems: Problems) -> None:
    plain = make_generator()
    one = pixels(plain, embedding_controls, DESCENT, init_from_generated, 1)
    generator = one.generator
    assert isinstance(generator, PixelGenerator) and one.initializer is generator
    pictures = [(p, p.image) for p in make_problems(3) if p.image is not None]
    problems = [p for p, image in pictures if p.target != int(TinyClassifier()(image[None]).logits.argmax())]
    start = initialize(generator, problems)
    reference = start.reference
    assert torch.equal(start.controls["pixels"], torch.stack([p.image for p in problems if p.image is not None]))
    assert start.controls["pixels"].data_ptr() != reference.original.data_ptr()
    with torch.no_grad():
        (scene,) = generator(start.controls, start.context)
        torch.testing.assert_close(scene.latent, reference.original_latent)
    *_, state = loop.optimize(
        generator,
        start.context,
        start.controls,
        objective_of(problems),
        lambda scene, k: scene,
        one.optimizer,
        loop.initial_state(start.controls),
    )
    assert (state.best_loss < torch.tensor(state.history[0]["total"])).all()


def test_pixels_outside_the_range_are_cut_and_keep_their_gradient(
    make_generator: Make, make_problems: Problems
) -> None:
    generator = pixels(make_generator(), embedding_controls, DESCENT, init_from_generated, 1).generator
    context = initialize(generator, make_problems(1)).context
    bright = torch.full((1, 3, 16, 16), 1.5, requires_grad=True)
    (scene,) = generator({"pixels": bright}, context)
    assert scene.image.max() == 1 and torch.autograd.grad(scene.image.sum(), bright)[0].eq(1).all()


# --- guidance of one sampling --------------------------------------------------------------------------------


def test_guidance_without_strength_is_the_start(make_generator: Make, make_problems: Problems) -> None:
    """To the last bit: with maps injected, background held and embeddings shifted."""
    generator = make_generator()
    controls, context, objective = shifted(generator, make_problems(2))
    with torch.no_grad():
        start = generator(controls, context)[-1].image
    found = guided_sampling(generator, controls, context, lambda scene: evaluate(objective, scene).total, 0.0)
    assert torch.equal(found, start)
    one = guidance(generator, embedding_controls, replace(DESCENT, lr={"classifier_guidance": 0.0}))
    assert torch.equal(one.prepare(controls, context, objective)[0]["pixels"], start)


def test_guidance_lowers_the_loss_and_more_of_it_lowers_it_more(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(3)
    controls, context, objective = shifted(generator, problems)
    context = replace(context, latent_mask=torch.ones_like(context.latent_mask))

    def loss(strength: float) -> torch.Tensor:
        one = guidance(generator, embedding_controls, replace(DESCENT, lr={"classifier_guidance": strength}))
        with torch.no_grad():
            scene = one.generator(*one.prepare(controls, context, objective))[-1]
        return evaluate(objective, scene).total

    losses = [loss(strength) for strength in (0.0, 0.1, 0.4)]
    assert (losses[1] < losses[0]).all() and (losses[2] < losses[1]).all()


def test_guidance_climbs_where_the_loss_is_turned_round(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator()
    controls, context, objective = shifted(generator, make_problems(2))
    values = []
    for sign in (1.0, -1.0):
        turned = {name: (sign * weight, term) for name, (weight, term) in objective.items()}
        one = guidance(generator, embedding_controls, DESCENT)
        with torch.no_grad():
            scene = one.generator(*one.prepare(controls, context, turned))[-1]
        values.append(evaluate(objective, scene).total)
    assert (values[0] < values[1]).all()


def test_guided_samples_do_not_know_of_each_other(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(3)
    together = guidance(generator, embedding_controls, DESCENT)
    controls, context, objective = shifted(generator, problems)
    loud = {
        "class_log_prob": (1.0, lambda scene: torch.tensor([1.0, 1e3, 1e-3]) * objective["class_log_prob"][1](scene))
    }
    plain, scaled = (together.prepare(controls, context, o)[0]["pixels"] for o in (objective, loud))
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-4)


def test_what_is_held_is_not_guided(make_generator: Make, make_problems: Problems) -> None:
    """With nothing free and the background held to the end, every latent but the last prediction is the template's."""
    generator = make_generator()
    controls, context, objective = shifted(generator, make_problems(1))
    last = len(generator.sampler.schedule) - 1
    held = replace(
        context,
        background_blend_steps=torch.ones_like(context.background_blend_steps),
        latent_mask=torch.zeros_like(context.latent_mask),
    )
    seen: list[torch.Tensor] = []
    predict = generator.predict

    def watched(z: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(z.detach())
        return predict(z, *rest)  # type: ignore[arg-type]

    generator.predict = watched  # type: ignore[method-assign, assignment]
    guided_sampling(generator, controls, held, lambda scene: evaluate(objective, scene).total, 0.5)
    assert len(seen) == last + 1
    for i in range(last + 1):
        torch.testing.assert_close(seen[i], context.original_trajectory[:, i])


def test_guidance_by_way_of_the_solver(make_generator: Make, make_problems: Problems) -> None:
    """Its answer is a picture, so that nothing is left to descend on; distances are measured as for the others."""
    generator, problems = make_generator(), make_problems(2)
    one = guidance(generator, embedding_controls, DESCENT)
    assert one.initializer is generator and isinstance(one.generator, PixelGenerator) and one.optimizer.steps == 0
    task: Any = uvce()
    answer = Solver(
        one,
        TinyClassifier(),
        task,
        RandomCrops(1, 0.0, 1.0, 1.0, False),
        ResultWarnings(generator, TinyClassifier()),
        None,
        generator.device,
        generator.prompt_to_prompt,
    )
    batch = answer.initialize(problems)
    controls = batch.controls
    assert set(controls) == {"pixels"} and len(batch.warnings) == 2
    (state,) = answer.optimize(batch, loop.initial_state(controls))
    assert state.finished and torch.equal(state.best_controls["pixels"], controls["pixels"])
    image = answer.render(state.best_controls, batch.context)[0][:, 0]
    assert torch.equal(image, controls["pixels"]) and 0 <= image.min() and image.max() <= 1
    with torch.no_grad():
        (scene,) = one.generator(controls, batch.context)
    assert state.history[0]["pixel_distance"] == pytest.approx(pixel_distance(batch.reference)(scene).tolist())


def test_what_was_chosen_is_not_chosen_again(
    make_generator: Make, make_problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed batch begins as it did, without rendering the candidates."""
    generator, problems = make_generator(), make_problems(2)
    task: Any = uvce()
    one = no_baseline(generator, embedding_controls, DESCENT)
    answer = Solver(
        one,
        TinyClassifier(),
        task,
        RandomCrops(1, 0.0, 1.0, 1.0, False),
        ResultWarnings(generator, TinyClassifier()),
        None,
        generator.device,
        generator.prompt_to_prompt,
    )
    batch = answer.initialize(problems)
    monkeypatch.setattr(loop, "choose_initialization", None)
    monkeypatch.setattr(generator, "record_originals", None)
    again = answer.initialize(problems, batch.choice)
    assert all(torch.equal(again.controls[name], batch.controls[name]) for name in batch.controls)
    assert again.warnings == batch.warnings and again.candidates == batch.candidates
    for name in ("cross_replace_steps", "background_blend_steps"):
        assert torch.equal(getattr(again.context, name), getattr(batch.context, name))
    other = answer.initialize(problems, replace(batch.choice, candidate_indices=[1, 2]))
    assert [c.cross_replace_steps for c in other.candidates] == [0.3, 0.5]
    assert other.context.cross_replace_steps.tolist() == pytest.approx([0.3, 0.5])
    assert other.context.background_blend_steps.tolist() == [0.5, 0.0]
