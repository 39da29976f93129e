"""Laws of the loop: every sample descends for itself, keeps its best iterate, and fails alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.optimization import checkpoint, loop
from classifier_lens.runner.optimization.loop import EarlyStopping, InitialChoice, OptimizationState, OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import (
    Candidate,
    Context,
    Controls,
    Initialization,
    Objective,
    Reference,
    Scene,
    UserError,
)
from classifier_lens.tasks.objectives.distances import latent_distance, pixel_distance
from classifier_lens.tasks.objectives.loss_terms import class_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.conftest import (
    Identity,
    TinyClassifier,
    context_of,
    contexts_of,
    double_precision,
    doubled,
    initialize,
    reference_of,
    rows_of,
)

Make = Callable[..., LatentDiffusion]
Problems = Callable[[int], list[CounterfactualProblem]]
JOINT = partial(loop.clip_joint_norm, max_norm=1.0)
TERMS = ("class_log_prob", "latent_distance", "pixel_distance")


def descent(**changes: Any) -> OptimizerSettings:
    settings: dict[str, Any] = {
        "method": torch.optim.Adam, "steps": 5, "lr": {"latent": 0.01, "text": 0.01, "null": 0.01}, "min_lr": None,
        "gradient_clipping": None, "keep_norm": True, "early_stopping": None,
    }  # fmt: skip
    return OptimizerSettings(**(settings | changes))


def unchanged(scene: Scene, step: int) -> Scene:
    return scene


def last_state(
    generator: Generator[Context], context: Context, objective: Objective, how: OptimizerSettings, controls: Controls
) -> OptimizationState:  # fmt: skip
    *_, state = loop.optimize(generator, context, controls, objective, unchanged, how, loop.initial_state(controls))
    return state


def soft_classifier() -> TinyClassifier:
    """One that is sure of nothing."""
    classifier = TinyClassifier()
    classifier.weight /= 20
    return classifier


def objective_of(reference: Reference, problems: list[CounterfactualProblem], *names: str) -> Objective:
    """The named terms, or the whole objective, with weights of the paper's order."""
    targets = torch.tensor([p.target for p in problems])
    terms: dict[str, Any] = {
        "class_log_prob": (1.0, class_log_prob(soft_classifier(), targets)),
        "latent_distance": (25.0, latent_distance(reference)),
        "pixel_distance": (250.0, pixel_distance(reference)),
    }
    return {name: terms[name] for name in names or TERMS}


def held(reference: Reference) -> Reference:
    """The same with nothing editable, so that both distances see every pixel."""
    masks = {name: torch.zeros_like(getattr(reference, name)) for name in ("mask", "latent_mask")}
    return replace(reference, **masks)


Batch = tuple[LatentDiffusion, Controls, DiffusionContext, Reference, list[CounterfactualProblem]]


@pytest.fixture
def batch(make_generator: Make, make_problems: Problems) -> Batch:
    generator, problems = make_generator(), make_problems(3)
    start = initialize(generator, problems)
    return generator, start.controls, start.context, held(start.reference), problems


@pytest.mark.parametrize(("method", "rate"), [(torch.optim.Adam, 0.01), (torch.optim.SGD, 0.1)], ids=["adam", "sgd"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_falls_within_five_steps(batch: Batch, term: str, method: Any, rate: float) -> None:
    generator, controls, context, reference, problems = batch
    how = descent(method=method, lr={name: rate for name in controls}, gradient_clipping=JOINT)
    state = last_state(generator, context, objective_of(reference, problems, term), how, controls)
    first, best = torch.tensor(state.history[0][term]), state.best_loss / {TERMS[0]: 1, TERMS[1]: 25}.get(term, 250)
    assert (best < first).all() and (state.best_step > 0).all()


def test_a_step_moves_every_control_that_has_a_rate_and_no_other(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    how = descent(steps=1, lr={"latent": 0.01, "text": 0.0})
    state = last_state(generator, context, objective_of(reference, problems), how, controls)
    assert not torch.equal(state.controls["latent"], controls["latent"])
    assert torch.equal(state.controls["text"], controls["text"])
    assert torch.equal(state.controls["null"], controls["null"])
    assert (controls["text"] == 0).all(), "the start itself must not be written to"


def test_the_best_iterate_is_the_argmin_per_sample(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    objective = objective_of(reference, problems)
    how = descent()
    state = last_state(generator, context, objective, how, controls)
    totals = torch.tensor([h["total"] for h in state.history])
    assert len(totals) == how.steps + 1
    assert torch.equal(state.best_loss, totals.min(dim=0).values)
    assert torch.equal(state.best_step, totals.argmin(dim=0))
    with torch.no_grad():
        again = evaluate(objective, generator(state.best_controls, context)[-1]).total
    assert torch.equal(again, state.best_loss)


def test_a_sample_that_only_gets_worse_keeps_its_start() -> None:
    """By hand: descent at a rate of 0.1 multiplies sample 0 by 1 - 0.1 · 2 / 3, sample 1 by 1 - 0.1 · 120 / 3 = -3."""
    steepness = torch.tensor([1.0, 60.0])
    objective: Objective = {"bowl": (1.0, lambda s: steepness * s.image.square().flatten(1).mean(dim=1))}
    how = descent(method=torch.optim.SGD, lr={"latent": 0.1}, keep_norm=False)
    state = last_state(Identity(), context_of(2), objective, how, {"latent": torch.ones(2, 3, 1, 1)})
    assert state.best_step.tolist() == [5, 0] and state.best_loss.tolist() == pytest.approx([(14 / 15) ** 10, 60.0])
    assert state.controls["latent"][1, 0].item() == pytest.approx(-(3.0**5), rel=1e-4)
    assert torch.equal(state.best_controls["latent"][1], torch.ones(3, 1, 1))


def test_the_best_iterate_is_judged_without_augmentation() -> None:
    shown: list[int] = []

    def augment(scene: Scene, step: int) -> Scene:
        shown.append(step)
        return replace(scene, views=scene.views + 100.0)

    objective: Objective = {"views": (1.0, lambda s: s.views.flatten(1).mean(dim=1))}
    state = loop.initial_state({"latent": torch.ones(2, 3, 1, 1)})
    how = descent(steps=2, method=torch.optim.SGD, lr={"latent": 0.1}, keep_norm=False)
    *_, state = loop.optimize(Identity(), context_of(2), state.controls, objective, augment, how, state)
    assert shown == [0, 1] and (state.best_loss < 1).all()


def test_the_start_latent_keeps_its_norm_per_sample(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    controls = {**controls, "latent": controls["latent"] * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]}
    norms = controls["latent"].flatten(1).norm(dim=1)
    objective = objective_of(reference, problems)
    how = descent(steps=3, lr={"latent": 0.5})
    for state in loop.optimize(generator, context, controls, objective, unchanged, how, loop.initial_state(controls)):
        torch.testing.assert_close(state.controls["latent"].flatten(1).norm(dim=1), norms)
    assert not torch.allclose(state.controls["latent"], controls["latent"], atol=0.1)
    free = last_state(generator, context, objective, descent(lr={"latent": 0.5}, keep_norm=False), controls)
    assert not torch.allclose(free.controls["latent"].flatten(1).norm(dim=1), norms, rtol=1e-3)


# --- samples that fail ---------------------------------------------------------------------------------------


class Trap:
    """A term of value zero that, from evaluation `at` on, spoils one sample: evaluations come in pairs per step, for
    the gradient and without augmentation."""

    def __init__(self, factor: float, at: int, sample: int = 1) -> None:
        self.factor, self.at, self.sample, self.calls = factor, at, sample, 0

    def __call__(self, scene: Scene) -> Tensor:
        weights = torch.zeros(len(scene.image))
        if self.calls // 2 >= self.at:
            weights[self.sample] = self.factor
        self.calls += 1
        return weights * scene.image.flatten(1).mean(dim=1)


def kink(scene: Scene) -> Tensor:
    """Zero for every sample, with a gradient that is not finite for sample 1."""
    level = scene.image.flatten(1).mean(dim=1)
    return torch.stack([torch.sqrt(0 * v) if i == 1 else 0 * v for i, v in enumerate(level)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_sample_is_given_up_and_the_others_do_not_notice(batch: Batch, bad: float) -> None:
    generator, controls, context, reference, problems = batch
    states = []
    for factor in (0.0, bad):
        objective: Objective = {**objective_of(reference, problems), "trap": (1.0, Trap(factor, at=2))}
        states.append(last_state(generator, context, objective, descent(), controls))
    good, spoilt = states
    assert good.failures == [None] * 3
    assert spoilt.failures == [None, "step 2: the term trap is not finite", None]
    others = [0, 2]
    for name in controls:
        assert torch.equal(good.best_controls[name][others], spoilt.best_controls[name][others])
        assert torch.equal(good.controls[name][others], spoilt.controls[name][others])
        assert spoilt.controls[name].isfinite().all()
    assert torch.equal(good.best_loss[others], spoilt.best_loss[others])
    assert torch.equal(good.best_step[others], spoilt.best_step[others])


def test_a_sample_that_was_given_up_stands_still(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    objective: Objective = {**objective_of(reference, problems), "trap": (1.0, Trap(math.nan, at=2))}
    seen = [
        state.controls["text"][1].clone()
        for state in loop.optimize(
            generator, context, controls, objective, unchanged, descent(), loop.initial_state(controls)
        )
    ]
    assert not torch.equal(seen[0], seen[1]), "it moved before"
    assert all(torch.equal(later, seen[1]) for later in seen[2:])


def test_a_gradient_that_is_not_finite_fails_its_sample(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    objective: Objective = {**objective_of(reference, problems), "kink": (1.0, kink)}
    state = last_state(generator, context, objective, descent(steps=2), controls)
    assert state.failures == [None, "step 0: the gradient of latent is not finite", None]
    assert state.controls["latent"].isfinite().all() and state.best_controls["latent"].isfinite().all()


def test_a_term_that_only_the_crops_spoil_is_named() -> None:
    def augment(scene: Scene, step: int) -> Scene:
        return replace(scene, views=scene.views * torch.tensor([1.0, math.nan])[:, None, None, None, None])

    objective: Objective = {"views": (1.0, lambda s: s.views.flatten(1).mean(dim=1))}
    how = descent(steps=2, method=torch.optim.SGD, lr={"latent": 0.1}, keep_norm=False)
    start = loop.initial_state({"latent": torch.ones(2, 3, 1, 1)})
    *_, state = loop.optimize(Identity(), context_of(2), start.controls, objective, augment, how, start)
    assert state.failures == [None, "step 0: the term views is not finite"]


# --- rates, clipping and averages by hand --------------------------------------------------------------------


def test_cosine_rates_per_control() -> None:
    how = descent(steps=4, lr={"latent": 0.001, "text": 0.1, "null": 0.02}, min_lr={"text": 0.02, "latent": 0.01})
    assert [how.lr_at("text", k) for k in (0, 2, 4)] == pytest.approx([0.1, 0.06, 0.02])
    assert [how.lr_at("null", k) for k in (0, 2, 4)] == pytest.approx([0.02, 0.01, 0.0])
    assert how.lr_at("text", 1) == pytest.approx(0.02 + 0.08 * (1 + math.sqrt(0.5)) / 2)
    assert [how.lr_at("latent", k) for k in (0, 2, 4)] == pytest.approx([0.001, 0.0055, 0.01]), (
        "it ends where it is told"
    )
    constant = descent(lr={"latent": 0.3})
    assert {constant.lr_at("latent", k) for k in range(5)} == {0.3}


def test_steps_follow_the_rates() -> None:
    objective: Objective = {"sum": (1.0, lambda s: s.image.flatten(1).sum(dim=1))}
    how = descent(
        steps=2, method=torch.optim.SGD, lr={"latent": 0.4, "shift": 0.1}, min_lr={"shift": 0.1}, keep_norm=False
    )
    start = {"latent": torch.zeros(1, 3, 1, 1), "shift": torch.zeros(1, 3, 1, 1)}
    state = last_state(Identity(), context_of(1), objective, how, start)
    torch.testing.assert_close(state.controls["latent"], torch.full((1, 3, 1, 1), -(0.4 + 0.2)))  # 0.4 -> 0 by a cosine
    torch.testing.assert_close(state.controls["shift"], torch.full((1, 3, 1, 1), -(0.1 + 0.1)))


def test_clipping_is_per_sample_and_over_all_controls() -> None:
    slope = torch.tensor([[3.0, 0.0, 0.0], [0.03, 0.0, 0.0]])
    objective: Objective = {"slope": (1.0, lambda s: (slope * s.image.flatten(1)).sum(dim=1))}
    how = descent(
        steps=1, method=torch.optim.SGD, lr={"latent": 1.0, "shift": 1.0},
        gradient_clipping=partial(loop.clip_joint_norm, max_norm=1.5 * math.sqrt(2)), keep_norm=False,
    )  # fmt: skip
    start = {name: torch.zeros(2, 3, 1, 1) for name in ("latent", "shift")}
    state = last_state(Identity(), context_of(2), objective, how, start)
    for name in start:  # both controls have the gradient: (3, 3) has length 3 √2 and is halved, (0.03, 0.03) is short
        torch.testing.assert_close(state.controls[name].flatten(1)[:, 0], torch.tensor([-1.5, -0.03]))


def test_the_largest_element_is_clipped_in_each_sample_and_each_control() -> None:
    """As PyTorch clips each of them alone by the norm `inf`."""
    draw = torch.Generator().manual_seed(0)
    gradients = {name: torch.randn(3, 4, 5, generator=draw) for name in ("latent", "text")}
    gradients["text"][1] *= 1e-3  # below the bound
    wanted = {name: gradient.clone() for name, gradient in gradients.items()}
    for gradient in wanted.values():
        for own in gradient:
            leaf = torch.zeros_like(own, requires_grad=True)
            leaf.grad = own
            torch.nn.utils.clip_grad_norm_(leaf, 0.05, math.inf)
    loop.clip_largest_element(gradients, 0.05)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-6, atol=0)
        assert gradient.abs().amax() == pytest.approx(0.05, rel=1e-4)


def test_the_published_cosine_of_the_start_latent_grows() -> None:
    """DiG-IN's code gives all controls one end, a tenth of the text's rate: z_T's rates sum to 0.0195, not 0.0020."""
    how = descent(steps=15, lr={"latent": 0.00025, "text": 0.025}, min_lr={"latent": 0.0025, "text": 0.0025})
    leaf = torch.zeros(1, requires_grad=True)
    theirs = torch.optim.SGD([{"params": [leaf], "lr": 0.00025}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 15, eta_min=0.0025)
    rates = []
    for _ in range(15):
        rates.append(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
    assert [how.lr_at("latent", k) for k in range(15)] == pytest.approx(rates)
    assert sum(rates) == pytest.approx(0.0195) and sum(how.lr_at("latent", k) for k in range(15)) == pytest.approx(
        0.0195
    )
    plain = replace(how, min_lr={"latent": 0.0, "text": 0.0})
    assert sum(plain.lr_at("latent", k) for k in range(15)) == pytest.approx(0.0020)


def test_the_last_predictions_are_averaged_with_growing_weights() -> None:
    """The three scenes show 1, 2 and 1 times the control: the gradient is 1/6 + 2 · 2/6 + 3/6 = 4/3."""
    objective: Objective = {"red": (1.0, lambda s: s.image[:, 0].flatten(1).sum(dim=1))}
    how = descent(steps=1, method=torch.optim.SGD, lr={"latent": 1.0}, keep_norm=False)
    state = last_state(Identity(scenes=3), context_of(1), objective, how, {"latent": torch.ones(1, 3, 1, 1)})
    torch.testing.assert_close(state.controls["latent"].flatten(), torch.tensor([1 - 4 / 3, 1.0, 1.0]))
    assert state.history[0]["total"] == [1.0], "what counts is the last prediction alone"


def test_no_steps_give_the_start(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    how = descent(steps=0)
    states = list(
        loop.optimize(
            generator,
            context,
            controls,
            objective_of(reference, problems),
            unchanged,
            how,
            loop.initial_state(controls),
        )
    )
    assert len(states) == 1 and states[0].finished and states[0].best_step.tolist() == [0, 0, 0]
    assert all(torch.equal(states[0].best_controls[name], controls[name]) for name in controls)


def test_nothing_to_descend_on_gives_the_start() -> None:
    objective: Objective = {"red": (1.0, lambda s: s.image[:, 0].flatten(1).sum(dim=1))}
    start = {"latent": torch.ones(2, 3, 1, 1)}
    state = last_state(Identity(), context_of(2), objective, descent(steps=2, lr={"latent": 0.0}), start)
    assert state.finished and torch.equal(state.best_controls["latent"], start["latent"])


def test_the_schedule_is_chosen_per_sample() -> None:
    """Sample 0 wants a small value, sample 1 a large one; the candidates add 0, 1 and 2."""
    sign = torch.tensor([1.0, -1.0])
    objective: Objective = {"signed": (1.0, lambda s: sign * s.image[:, 0].flatten(1).sum(dim=1))}
    controls = {"latent": torch.zeros(2, 3, 1, 1)}
    candidates = [Candidate(cross_replace_steps=value) for value in (1.0, 0.0, 2.0)]
    start = Initialization(controls, context_of(2, 1.0), reference_of(2), candidates, [[], []], {})
    choice = loop.choose_initialization(Identity(), start, objective)
    assert choice == InitialChoice([1, 2], {})
    same, chosen = Identity().select(start, choice.candidate_indices)
    assert torch.equal(same["latent"], controls["latent"]) and chosen.cross_replace_steps.tolist() == [0.0, 2.0]


def test_each_sample_begins_from_its_best_candidate() -> None:
    """Sample 0 wants a low sum and sample 1 a high one; ties go to the first."""
    sign = torch.tensor([1.0, -1.0])
    objective: Objective = {"signed": (1.0, lambda s: sign * s.image[:, 0].flatten(1).sum(dim=1))}
    candidates = [Candidate(initial_prompt=value) for value in (2, 1, 5, 1, 5)]
    start = Initialization(
        {"latent": torch.zeros(2, 3, 1, 1)}, context_of(2), reference_of(2), candidates, [[], []], {}
    )
    assert loop.choose_initialization(Identity(), start, objective).candidate_indices == [1, 2]


def test_a_sample_that_has_enough_stands_still_and_all_of_them_end_the_descent() -> None:
    """Sums fall by the rate each step: sample 0 is below the bound from the start, sample 1 after two more."""
    objective: Objective = {"sum": (1.0, lambda s: s.image.flatten(1).sum(dim=1))}
    controls = {"latent": torch.tensor([0.0, 9.0])[:, None, None, None].expand(2, 3, 1, 1).clone()}
    how = descent(
        method=torch.optim.SGD,
        lr={"latent": 1.0},
        steps=50,
        keep_norm=False,
        early_stopping=EarlyStopping(2, {"sum": 22.0, "other": -1e9}),
    )
    *_, last = loop.optimize(
        Identity(), context_of(2), controls, objective, unchanged, how, loop.initial_state(controls)
    )
    sums = [evaluation["sum"] for evaluation in last.history]
    assert [first for first, _ in sums] == [0.0, -3.0, -3.0, -3.0], "two hits in a row, at steps 0 and 1"
    assert [second for _, second in sums] == [27.0, 24.0, 21.0, 18.0] and last.finished
    assert not EarlyStopping(1, {"other": 1.0})(last.history, 0), "no such term, never enough"
    two = [{"sum": [0.0], "more": [0.0], "total": [0.0]}]
    assert not EarlyStopping(1, {"sum": 1.0})(two, 0), "a term without a bound"
    assert EarlyStopping(1, {"sum": 1.0, "more": 1.0})(two, 0) and not EarlyStopping(1, {"sum": 1.0, "more": -1.0})(
        two, 0
    )


def test_tokens_keep_their_lengths() -> None:
    """Each one its own, whatever the gradient."""
    objective: Objective = {"sum": (1.0, lambda s: s.image.flatten(1).sum(dim=1))}
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    class Sums(Identity):
        def __call__(self, controls: Controls, context: DiffusionContext) -> list[Scene]:
            picture = controls["tokens"].sum(dim=(1, 2))[:, None, None, None]
            return [Scene(picture, picture, picture[:, None])]

    how = descent(lr={"tokens": 0.1})
    *_, last = loop.optimize(
        Sums(), context_of(2), {"tokens": tokens}, objective, unchanged, how, loop.initial_state({"tokens": tokens})
    )
    torch.testing.assert_close(last.controls["tokens"].norm(dim=-1), tokens.norm(dim=-1))
    assert last.history[-1]["sum"] < last.history[0]["sum"]
    *_, free = loop.optimize(
        Sums(),
        context_of(2),
        {"tokens": tokens},
        objective,
        unchanged,
        replace(how, keep_norm=False),
        loop.initial_state({"tokens": tokens}),
    )
    assert not torch.allclose(free.controls["tokens"].norm(dim=-1), tokens.norm(dim=-1), atol=0.05)


class Noisy(Identity):
    """Every step meets a number of its own, which the picture is moved by."""

    def step_context(self, context: DiffusionContext, k: int) -> DiffusionContext:
        return replace(context, cross_replace_steps=torch.full_like(context.cross_replace_steps, float(k + 1)))


def test_an_iterate_is_judged_with_the_context_itself() -> None:
    """And descended on with what its step meets: the gradient of a square shows which."""
    seen: list[float] = []

    def square(scene: Scene) -> torch.Tensor:
        seen.append(scene.image[0, 0].item())
        return scene.image.square().flatten(1).sum(dim=1)

    controls = {"latent": torch.zeros(1, 3, 1, 1)}
    how = descent(method=torch.optim.SGD, lr={"latent": 0.25}, steps=2, keep_norm=False)
    states = list(
        loop.optimize(
            Noisy(), context_of(1), controls, {"square": (1.0, square)}, unchanged, how, loop.initial_state(controls)
        )
    )
    # Step 0 meets 1: 0 - 0.25 · 2 · 1 = -0.5; step 1 meets 2: -0.5 - 0.25 · 2 · 1.5 = -1.25.
    assert seen == [1.0, 0.0, 1.5, -0.5, -1.25]
    assert states[-1].best_step.tolist() == [0] and states[-1].history[-1]["square"] == [3 * 1.25**2]


# --- batches, repetitions and resumed runs -------------------------------------------------------------------


def test_a_batch_of_eight_gives_the_verdicts_of_eight_runs(make_generator: Make, make_problems: Problems) -> None:
    generator, problems = make_generator(), make_problems(8)
    start = initialize(generator, problems)
    context, reference = start.context, held(start.reference)
    how = descent(steps=3, lr={"latent": 0.1, "text": 0.1, "null": 0.1})
    targets = torch.tensor([p.target for p in problems])

    def verdicts(state: OptimizationState, context: DiffusionContext) -> tuple[list[int], list[int]]:
        with torch.no_grad():
            image = generator(state.best_controls, context)[-1].image
        return state.best_step.tolist(), TinyClassifier()(image).logits.argmax(dim=1).tolist()

    together = last_state(generator, context, objective_of(reference, problems), how, start.controls)
    steps, predicted = verdicts(together, context)
    assert len(set(steps)) > 1 or len(set(predicted)) > 1, "the samples must differ for this to say anything"
    for i in range(8):
        row = slice(i, i + 1)
        own, controls = rows_of(context, row), {name: value[row] for name, value in start.controls.items()}
        alone = last_state(generator, own, objective_of(rows_of(reference, row), problems[row]), how, controls)
        assert verdicts(alone, own) == (steps[row], predicted[row]), (i, targets[i])


def test_a_sample_has_the_same_gradient_alone_and_among_eight(make_generator: Make, make_problems: Problems) -> None:
    """In double precision, where the order of a sum does not hide what the samples might do to each other."""
    generator, problems = make_generator(), make_problems(8)
    start = initialize(generator, problems)
    everyone = {name: value.double() for name, value in start.controls.items()}
    context, reference = doubled(contexts_of(generator, start)[-1]), doubled(start.reference)

    def gradients(
        context: DiffusionContext, reference: Reference, controls: Controls, problems: list[CounterfactualProblem]
    ) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in controls.items()}
        total = evaluate(objective_of(reference, problems), generator(leaves, context)[-1]).total.sum()
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    with double_precision(generator):
        together = gradients(context, reference, everyone, problems)
        for i in (0, 3, 7):
            row = slice(i, i + 1)
            own = {name: value[row] for name, value in everyone.items()}
            alone = gradients(rows_of(context, row), rows_of(reference, row), own, problems[row])
            for name, value in alone.items():
                assert (value - together[name][row]).norm() <= 1e-9 * value.norm(), (i, name)


def test_views_in_bfloat16_change_the_descent_a_little_and_nothing_that_is_reported(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    objective = objective_of(reference, problems, "class_log_prob")
    settings: dict[str, Any] = {
        "method": torch.optim.SGD, "steps": 1, "lr": dict.fromkeys(controls, 10.0), "keep_norm": False
    }  # fmt: skip
    full, half = (
        last_state(generator, context, objective, descent(**settings, autocast=word), controls)
        for word in (None, "bfloat16")
    )
    assert half.history[0] == full.history[0]
    for name, value in full.controls.items():
        error = (half.controls[name] - value).norm() / (value - controls[name]).norm()
        assert 0 < error < 0.02, (name, error)


@pytest.mark.parametrize("wrong", [{"betas": (2.0, 0.9)}, {"eps": -1.0}, {"nothing": 1}])
def test_settings_that_torch_refuses_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="^optimizer.method: "):
        OptimizerSettings(partial(torch.optim.Adam, **wrong), 1, {"latent": 0.1}, None, None, True, None)


def test_the_same_batch_gives_the_same_bits(batch: Batch) -> None:
    generator, controls, context, reference, problems = batch
    first, second = (
        last_state(generator, context, objective_of(reference, problems), descent(steps=3), controls) for _ in range(2)
    )
    assert first.history == second.history
    assert all(torch.equal(first.best_controls[name], second.best_controls[name]) for name in controls)


@pytest.mark.parametrize(
    "method",
    [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD],
    ids=["adam", "momentum", "sgd"],
)
def test_resuming_at_any_step_gives_the_bits_of_an_undisturbed_run(batch: Batch, method: Any, tmp_path: Any) -> None:
    generator, controls, context, reference, problems = batch
    objective = objective_of(reference, problems)
    how = descent(method=method, steps=3, min_lr={"latent": 0.001}, gradient_clipping=JOINT)
    for k, state in enumerate(
        loop.optimize(generator, context, controls, objective, unchanged, how, loop.initial_state(controls))
    ):
        checkpoint.save(tmp_path / f"{k}.safetensors", state, {})
    for k in range(how.steps + 1):
        again = checkpoint.load(tmp_path / f"{k}.safetensors", torch.device("cpu"), {}, 4)
        assert again.step == min(k + 1, how.steps) and again.finished == (k == how.steps)
        *_, again = again, *loop.optimize(generator, context, controls, objective, unchanged, how, again)
        assert again.finished and again.history == state.history and again.failures == state.failures
        assert torch.equal(again.best_loss, state.best_loss) and torch.equal(again.best_step, state.best_step)
        for name in controls:
            assert torch.equal(again.best_controls[name], state.best_controls[name])
            assert torch.equal(again.controls[name], state.controls[name])
