"""What the benchmark times: explanations by the runner, by parts, beside the plain loop of scripts/plain_loop.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.prompt_diffusion import PromptDiffusion
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.batch import InitializedBatch, Solver
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.loop import InitialChoice, OptimizationState
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.run import Parts as RunParts
from classifier_lens.runner.run import make_solver, plan_batch
from classifier_lens.runner.types import Controls, Initialization, Objective, Scene
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.timing import PartSeconds, seconds

TIMED_STEPS = 3  # optimisation steps that are timed; their median stands for all of them


@dataclass(frozen=True)
class TimedRun:
    """A run that is ready to be timed. num_steps: K, of which few are run; num_classifiers: how many see each
    picture."""

    parts: RunParts
    solver: Solver
    problems: Sequence[Any]
    num_steps: int
    num_classifiers: int

    @property
    def batch_size(self) -> int:
        return len(self.problems)

    @property
    def images(self) -> Tensor | None:
        given = [p.image for p in self.problems if p.image is not None]
        return torch.stack(given).to(self.parts.diffusion.device) if given else None

    def augment(self, scene: Scene, k: int) -> Scene:
        return self.solver.augment(scene, [p.seed for p in self.problems], k, self.parts.classifier.size)


def prepare_run(words: Sequence[str], batch: int) -> TimedRun:
    """The first `batch` problems of `python run.py <words>`."""
    config = compose_config([*words, f"batch={batch}", f"limit={batch}", "logger=none", f"outputs={_FOLDER.name}"])
    parts = build(config)
    answer = make_solver(parts)
    problems, _ = parts.task.problems(TaskInputs(parts.data, parts.classifier, parts.diffusion, config["seed"], batch))
    if parts.diffusion.gradient_checkpointing == "auto":
        plan_batch(parts, answer, batch, batch)
    return TimedRun(parts, answer, problems, parts.optimizer.steps, 1 + len(parts.task.dependencies))


_FOLDER = TemporaryDirectory(prefix="bench-")  # of what is cached; removed when the process ends


# --- explanations of single pictures --------------------------------------------------------------------------


def time_inversion(own: TimedRun) -> float:
    """Seconds per picture of the inversion, without the cache."""
    generator = own.parts.diffusion
    assert own.images is not None
    with torch.no_grad():
        encoded = generator.networks.encode(own.images)
    prompts, seeds = [p.edit.source for p in own.problems], [p.seed for p in own.problems]
    return seconds(lambda: generator.sampler.invert(generator.networks, encoded, prompts, seeds)) / own.batch_size


def time_explanation(own: TimedRun) -> PartSeconds:
    """Seconds per picture of the runner's parts: inversion, beginning, search, an optimisation step, the end."""
    found: PartSeconds = {"inversion": time_inversion(own) if own.images is not None else 0.0}
    initializer, start, choice = own.solver.baseline.initializer, _Captured(), _Captured()
    initializer.initialize(own.problems, own.solver.prompt_to_prompt)  # the inversion is in the cache from here on
    found["begin"] = (
        seconds(lambda: start.keep(initializer.initialize(own.problems, own.solver.prompt_to_prompt))) / own.batch_size
    )
    objective = own.solver.objective(own.problems, start.value.reference)
    found["search"] = (
        seconds(lambda: choice.keep(loop.choose_initialization(initializer, start.value, objective))) / own.batch_size
    )
    batch = own.solver.initialize(own.problems, choice.value)
    found["step"], state = time_steps(own, batch)
    found["end"] = seconds(
        lambda: (
            own.solver.render(batch.controls, batch.context),
            own.solver.render(state.best_controls, batch.context),
        )
    )
    found["end"] /= own.batch_size
    return with_total(found, own.num_steps)


class _Captured:
    """What a timed call has made."""

    value: Any = None

    def keep(self, value: object) -> None:
        self.value = value


def time_steps(own: TimedRun, batch: InitializedBatch) -> tuple[float, OptimizationState]:
    """Seconds per image and optimization step, and the state after the last timed one."""
    states = own.solver.optimize(batch, loop.initial_state(batch.controls, batch.choice))
    state, times = _Captured(), []
    for _ in range(min(TIMED_STEPS, own.num_steps)):
        times.append(seconds(lambda: state.keep(next(states))) / own.batch_size)
    return sorted(times)[len(times) // 2], state.value


def with_total(parts: PartSeconds, steps: int) -> PartSeconds:
    """With the sum of an explanation of so many steps."""
    once = sum(value for name, value in parts.items() if name != "step")
    return {**parts, "all": once + steps * parts["step"]}


def time_plain_explanation(own: TimedRun) -> PartSeconds:
    """The same of the plain loop, for the first problem."""
    plain, problem = plain_loop.plain_model(own.parts.diffusion), own.problems[0]
    found: PartSeconds = {"inversion": 0.0, "begin": 0.0}
    if problem.image is not None:
        image = problem.image[None].to(own.parts.diffusion.device)
        found["inversion"] = seconds(lambda: plain_loop.invert(plain, image, problem.edit.source))
    start = own.solver.baseline.initializer.initialize(own.problems[:1], own.solver.prompt_to_prompt)
    controls, contexts = start.controls, candidate_contexts(own, start)
    text = plain.networks.embed([problem.edit.source])
    # What is found in the maps costs no call of a network, and is not timed: the plain loop is not made slower by it.
    null = contexts[0].embeddings["null"]
    if problem.image is not None:
        found["begin"] = seconds(lambda: plain_loop.record_attention_maps(plain, controls["latent"], text, null))
    objective = own.solver.objective(own.problems[:1], start.reference)
    found["search"] = 0.0
    if len(contexts) > 1:
        found["search"] = seconds(lambda: plain_loop.select_schedule(plain, controls, contexts, objective))
    step = partial(
        plain_loop.optimize, plain, controls, contexts[-1], objective, first_problem_crops(own), own.solver.settings.lr,
        classifiers=own.num_classifiers,
    )  # fmt: skip
    step(steps=1)
    found["step"] = seconds(lambda: step(steps=TIMED_STEPS)) / TIMED_STEPS

    @torch.no_grad()
    def end() -> None:
        for _ in ("start", "best"):
            plain_loop.render_latent(plain, plain_loop.chain(plain, controls, contexts[-1])[-1])

    found["end"] = seconds(end)
    return with_total(found, own.num_steps)


def first_problem_crops(own: TimedRun) -> Callable[[Scene, int], Scene]:
    """The crops of the first problem."""
    return replace(own, problems=own.problems[:1]).augment


# --- the networks alone --------------------------------------------------------------------------------------


def candidate_contexts(own: TimedRun, start: Initialization[DiffusionContext]) -> list[DiffusionContext]:
    """The context of each candidate."""
    count, positions = len(start.warnings), range(len(start.candidates))
    return [own.solver.baseline.initializer.select(start, [j] * count)[1] for j in positions]


@dataclass(frozen=True)
class StepInputs:
    """A batch before its first step, and its objective."""

    run: TimedRun
    batch: InitializedBatch
    objective: Objective

    @property
    def controls(self) -> Controls:
        return self.batch.controls

    @property
    def context(self) -> DiffusionContext:
        context: DiffusionContext = self.batch.context
        return context


def prepare_step(own: TimedRun) -> StepInputs:
    """The batch with the last candidate for every sample."""
    start = own.solver.baseline.initializer.initialize(own.problems, own.solver.prompt_to_prompt)
    choice = InitialChoice([len(start.candidates) - 1] * len(own.problems), start.precomputed)
    batch = own.solver.initialize(own.problems, choice)
    return StepInputs(own, batch, own.solver.objective(own.problems, batch.reference))


def time_networks(r: StepInputs, networks: Networks) -> PartSeconds:
    """Seconds per picture of a step's calls of networks, forward and backward, each alone on fixed inputs.

    networks: the runner's, or the plain loop's copy of them.
    """
    generator, own = r.run.parts.diffusion, r.run
    z = r.controls["latent"].detach().requires_grad_()
    unet = 0.0
    for i in range(len(generator)):
        now = {name: base[:, i].detach().clone().requires_grad_() for name, base in r.context.embeddings.items()}
        maps = generator.attention_control([r.context], i)
        call = partial(generator.sampler.predict, networks, z, now, i, maps)
        unet += seconds(partial(_both_ways, call, [z, *now.values()]))
    image = networks.decode(r.batch.reference.original_latent).detach().requires_grad_()
    crops = own.augment(Scene(image, z, image.unsqueeze(1)), 0).views.flatten(0, 1).detach().requires_grad_()
    decode = generator.last_x0_predictions * seconds(lambda: _both_ways(lambda: networks.decode(z), [z]))

    descent = own.solver.settings
    if networks is not generator.networks:
        descent = replace(descent, autocast=None)  # the plain loop has float32 throughout

    def judge(classifier: Any) -> None:
        with descent.autocast_context(image.device):
            _both_ways(lambda: classifier(crops).logits, [crops])
        with torch.no_grad():
            classifier(image)

    judges = [own.parts.classifier, *own.parts.task.dependencies]
    classify = generator.last_x0_predictions * sum(seconds(partial(judge, classifier)) for classifier in judges)
    return {"all": (unet + decode + classify) / own.batch_size, "unet": unet / own.batch_size}


def unet_timer(pipeline: Path, heads: int, batch: int) -> Callable[[], PartSeconds]:
    """Seconds per picture of a sampler step in both branches, forward and backward, of a UNet with random weights: of a
    pipeline's shape but for its number of heads."""
    config = UNet2DConditionModel.load_config(pipeline, subfolder="unet")
    # Diffusers has the number of heads under this name.
    unet = UNet2DConditionModel.from_config({**config, "attention_head_dim": heads}).requires_grad_(False).eval()
    length = CLIPTextConfig.from_pretrained(pipeline, subfolder="text_encoder").max_position_embeddings
    z = torch.randn(2 * batch, unet.config.in_channels, *[unet.config.sample_size] * 2, requires_grad=True)
    text = torch.randn(2 * batch, length, unet.config.cross_attention_dim, requires_grad=True)
    step = partial(_both_ways, lambda: unet(z, torch.tensor(500), text).sample, [z, text])
    return lambda: {"all": seconds(step) / batch}


def _both_ways(call: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.grad(call().sum(), inputs)


def time_step_parts(r: StepInputs) -> PartSeconds:
    """Seconds per picture of a step as the runner does it: chain, decoding, what classifiers see, backward pass."""
    generator, own = r.run.parts.diffusion, r.run
    leaves = {name: value.detach().clone().requires_grad_() for name, value in r.controls.items()}
    kept = [_Captured() for _ in range(3)]
    found = {
        "chain": seconds(
            lambda: kept[0].keep(
                generator.denoise(leaves["latent"], r.context.embeddings, r.context.variance_noise, r.context, leaves)[
                    -1
                ]
            )
        ),
        "decode": seconds(lambda: kept[1].keep(generator.networks.decode(kept[0].value))),
    }
    scene = Scene(kept[1].value, kept[0].value, kept[1].value.unsqueeze(1))
    with own.solver.settings.autocast_context(scene.image.device):
        found["classify"] = seconds(lambda: kept[2].keep(evaluate(r.objective, own.augment(scene, 0)).total.sum()))
    found["backward"] = seconds(lambda: torch.autograd.grad(kept[2].value, list(leaves.values())))
    return {name: value / own.batch_size for name, value in found.items()}


def time_step(r: StepInputs, plain: plain_loop.PlainModel | None = None) -> PartSeconds:
    """Seconds per picture of a whole optimisation step, the runner's or the plain loop's."""
    step = partial(run_step, r) if plain is None else partial(run_plain_step, plain, r)
    return {"all": seconds(step) / r.run.batch_size}


def optimization_states(r: StepInputs) -> Iterator[OptimizationState]:
    """The descent, a whole optimisation step at a time."""
    return r.run.solver.optimize(r.batch, loop.initial_state(r.controls))


def run_step(r: StepInputs) -> None:
    """The first optimisation step."""
    next(optimization_states(r))


def run_plain_step(plain: plain_loop.PlainModel, r: StepInputs) -> None:
    """The same of the plain loop, for a batch of one."""
    plain_loop.optimize(
        plain,
        r.controls,
        r.context,
        r.objective,
        first_problem_crops(r.run),
        r.run.solver.settings.lr,
        1,
        r.run.num_classifiers,
    )


# --- prompts -------------------------------------------------------------------------------------------------


def time_prompt(own: TimedRun) -> PartSeconds:
    """Seconds per prompt of the runner's parts; one of the search's starts is timed per start."""
    begin = own.solver.baseline.initializer
    assert isinstance(begin, PromptDiffusion)
    own.parts.diffusion.cache = TensorCache(None)  # what random starts show is computed in every repetition
    start, choice = begin.initialize(own.problems, own.solver.prompt_to_prompt), _Captured()
    objective = own.solver.objective(own.problems, start.reference)
    search = seconds(lambda: choice.keep(loop.choose_initialization(begin, start, objective))) / own.batch_size
    batch = own.solver.initialize(own.problems, choice.value)
    step, state = time_steps(own, batch)
    end = seconds(lambda: own.solver.render(state.best_controls, batch.context)) / own.batch_size
    return with_total({"search": search, "step": step, "end": end}, own.num_steps)


def time_plain_prompt(own: TimedRun) -> PartSeconds:
    """The same of the plain loop: the first problem, a picture at a time; its starts are not shared."""
    begin = own.solver.baseline.initializer
    assert isinstance(begin, PromptDiffusion)
    start = begin.initialize(own.problems[:1], own.solver.prompt_to_prompt)
    context = start.context
    objective, name = own.solver.objective(own.problems[:1], start.reference), begin.tokens.control_name
    step_context = begin.step_context(context, 0)
    few = [begin.select(start, [j])[0] for j in range(min(2, len(start.candidates)))]
    augment = first_problem_crops(own)

    def cropped(scene: Callable[[], Scene]) -> Scene:
        return augment(scene(), 0)

    @torch.no_grad()
    def search() -> None:
        for controls in few:
            plain_loop.prompt_loss(plain_loop.single_image_scenes(begin, controls, step_context), objective)

    def step() -> None:
        leaf = start.controls[name].detach().clone().requires_grad_()
        scenes = plain_loop.single_image_scenes(begin, {name: leaf}, step_context)
        plain_loop.prompt_loss([partial(cropped, scene) for scene in scenes], objective)
        with torch.no_grad():
            plain_loop.prompt_loss(plain_loop.single_image_scenes(begin, {name: leaf}, context), objective)

    @torch.no_grad()
    def end() -> None:
        course = begin.step_inputs(context.image_seeds, "report", 0)
        for scene in plain_loop.single_image_scenes(begin, start.controls, replace(context, step_inputs=course)):
            scene()

    plain_loop.enable_gradient_checkpointing(begin.networks)
    try:
        found = {
            "search": seconds(search) / len(few) * len(start.candidates),
            "step": seconds(step),
            "end": seconds(end),
        }
    finally:
        begin.networks.unet.disable_gradient_checkpointing()
        begin.networks.vae.disable_gradient_checkpointing()
    return with_total(found, own.num_steps)
