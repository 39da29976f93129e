"""What answers in the method's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from classifier_lens.models.generator.guidance import guided_sampling
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.pixel_space import PixelDescent, as_drawn
from classifier_lens.models.generator.prompt_diffusion import embeddings
from classifier_lens.runner.baselines.methods import Baseline, guidance, none, pixels, start_only
from classifier_lens.runner.batch import Solver
from classifier_lens.runner.configuration.compose import configure
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import Descent
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.results.result_warnings import Doubts
from classifier_lens.runner.types import Anchor, Controls, Objective, UserError
from classifier_lens.tasks.objectives.distances import pixel_distance
from classifier_lens.tasks.objectives.loss_terms import class_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import Flip
from tests.conftest import TinyClassifier, uvce

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[Flip]]
DESCENT = Descent(torch.optim.Adam, 4, {"latent": 0.1, "pixels": 0.01, "guidance": 0.2}, None, None, True, None)


def objective_of(problems: list[Flip], sharpness: float = 1.0) -> Objective:
    """The class alone, by a classifier that is less sure for a lower sharpness."""
    classifier, targets = TinyClassifier(), torch.tensor([p.target for p in problems])
    classifier.weight *= sharpness
    return {"class_log_prob": (1.0, class_log_prob(classifier, targets))}


def shifted(generator: LatentDiffusion, problems: list[Flip]) -> tuple[Controls, Anchor, Objective]:
    """A batch's start, with offsets to the embeddings and with maps and background held for half of the chain."""
    start = generator.begin(problems, {"inject": [0.5], "blend": [0.5]})
    draw = torch.Generator().manual_seed(0)
    controls = {
        name: value if name == "latent" else 0.1 * torch.randn(value.shape, generator=draw)
        for name, value in start.controls.items()
    }
    return controls, start.anchors[0], objective_of(problems, 0.05)


def test_the_method_itself_and_its_start(make_generator: Make) -> None:
    generator = make_generator()
    own = none(generator, embeddings, DESCENT)
    assert own.begin is own.generator is generator and own.descent == DESCENT
    start = start_only(generator, embeddings, DESCENT)
    assert start.begin is start.generator is generator
    assert start.descent.steps == 0 and start.descent.lr == DESCENT.lr


@pytest.mark.parametrize("baseline", [none, start_only, partial(pixels, begun=as_drawn, most=1)])
def test_what_descends_begins_where_it_starts(
    baseline: Baseline, make_generator: Make, make_problems: Problems
) -> None:
    one = baseline(make_generator(), embeddings, DESCENT)
    start = one.begin.begin(make_problems(1), {})
    assert one.finish(start.controls, start.anchors[0], {}) is start.controls


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"task\.baseline=magic: allowed are none, start_only, pixels, guidance, y"):
        configure(["task.baseline=magic"])


def test_of_the_baselines_a_run_has_the_one_that_is_asked_for() -> None:
    for overrides in ([], ["task=attention_maps"]):
        assert set(configure(overrides)["baseline"]) == {"none"}
    asked = configure(["task.baseline=yosinski", "baseline.yosinski.steps=3"])["baseline"]
    assert set(asked) == {"yosinski"} and asked["yosinski"]["steps"] == 3


# --- pixels --------------------------------------------------------------------------------------------------


def test_pixels_start_at_the_original_and_descend(make_generator: Make, make_problems: Problems) -> None:
    plain = make_generator()
    one = pixels(plain, embeddings, DESCENT, as_drawn, 1)
    generator = one.generator
    assert isinstance(generator, PixelDescent) and one.begin is generator
    pictures = [(p, p.image) for p in make_problems(3) if p.image is not None]
    problems = [p for p, image in pictures if p.target != int(TinyClassifier()(image[None]).logits.argmax())]
    start = generator.begin(problems, {})
    (anchor,) = start.anchors
    assert torch.equal(start.controls["pixels"], torch.stack([p.image for p in problems if p.image is not None]))
    assert start.controls["pixels"].data_ptr() != anchor.original.data_ptr()
    with torch.no_grad():
        (scene,) = generator(start.controls, anchor)
        torch.testing.assert_close(scene.latent, anchor.encoded)
    *_, state = loop.optimise(
        generator, anchor, objective_of(problems), lambda scene, k: scene, one.descent, loop.begin(start.controls)
    )
    assert (state.best_total < torch.tensor(state.history[0]["total"])).all()


def test_pixels_outside_the_range_are_cut_and_keep_their_gradient(
    make_generator: Make, make_problems: Problems
) -> None:
    generator = pixels(make_generator(), embeddings, DESCENT, as_drawn, 1).generator
    anchor = generator.begin(make_problems(1), {}).anchors[0]
    bright = torch.full((1, 3, 16, 16), 1.5, requires_grad=True)
    (scene,) = generator({"pixels": bright}, anchor)
    assert scene.image.max() == 1 and torch.autograd.grad(scene.image.sum(), bright)[0].eq(1).all()


# --- guidance of one sampling --------------------------------------------------------------------------------


def test_guidance_without_strength_is_the_start(make_generator: Make, make_problems: Problems) -> None:
    """To the last bit: with maps injected, background held and embeddings shifted."""
    generator = make_generator()
    controls, anchor, objective = shifted(generator, make_problems(2))
    with torch.no_grad():
        start = generator(controls, anchor)[-1].image
    found = guided_sampling(generator, controls, anchor, lambda scene: evaluate(objective, scene).total, 0.0)
    assert torch.equal(found, start)
    one = guidance(generator, embeddings, replace(DESCENT, lr={"guidance": 0.0}))
    assert torch.equal(one.finish(controls, anchor, objective)["pixels"], start)


def test_guidance_lowers_the_loss_and_more_of_it_lowers_it_more(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(3)
    controls, anchor, objective = shifted(generator, problems)
    anchor = replace(anchor, latent_mask=torch.ones_like(anchor.latent_mask))

    def loss(strength: float) -> torch.Tensor:
        one = guidance(generator, embeddings, replace(DESCENT, lr={"guidance": strength}))
        with torch.no_grad():
            scene = one.generator(one.finish(controls, anchor, objective), anchor)[-1]
        return evaluate(objective, scene).total

    losses = [loss(strength) for strength in (0.0, 0.1, 0.4)]
    assert (losses[1] < losses[0]).all() and (losses[2] < losses[1]).all()


def test_guidance_climbs_where_the_loss_is_turned_round(make_generator: Make, make_problems: Problems) -> None:
    generator = make_generator()
    controls, anchor, objective = shifted(generator, make_problems(2))
    values = []
    for sign in (1.0, -1.0):
        turned = {name: (sign * weight, term) for name, (weight, term) in objective.items()}
        one = guidance(generator, embeddings, DESCENT)
        with torch.no_grad():
            scene = one.generator(one.finish(controls, anchor, turned), anchor)[-1]
        values.append(evaluate(objective, scene).total)
    assert (values[0] < values[1]).all()


def test_guided_samples_do_not_know_of_each_other(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(3)
    together = guidance(generator, embeddings, DESCENT)
    controls, anchor, objective = shifted(generator, problems)
    loud = {
        "class_log_prob": (1.0, lambda scene: torch.tensor([1.0, 1e3, 1e-3]) * objective["class_log_prob"][1](scene))
    }
    plain, scaled = (together.finish(controls, anchor, o)["pixels"] for o in (objective, loud))
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-4)


def test_what_is_held_is_not_guided(make_generator: Make, make_problems: Problems) -> None:
    """With nothing free and the background held to the end, every latent but the last prediction is the template's."""
    generator = make_generator()
    controls, anchor, objective = shifted(generator, make_problems(1))
    last = len(generator.sampler.schedule) - 1
    held = replace(anchor, blend=torch.ones_like(anchor.blend), latent_mask=torch.zeros_like(anchor.latent_mask))
    seen: list[torch.Tensor] = []
    predict = generator.predict

    def watched(z: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(z.detach())
        return predict(z, *rest)  # type: ignore[arg-type]

    generator.predict = watched  # type: ignore[method-assign, assignment]
    guided_sampling(generator, controls, held, lambda scene: evaluate(objective, scene).total, 0.5)
    assert len(seen) == last + 1
    for i in range(last + 1):
        torch.testing.assert_close(seen[i], anchor.templates[:, i])


def test_guidance_by_way_of_the_solver(make_generator: Make, make_problems: Problems) -> None:
    """Its answer is a picture, so that nothing is left to descend on; distances are measured as for the others."""
    generator, problems = make_generator(), make_problems(2)
    one = guidance(generator, embeddings, DESCENT)
    assert one.begin is generator and isinstance(one.generator, PixelDescent) and one.descent.steps == 0
    task: Any = uvce()
    answer = Solver(
        one, TinyClassifier(), task, RandomCrops(1, 0.0, 1.0, 1.0, False), Doubts(generator, TinyClassifier()), None,
        generator.device,
    )  # fmt: skip
    controls, anchor, notes, _ = answer.start(problems)
    assert set(controls) == {"pixels"} and len(notes) == 2
    (state,) = answer.states(problems, anchor, loop.begin(controls))
    assert state.finished and torch.equal(state.best["pixels"], controls["pixels"])
    picture = answer.render(state.best, anchor)[0][:, 0]
    assert torch.equal(picture, controls["pixels"]) and 0 <= picture.min() and picture.max() <= 1
    with torch.no_grad():
        (scene,) = one.generator(controls, anchor)
    assert state.history[0]["pixel_distance"] == pytest.approx(pixel_distance(anchor)(scene).tolist())


def test_what_was_chosen_is_not_chosen_again(
    make_generator: Make, make_problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed batch begins as it did, without rendering the candidates."""
    generator, problems = make_generator(), make_problems(2)
    task: Any = uvce()
    one = none(generator, embeddings, DESCENT)
    answer = Solver(
        one, TinyClassifier(), task, RandomCrops(1, 0.0, 1.0, 1.0, False), Doubts(generator, TinyClassifier()), None,
        generator.device,
    )  # fmt: skip
    controls, anchor, notes, origin = answer.start(problems)
    monkeypatch.setattr(loop, "choose", None)
    monkeypatch.setattr(generator, "find", None)
    again, same, noted, _ = answer.start(problems, origin)
    assert all(torch.equal(again[name], controls[name]) for name in controls) and noted == notes
    assert torch.equal(same.inject, anchor.inject) and torch.equal(same.blend, anchor.blend)
    _, other, _, _ = answer.start(problems, replace(origin, inject=[0.25, 0.5], blend=[0.5, 0.0]))
    assert other.inject.tolist() == [0.25, 0.5] and other.blend.tolist() == [0.5, 0.0]
