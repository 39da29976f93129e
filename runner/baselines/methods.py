"""Baselines that solve a task's problems instead of the method, for comparison: `conf/baseline/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.guidance import check_guidance, guided_sampling
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.latent_prior import LatentPrior
from classifier_lens.models.generator.multi_image import MultiImageGenerator
from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.models.generator.pixel_space import (
    ImageInitialization,
    PixelContext,
    PixelGenerator,
    init_from_generated,
)
from classifier_lens.runner.baselines.regularizers import Regularizer, Update
from classifier_lens.runner.configuration.value_ranges import (
    LearningRate,
    PerProblemCount,
    PixelDistance,
    Steps,
    TermWeights,
)
from classifier_lens.runner.optimization.loop import OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import Context, Controls, Objective, Scene, Term, UserError

# (controls and context of the initializer, objective) -> controls and context of the generator that is optimized.
Prepare = Callable[[Controls, Any, Objective], tuple[Controls, Any]]


# Makes a generator whose controls are a part of a diffusion model's inputs: `conf/parametrization/`.
Parametrization = Callable[[LatentDiffusion], Generator[Any]]


def prepare_nothing(controls: Controls, context: Any, objective: Objective) -> tuple[Controls, Any]:
    """The controls and the context of the initializer."""
    return controls, context


def identity_objective(objective: Objective) -> Objective:
    """The task's objective as it is."""
    return objective


@dataclass(frozen=True)
class Baseline:
    """How a task's problems are solved.

    initializer: generator that initializes the problems; prepare: turns its controls and context into those of
    `generator`, which is optimized; optimizer: settings of the loop; adapt_objective: changes the task's objective;
    uses_augmentation: whether the classifier sees random crops, or the images themselves."""

    initializer: Generator[Any]
    generator: Generator[Any]
    optimizer: OptimizerSettings
    prepare: Prepare = prepare_nothing
    adapt_objective: Callable[[Objective], Objective] = identity_objective
    uses_augmentation: bool = True


# The source of a run's images: a diffusion model, or no generator (`generator=none`).
ImageModel = LatentDiffusion | NoGenerator
# (source of images, parametrization and loop settings of the method) -> baseline. Learning rates are in the generator's
# scale.
BaselineFactory = Callable[[ImageModel, Parametrization, OptimizerSettings], Baseline]


def no_baseline(generator: ImageModel, parametrization: Parametrization, settings: OptimizerSettings) -> Baseline:
    """The method itself. Where nothing is optimized, it can look at given images without a generator."""
    if isinstance(generator, NoGenerator) and not (settings.steps and any(settings.lr.values())):
        return Baseline(generator, generator, settings)
    parametrized = parametrization(require_diffusion(generator, "task.baseline=none"))
    return Baseline(parametrized, parametrized, settings)


def start_only(generator: ImageModel, parametrization: Parametrization, settings: OptimizerSettings) -> Baseline:
    """The initialization alone: words replaced by Prompt-to-Prompt, nothing optimized."""
    diffusion = require_diffusion(generator, "task.baseline=start_only")
    return no_baseline(diffusion, parametrization, replace(settings, steps=0))


def require_diffusion(generator: ImageModel, purpose: str) -> LatentDiffusion:
    """The diffusion model. Raises UserError if there is none."""
    if isinstance(generator, NoGenerator):
        raise UserError(
            f"generator=none: {purpose} needs a generator; without one allowed are pixels, yosinski, "
            f"mahendran_vedaldi, feature_attack (as far as the task has them), and task=input_gradients"
        )
    return generator


def pixels(
    generator: ImageModel,
    parametrization: Parametrization,
    settings: OptimizerSettings,
    initialization: ImageInitialization,
    max_images: PerProblemCount,
) -> Baseline:
    """The same loss, optimized over the pixels of the image. initialization: of problems without an image; max_images:
    images per result at most, where a result of the method has several."""
    pixel_generator = multi_image(
        PixelGenerator(generator, initialization, max_jitter=0),
        _images_per_result(generator, parametrization),
        max_images,
    )
    return Baseline(pixel_generator, pixel_generator, settings)


def guidance(generator: ImageModel, parametrization: Parametrization, settings: OptimizerSettings) -> Baseline:
    """The same loss as the guidance of one sampling: nothing is optimized, see `models.generator.guidance`."""
    diffusion = require_diffusion(generator, "task.baseline=classifier_guidance")
    check_guidance(diffusion)

    def prepare(controls: Controls, context: DiffusionContext, objective: Objective) -> tuple[Controls, PixelContext]:
        def loss(scene: Scene) -> Tensor:
            return evaluate(objective, scene).total

        images = guided_sampling(diffusion, controls, context, loss, settings.lr["classifier_guidance"])
        return {"pixels": images}, PixelContext()

    return Baseline(
        diffusion, PixelGenerator(diffusion, init_from_generated, max_jitter=0), replace(settings, steps=0), prepare
    )


def activation_maximization(
    generator: ImageModel,
    parametrization: Parametrization,
    settings: OptimizerSettings,
    initialization: ImageInitialization,
    max_images: PerProblemCount,
    jitter: PixelDistance,
    method: Callable[..., torch.optim.Optimizer],
    steps: Steps,
    lr: LearningRate,
    regularizers: Mapping[str, Regularizer],
    penalties: Mapping[str, Term],
    penalty_weights: TermWeights,
    excluded_terms: Sequence[str],
) -> Baseline:
    """The task's terms, optimized over pixels by the method of another paper, on the images themselves without crops.

    initialization, max_images: see `pixels`; jitter: largest shift in pixels, see `models.generator.pixel_space`;
    method, steps, lr: a torch optimizer, its number of steps and their constant learning rate; regularizers: applied to
    the images after every update, in this order, before they are clipped to [0, 1]; penalties, penalty_weights: terms
    beside the task's; excluded_terms: terms of the task that the penalties replace."""
    pixel_generator = multi_image(
        PixelGenerator(generator, initialization, jitter), _images_per_result(generator, parametrization), max_images
    )

    def project(updated: Controls, gradients: Controls, initial: Controls, step: int) -> Controls:
        x, update = updated["pixels"], Update(gradients["pixels"], initial["pixels"], step)
        for regularizer in regularizers.values():
            x = regularizer(x, update)
        return {"pixels": x.clamp(0, 1)}

    def adapt_objective(objective: Objective) -> Objective:
        included = {name: term for name, term in objective.items() if name not in excluded_terms}
        return included | {name: (penalty_weights[name], term) for name, term in penalties.items()}

    settings = replace(_with_method(settings, method, steps, {"pixels": lr}), project=project)
    return Baseline(
        pixel_generator, pixel_generator, settings, adapt_objective=adapt_objective, uses_augmentation=False
    )


def generator_prior(
    generator: ImageModel, parametrization: Parametrization, settings: OptimizerSettings, max_images: PerProblemCount,
    method: Callable[..., torch.optim.Optimizer], steps: Steps, lr: LearningRate,
) -> Baseline:  # fmt: skip
    """The start latent alone, see `models.generator.latent_prior`, on the images themselves without crops; max_images,
    method, steps, lr: see `activation_maximization`."""
    diffusion = require_diffusion(generator, "task.baseline=generator_prior")
    prior = multi_image(LatentPrior(diffusion), parametrization(diffusion).images_per_result, max_images)
    return Baseline(prior, prior, _with_method(settings, method, steps, {"latent": lr}), uses_augmentation=False)


def _with_method(
    settings: OptimizerSettings, method: Callable[..., torch.optim.Optimizer], steps: int, lr: Mapping[str, float]
) -> OptimizerSettings:
    """The settings with another method at constant rates, without clipping and early stopping."""
    return replace(
        settings, method=method, steps=steps, lr=lr, min_lr=None, gradient_clipping=None, early_stopping=None
    )


def _images_per_result(generator: ImageModel, parametrization: Parametrization) -> int:
    """How many images a result of the method has; without a generator one."""
    return 1 if isinstance(generator, NoGenerator) else parametrization(generator).images_per_result


def multi_image(generator: Generator[Context], images_per_result: int, max_images: int) -> Generator[Context]:
    """A generator whose results have as many images as those of the method, `max_images` at most."""
    count = min(images_per_result, max_images)
    return generator if count == 1 else MultiImageGenerator(generator, count)
