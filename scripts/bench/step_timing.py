"""Seconds of one optimization step, of its parts and of its networks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.runner.batch import InitializedBatch
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.loop import InitialChoice, OptimizationState
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.types import Controls, Objective, Scene
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.timed_run import (
    Captured,
    TimedRun,
    first_problem_crops,
)
from classifier_lens.scripts.bench.timing import PartSeconds, seconds


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


def prepare_step(run: TimedRun) -> StepInputs:
    """The batch with the last candidate for every sample."""
    initialization = run.solver.baseline.initializer.initialize(run.problems, run.solver.prompt_to_prompt)
    choice = InitialChoice([len(initialization.candidates) - 1] * len(run.problems), initialization.precomputed)
    batch = run.solver.initialize(run.problems, choice)
    return StepInputs(run, batch, run.solver.objective(run.problems, batch.reference))


def time_networks(inputs: StepInputs, networks: Networks) -> PartSeconds:
    """Seconds per image of the network calls of a step, forward and backward, each separately on fixed inputs.

    networks: the runner's, or the plain loop's copy of them.
    """
    generator, run = inputs.run.parts.diffusion, inputs.run
    z = inputs.controls["latent"].detach().requires_grad_()
    unet_seconds = 0.0
    for i in range(len(generator)):
        embeddings = {
            name: base[:, i].detach().clone().requires_grad_() for name, base in inputs.context.embeddings.items()
        }
        maps = generator.attention_control([inputs.context], i)
        call = partial(generator.sampler.predict, networks, z, embeddings, i, maps)
        unet_seconds += seconds(partial(_both_ways, call, [z, *embeddings.values()]))
    image = networks.decode(inputs.batch.reference.original_latent).detach().requires_grad_()
    crops = run.augment(Scene(image, z, image.unsqueeze(1)), 0).views.flatten(0, 1).detach().requires_grad_()
    decode_seconds = generator.last_x0_predictions * seconds(lambda: _both_ways(lambda: networks.decode(z), [z]))

    settings = run.solver.settings
    if networks is not generator.networks:
        settings = replace(settings, autocast=None)  # the plain loop is float32 throughout

    def time_classifier(classifier: Any) -> None:
        with settings.autocast_context(image.device):
            _both_ways(lambda: classifier(crops).logits, [crops])
        with torch.no_grad():
            classifier(image)

    classifiers = [run.parts.classifier, *run.parts.task.dependencies]
    classify_seconds = generator.last_x0_predictions * sum(
        seconds(partial(time_classifier, classifier)) for classifier in classifiers
    )
    return {
        "all": (unet_seconds + decode_seconds + classify_seconds) / run.batch_size,
        "unet": unet_seconds / run.batch_size,
    }


def unet_timer(pipeline: Path, heads: int, batch: int) -> Callable[[], PartSeconds]:
    """A function that returns the seconds per image of a sampler step in both branches, forward and backward, of a UNet
    with random weights and the pipeline's shape, but another number of heads."""
    config = UNet2DConditionModel.load_config(pipeline, subfolder="unet")
    # The name of the number of heads in diffusers.
    unet = UNet2DConditionModel.from_config({**config, "attention_head_dim": heads}).requires_grad_(False).eval()
    length = CLIPTextConfig.from_pretrained(pipeline, subfolder="text_encoder").max_position_embeddings
    z = torch.randn(2 * batch, unet.config.in_channels, *[unet.config.sample_size] * 2, requires_grad=True)
    text = torch.randn(2 * batch, length, unet.config.cross_attention_dim, requires_grad=True)
    step = partial(_both_ways, lambda: unet(z, torch.tensor(500), text).sample, [z, text])
    return lambda: {"all": seconds(step) / batch}


def _both_ways(call: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    torch.autograd.grad(call().sum(), inputs)


def time_step_parts(inputs: StepInputs) -> PartSeconds:
    """Seconds per image of the parts of a step: chain, decoding, classifiers, backward pass."""
    generator, run = inputs.run.parts.diffusion, inputs.run
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.controls.items()}
    outputs = [Captured() for _ in range(3)]
    times = {
        "chain": seconds(
            lambda: outputs[0].keep(
                generator.denoise(
                    leaves["latent"], inputs.context.embeddings, inputs.context.variance_noise, inputs.context, leaves
                )[-1]
            )
        ),
        "decode": seconds(lambda: outputs[1].keep(generator.networks.decode(outputs[0].value))),
    }
    scene = Scene(outputs[1].value, outputs[0].value, outputs[1].value.unsqueeze(1))
    with run.solver.settings.autocast_context(scene.image.device):
        times["classify"] = seconds(
            lambda: outputs[2].keep(evaluate(inputs.objective, run.augment(scene, 0)).total.sum())
        )
    times["backward"] = seconds(lambda: torch.autograd.grad(outputs[2].value, list(leaves.values())))
    return {name: value / run.batch_size for name, value in times.items()}


def time_step(inputs: StepInputs, plain: plain_loop.PlainModel | None = None) -> PartSeconds:
    """Seconds per image of a complete optimization step, by the runner or by the plain loop."""
    step = partial(run_step, inputs) if plain is None else partial(run_plain_step, plain, inputs)
    return {"all": seconds(step) / inputs.run.batch_size}


def optimization_states(inputs: StepInputs) -> Iterator[OptimizationState]:
    """The optimization, one step per item."""
    return inputs.run.solver.optimize(inputs.batch, loop.initial_state(inputs.controls))


def run_step(inputs: StepInputs) -> None:
    """Take the first optimization step."""
    next(optimization_states(inputs))


def run_plain_step(plain: plain_loop.PlainModel, inputs: StepInputs) -> None:
    """Take the first optimization step of the plain loop, for a batch of one."""
    plain_loop.optimize(
        plain,
        inputs.controls,
        inputs.context,
        inputs.objective,
        first_problem_crops(inputs.run),
        inputs.run.solver.settings.lr,
        1,
        inputs.run.num_classifiers,
    )
