"""Seconds of explanations by the runner, by parts, and of the plain loop of scripts/bench/plain_loop.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from classifier_lens.models.generator.prompt_diffusion import PromptDiffusion
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.types import Scene
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.timed_run import (
    TIMED_STEPS,
    Captured,
    TimedRun,
    candidate_contexts,
    first_problem_crops,
    time_steps,
    with_total,
)
from classifier_lens.scripts.bench.timing import PartSeconds, seconds


def time_inversion(run: TimedRun) -> float:
    """Seconds per image of the inversion, without the cache."""
    generator = run.parts.diffusion
    assert run.images is not None
    with torch.no_grad():
        latents = generator.networks.encode(run.images)
    prompts, seeds = [p.edit.source for p in run.problems], [p.seed for p in run.problems]
    return seconds(lambda: generator.sampler.invert(generator.networks, latents, prompts, seeds)) / run.batch_size


def time_explanation(run: TimedRun) -> PartSeconds:
    """Seconds per image by parts: inversion, initialization, search, one optimization step, final rendering."""
    times: PartSeconds = {"inversion": time_inversion(run) if run.images is not None else 0.0}
    initializer, initialization, choice = run.solver.baseline.initializer, Captured(), Captured()
    initializer.initialize(run.problems, run.solver.prompt_to_prompt)  # caches the inversion
    times["initialization"] = (
        seconds(lambda: initialization.keep(initializer.initialize(run.problems, run.solver.prompt_to_prompt)))
        / run.batch_size
    )
    objective = run.solver.objective(run.problems, initialization.value.reference)
    times["search"] = (
        seconds(lambda: choice.keep(loop.choose_initialization(initializer, initialization.value, objective)))
        / run.batch_size
    )
    batch = run.solver.initialize(run.problems, choice.value)
    times["step"], state = time_steps(run, batch)
    times["rendering"] = seconds(
        lambda: (
            run.solver.render(batch.controls, batch.context),
            run.solver.render(state.best_controls, batch.context),
        )
    )
    times["rendering"] /= run.batch_size
    return with_total(times, run.num_steps)


def time_plain_explanation(run: TimedRun) -> PartSeconds:
    """The same for the plain loop and the first problem."""
    plain, problem = plain_loop.plain_model(run.parts.diffusion), run.problems[0]
    times: PartSeconds = {"inversion": 0.0, "initialization": 0.0}
    if problem.image is not None:
        image = problem.image[None].to(run.parts.diffusion.device)
        times["inversion"] = seconds(lambda: plain_loop.invert(plain, image, problem.edit.source))
    initialization = run.solver.baseline.initializer.initialize(run.problems[:1], run.solver.prompt_to_prompt)
    controls, contexts = initialization.controls, candidate_contexts(run, initialization)
    text = plain.networks.embed([problem.edit.source])
    # The mask from the maps needs no network call and is not timed, which favors the plain loop.
    null = contexts[0].embeddings["null"]
    if problem.image is not None:
        times["initialization"] = seconds(
            lambda: plain_loop.record_attention_maps(plain, controls["latent"], text, null)
        )
    objective = run.solver.objective(run.problems[:1], initialization.reference)
    times["search"] = 0.0
    if len(contexts) > 1:
        times["search"] = seconds(lambda: plain_loop.select_schedule(plain, controls, contexts, objective))
    step = partial(
        plain_loop.optimize, plain, controls, contexts[-1], objective, first_problem_crops(run), run.solver.settings.lr,
        classifiers=run.num_classifiers,
    )  # fmt: skip
    step(steps=1)
    times["step"] = seconds(lambda: step(steps=TIMED_STEPS)) / TIMED_STEPS

    @torch.no_grad()
    def render_both() -> None:
        for _ in ("start", "best"):
            plain_loop.render_latent(plain, plain_loop.chain(plain, controls, contexts[-1])[-1])

    times["rendering"] = seconds(render_both)
    return with_total(times, run.num_steps)


# --- prompts -------------------------------------------------------------------------------------------------


def time_prompt(run: TimedRun) -> PartSeconds:
    """Seconds per prompt by parts; the search is timed over all its candidates."""
    initializer = run.solver.baseline.initializer
    assert isinstance(initializer, PromptDiffusion)
    run.parts.diffusion.cache = TensorCache(None)  # so that images of random prompts are computed in every repetition
    initialization, choice = initializer.initialize(run.problems, run.solver.prompt_to_prompt), Captured()
    objective = run.solver.objective(run.problems, initialization.reference)
    search = (
        seconds(lambda: choice.keep(loop.choose_initialization(initializer, initialization, objective)))
        / run.batch_size
    )
    batch = run.solver.initialize(run.problems, choice.value)
    step, state = time_steps(run, batch)
    rendering = seconds(lambda: run.solver.render(state.best_controls, batch.context)) / run.batch_size
    return with_total({"search": search, "step": step, "rendering": rendering}, run.num_steps)


def time_plain_prompt(run: TimedRun) -> PartSeconds:
    """The same for the plain loop and the first problem, one image at a time; candidates are not shared."""
    initializer = run.solver.baseline.initializer
    assert isinstance(initializer, PromptDiffusion)
    initialization = initializer.initialize(run.problems[:1], run.solver.prompt_to_prompt)
    context = initialization.context
    objective, name = run.solver.objective(run.problems[:1], initialization.reference), initializer.tokens.control_name
    step_context = initializer.step_context(context, 0)
    timed_candidates = [
        initializer.select(initialization, [j])[0] for j in range(min(2, len(initialization.candidates)))
    ]
    augment = first_problem_crops(run)

    def cropped(scene: Callable[[], Scene]) -> Scene:
        return augment(scene(), 0)

    @torch.no_grad()
    def search() -> None:
        for controls in timed_candidates:
            plain_loop.prompt_loss(plain_loop.single_image_scenes(initializer, controls, step_context), objective)

    def step() -> None:
        leaf = initialization.controls[name].detach().clone().requires_grad_()
        scenes = plain_loop.single_image_scenes(initializer, {name: leaf}, step_context)
        plain_loop.prompt_loss([partial(cropped, scene) for scene in scenes], objective)
        with torch.no_grad():
            plain_loop.prompt_loss(plain_loop.single_image_scenes(initializer, {name: leaf}, context), objective)

    @torch.no_grad()
    def render_all() -> None:
        step_inputs = initializer.step_inputs(context.image_seeds, "report", 0)
        for scene in plain_loop.single_image_scenes(
            initializer, initialization.controls, replace(context, step_inputs=step_inputs)
        ):
            scene()

    plain_loop.enable_gradient_checkpointing(initializer.networks)
    try:
        times = {
            "search": seconds(search) / len(timed_candidates) * len(initialization.candidates),
            "step": seconds(step),
            "rendering": seconds(render_all),
        }
    finally:
        initializer.networks.unet.disable_gradient_checkpointing()
        initializer.networks.vae.disable_gradient_checkpointing()
    return with_total(times, run.num_steps)
