"""The runner with the published settings computes what the published loop does, on the shipped weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.samplers import Ddim
from classifier_lens.runner.batch import Solver
from classifier_lens.runner.configuration.compose import build, configure
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.run import Parts, problems_of, solver
from classifier_lens.runner.types import Anchor, Controls, Problem, Scene
from classifier_lens.scripts.bench.published_loop import Course, PublishedLoop
from tests.conftest import double_precision, doubled

# The planted world's own sizes and classifiers, and all else as experiment=dig_in/... has it.
PUBLISHED = (
    "generator.last=3", "generator.clamp_gradient=false", "generator.blend_from=0", "generator.null_text.rate=0.01",
    "generator.null_text.last_update=true", "generator.schedules={inject: [0.3, 0.4, 0.5], blend: [0.0, 0.3]}",
    *(f"generator.lr_scale.{name}=1.0" for name in ("latent", "text", "null")),
    "augment.redraw=true", "augment.min_share=0.5", "augment.crops=4", "augment.noise=0.05",
    "generator.steps=10", "optimizer.steps=5", "limit=1", "batch=1",
)  # fmt: skip
STEPS = 10  # of the sampler
SAME = 2e-4  # of what five steps of Adam change, in double precision: each step multiplies what differs by about ten


def asked(*words: str) -> tuple[Parts, Solver, list[Any]]:
    config = configure([*PUBLISHED, *words])
    parts = build(config)
    answer = solver(parts)
    return parts, answer, problems_of(parts, config, answer)[0]


@contextmanager
def precise(parts: Parts, *networks: Any) -> Iterator[None]:
    """Generator, noise levels and classifiers in double precision."""
    generator = parts.diffusion
    assert isinstance(generator, LatentDiffusion) and isinstance(generator.sampler, Ddim)
    plan = generator.sampler.schedule
    levels = replace(plan, alphas=plan.alphas.double(), alphas_next=plan.alphas_next.double())
    generator.sampler = replace(generator.sampler, schedule=levels)
    for network in networks:
        network.double()
    with double_precision(generator):
        yield


def descended(answer: Solver, problems: list[Any], controls: Controls, anchor: Anchor) -> Controls:
    *_, state = answer.states(problems, anchor, loop.begin(controls))
    assert state.step == 5
    return state.controls


def crops(parts: Parts, problem: Problem, image: Tensor, k: int, left: int) -> Scene:
    """What the runner cuts of the image of an x0-prediction that is followed by `left` others, at step k."""
    return parts.augment(Scene(image, image, image[:, None], left), [problem.seed], k, parts.classifier.size)


def agree(found: Controls, wanted: Controls, before: Controls) -> None:
    """Both change the controls alike."""
    for name, value in wanted.items():
        change = value.reshape(found[name].shape) - before[name]
        off = float((found[name] - before[name] - change).norm() / change.norm())
        print(f"{name}: {off:.1e}")
        assert off < SAME, name


def gap(parts: Parts, problem: Any, rival: Any) -> Callable[[Tensor, Tensor, int, int], Tensor]:
    """p_g(y|x) - p_f(y|x), each over crops of the classifier's own size."""

    def loss(image: Tensor, z: Tensor, k: int, left: int) -> Tensor:
        scene = crops(parts, problem, image, k, left)
        assert scene.views.shape[-1] == 64 and scene.views_at(48).shape[-1] == 48
        ours, theirs = (
            network(scene.views_at(network.size)[0]).logits.softmax(dim=1)[:, problem.target].mean()
            for network in (parts.classifier, rival)
        )
        return theirs - ours

    return loss


@pytest.mark.slow
def test_five_steps_of_a_disagreement() -> None:
    """B.1: clipping by the largest element, one end of all cosines, crops of each classifier's own size."""
    ends = (f"optimizer.min_lr.{name}=0.0025" for name in ("latent", "text", "null"))
    parts, answer, problems = asked("task=disagreement", "classifier=planted_shortcut", *ends, "task.directions=[over]")
    task: Any = parts.task
    task.rival.size = 48
    controls, anchor, _, _ = answer.start(problems)
    controls, anchor = {name: value.double() for name, value in controls.items()}, doubled(anchor)
    with precise(parts, parts.classifier, task.rival):
        found = descended(answer, problems, controls, anchor)
        published = PublishedLoop(parts.diffusion.networks, STEPS, 3.0)
        course = Course(anchor.base["null"][0], anchor.base["text"][0])
        loss = gap(parts, problems[0], task.rival)
        wanted = published.descend(controls["latent"], course, loss, (0.00025, 0.025), 5, cosine=True, clip=0.05)
    agree(found, wanted, controls)


def moved(maps: Tensor, source: list[int], target: list[int]) -> Tensor:
    """Maps of a word for another one of as many tokens: each of these takes the mean of the old ones."""
    changed = [i for i, (old, new) in enumerate(zip(source, target, strict=True)) if old != new]
    assert len(changed) == 3
    maps = maps.clone()
    maps[..., changed] = maps[..., changed].mean(dim=-1, keepdim=True)
    return maps


def distance(kept: Tensor, shown: Tensor, original: Tensor) -> Tensor:
    return (kept * (shown - original).square()).mean()


@pytest.mark.slow
def test_five_steps_of_a_counterfactual() -> None:
    """Algorithm 2 and D.1.5: inversion, recorded maps, the best of six starts, and the descent from it."""
    parts, answer, problems = asked("task=uvce", "task.target=fireboat", "select.classes=[partridge]")
    (problem,), generator = problems, parts.diffusion
    start = generator.begin(problems, {})
    objective = answer.objective(problems, start.anchors[0])
    origin = loop.choose(generator, start, objective)
    controls, anchor = loop.beginning(start, origin)

    published = PublishedLoop(generator.networks, STEPS, 3.0)
    latent, nulls = published.invert(problem.image[None], problem.edit.source)
    torch.testing.assert_close(latent, start.controls["latent"], rtol=1e-4, atol=1e-4)
    base = anchor.base["null"][0]
    assert (nulls - base).norm() < 1e-3 * (base - published.embed([""])).norm()
    source, target = (
        published.embed([prompt])[0].expand(STEPS, -1, -1) for prompt in (problem.edit.source, problem.edit.target)
    )
    templates = published.record(latent, Course(nulls, source))
    torch.testing.assert_close(torch.stack(templates, dim=1), anchor.templates, rtol=1e-3, atol=1e-3)
    for replay in published.replays:
        replay.maps = [
            moved(maps, *map(published.tokens, (problem.edit.source, problem.edit.target))) for maps in replay.maps
        ]
        torch.testing.assert_close(torch.stack(replay.maps[:5]), anchor.maps[replay.layer][0], rtol=1e-3, atol=1e-4)

    def total(image: Tensor, z: Tensor, seen: Tensor, at: Anchor) -> Tensor:
        wanted = torch.full((len(seen),), problem.target)
        return (
            F.cross_entropy(parts.classifier(seen).logits, wanted)
            + 25 * distance(1 - at.latent_mask, z, at.encoded)
            + 250 * distance(1 - at.mask, image, at.original)
        )

    course = Course(nulls, target, templates, 1 - anchor.latent_mask)
    starts = [replace(course, inject=inject, blend=blend) for inject in (3, 4, 5) for blend in (0, 3)]
    with torch.no_grad():
        ends = [published.chain(latent, one)[-1] for one in starts]
        totals = [total(image, z, image, anchor) for z in ends for image in [published.decode(z)]]
    assert start.compared is not None
    compared = [loop.evaluate(objective, scene).total for scene in start.compared(start.controls)]
    torch.testing.assert_close(torch.stack(totals), torch.cat(compared), rtol=1e-3, atol=1e-4)
    best = starts[totals.index(min(totals))]
    assert (round(STEPS * origin.inject[0]), round(STEPS * origin.blend[0])) == (best.inject, best.blend)

    controls, anchor = {name: value.double() for name, value in controls.items()}, doubled(anchor)
    with precise(parts, parts.classifier):
        found = descended(answer, problems, controls, anchor)
        published = PublishedLoop(generator.networks, STEPS, 3.0)
        for replay in published.replays:
            replay.maps = list(anchor.maps[replay.layer][0].double())
        held = replace(
            best, nulls=anchor.base["null"][0], text=anchor.base["text"][0], templates=anchor.templates.unbind(1),
            held=1 - anchor.latent_mask,
        )  # fmt: skip

        def loss(image: Tensor, z: Tensor, k: int, left: int) -> Tensor:
            return total(image, z, crops(parts, problem, image, k, left).views[0], anchor)

        wanted = published.descend(controls["latent"], held, loss, (0.001, 0.01), 5, cosine=False, clip=None)
    agree(found, wanted, controls)
