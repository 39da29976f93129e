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
from classifier_lens.models.generator.samplers import DdimSampler
from classifier_lens.runner.batch import InitializedBatch, Solver
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.run import Parts, make_problems, make_solver
from classifier_lens.runner.types import Controls, Problem, Reference, Scene
from classifier_lens.scripts.bench.published_loop import PublishedLoop, SamplerInputs
from tests.conftest import double_precision, doubled, initialize

# The planted world's own sizes and classifiers, and all else as experiment=dig_in/... has it.
PUBLISHED = (
    "generator.last_x0_predictions=3",
    "generator.straight_through_clamp=false",
    "generator.background_blend_start=0",
    "generator.null_text.lr=0.01",
    "generator.null_text.update_before_stop=true",
    "generator.prompt_to_prompt={cross_replace_steps: [0.3, 0.4, 0.5], background_blend_steps: [0.0, 0.3]}",
    *(f"generator.lr_scale.{name}=1.0" for name in ("latent", "text", "null")),
    "augment.new_crops_per_prediction=true",
    "augment.min_crop_fraction=0.5",
    "augment.crops=4",
    "augment.noise_std=0.05",
    "generator.steps=10",
    "optimizer.steps=5",
    "limit=1",
    "batch=1",
)
STEPS = 10  # of the sampler
SAME = 2e-4  # of what five steps of Adam change, in double precision: each step multiplies what differs by about ten


def asked(*words: str) -> tuple[Parts, Solver, list[Any]]:
    config = compose_config([*PUBLISHED, *words])
    parts = build(config)
    answer = make_solver(parts)
    return parts, answer, make_problems(parts, config, answer)[0]


@contextmanager
def precise(parts: Parts, *networks: Any) -> Iterator[None]:
    """Generator, noise levels and classifiers in double precision."""
    generator = parts.diffusion
    assert isinstance(generator, LatentDiffusion) and isinstance(generator.sampler, DdimSampler)
    plan = generator.sampler.schedule
    levels = replace(
        plan, alphas_cumprod=plan.alphas_cumprod.double(), alphas_cumprod_next=plan.alphas_cumprod_next.double()
    )
    generator.sampler = replace(generator.sampler, schedule=levels)
    for network in networks:
        network.double()
    with double_precision(generator):
        yield


def doubled_batch(batch: InitializedBatch) -> InitializedBatch:
    """A batch in double precision."""
    controls = {name: value.double() for name, value in batch.controls.items()}
    return replace(batch, controls=controls, context=doubled(batch.context), reference=doubled(batch.reference))


def descended(answer: Solver, batch: InitializedBatch) -> Controls:
    *_, state = answer.optimize(batch, loop.initial_state(batch.controls))
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
    batch = doubled_batch(answer.initialize(problems))
    controls, context = batch.controls, batch.context
    with precise(parts, parts.classifier, task.rival):
        found = descended(answer, batch)
        published = PublishedLoop(parts.diffusion.networks, STEPS, 3.0)
        course = SamplerInputs(context.embeddings["null"][0], context.embeddings["text"][0])
        loss = gap(parts, problems[0], task.rival)
        wanted = published.optimize(controls["latent"], course, loss, (0.00025, 0.025), 5, cosine=True, clip=0.05)
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
    start = initialize(generator, problems)
    objective = answer.objective(problems, start.reference)
    origin = loop.choose_initialization(generator, start, objective)
    controls, context = generator.select(start, origin.candidate_indices)

    published = PublishedLoop(generator.networks, STEPS, 3.0)
    latent, nulls = published.invert(problem.image[None], problem.edit.source)
    torch.testing.assert_close(latent, start.controls["latent"], rtol=1e-4, atol=1e-4)
    base = context.embeddings["null"][0]
    assert (nulls - base).norm() < 1e-3 * (base - published.embed([""])).norm()
    source, target = (
        published.embed([prompt])[0].expand(STEPS, -1, -1) for prompt in (problem.edit.source, problem.edit.target)
    )
    templates = published.record_attention_maps(latent, SamplerInputs(nulls, source))
    torch.testing.assert_close(torch.stack(templates, dim=1), context.original_trajectory, rtol=1e-3, atol=1e-3)
    for replay in published.replays:
        replay.maps = [
            moved(maps, *map(published.token_ids, (problem.edit.source, problem.edit.target))) for maps in replay.maps
        ]
        torch.testing.assert_close(
            torch.stack(replay.maps[:5]), context.attention_maps[replay.layer][0], rtol=1e-3, atol=1e-4
        )

    def total(image: Tensor, z: Tensor, seen: Tensor, at: Reference) -> Tensor:
        wanted = torch.full((len(seen),), problem.target)
        return (
            F.cross_entropy(parts.classifier(seen).logits, wanted)
            + 25 * distance(1 - at.latent_mask, z, at.original_latent)
            + 250 * distance(1 - at.mask, image, at.original)
        )

    course = SamplerInputs(nulls, target, templates, 1 - context.latent_mask)
    starts = [
        replace(course, cross_replace_steps=inject, background_blend_steps=blend)
        for inject in (3, 4, 5)
        for blend in (0, 3)
    ]
    with torch.no_grad():
        ends = [published.chain(latent, one)[-1] for one in starts]
        totals = [total(image, z, image, start.reference) for z in ends for image in [published.decode(z)]]
    compared = [loop.evaluate(objective, scene).total for scene in generator.render_candidates(start)]
    torch.testing.assert_close(torch.stack(totals), torch.cat(compared), rtol=1e-3, atol=1e-4)
    best = starts[totals.index(min(totals))]
    chosen = start.candidates[origin.candidate_indices[0]]
    assert (round(STEPS * chosen.cross_replace_steps), round(STEPS * chosen.background_blend_steps)) == (
        best.cross_replace_steps,
        best.background_blend_steps,
    )

    batch = doubled_batch(answer.initialize(problems, origin))
    controls, context = batch.controls, batch.context
    with precise(parts, parts.classifier):
        found = descended(answer, batch)
        published = PublishedLoop(generator.networks, STEPS, 3.0)
        for replay in published.replays:
            replay.maps = list(context.attention_maps[replay.layer][0].double())
        held = replace(
            best,
            null_embeddings=context.embeddings["null"][0],
            text_embeddings=context.embeddings["text"][0],
            background_latents=context.original_trajectory.unbind(1),
            background_mask=1 - context.latent_mask,
        )

        def loss(image: Tensor, z: Tensor, k: int, left: int) -> Tensor:
            return total(image, z, crops(parts, problem, image, k, left).views[0], batch.reference)

        wanted = published.optimize(controls["latent"], held, loss, (0.001, 0.01), 5, cosine=False, clip=None)
    agree(found, wanted, controls)
