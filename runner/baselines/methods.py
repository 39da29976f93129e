"""What may answer a task's questions in the method's place, for comparison: `conf/baseline/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from classifier_lens.models.generator.guidance import check_guidance, guided_sampling
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.latent_prior import LatentPrior
from classifier_lens.models.generator.multi_image import MultiImageContext, MultiImageGenerator
from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.models.generator.pixel_space import ImageInitialization, PixelGenerator, init_from_generated
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
from classifier_lens.runner.types import Controls, EditContext, Objective, Term, UserError

# From where a batch starts to where its descent begins.
PrepareControls = Callable[[Controls, EditContext, Objective], Controls]


# What of a diffusion model is optimised: `conf/controls/`.
Parametrization = Callable[[LatentDiffusion], Generator]


def identity_controls(controls: Controls, anchor: EditContext, objective: Objective) -> Controls:
    """The start is where the descent begins."""
    return controls


def identity_objective(objective: Objective) -> Objective:
    """The task's objective as it is."""
    return objective


@dataclass(frozen=True)
class Baseline:
    """What answers: what begins, what is done with its controls then, whose controls they become, how to descend, and
    on what; uses_augmentation: whether the classifier is shown the run's crops or the pictures themselves."""

    initializer: Generator
    generator: Generator
    optimizer: OptimizerSettings
    prepare_controls: PrepareControls = identity_controls
    adapt_objective: Callable[[Objective], Objective] = identity_objective
    uses_augmentation: bool = True


# What makes a run's images: a diffusion model, or nothing, `generator=none`.
ImageModel = LatentDiffusion | NoGenerator
# The contestant of what makes images, of what the method would optimise of it and how, with the rates in its own scale.
BaselineFactory = Callable[[ImageModel, Parametrization, OptimizerSettings], Baseline]


def no_baseline(generator: ImageModel, controls: Parametrization, descent: OptimizerSettings) -> Baseline:
    """The method itself; where nothing is optimized, given images may be looked at without a generator."""
    if isinstance(generator, NoGenerator) and not (descent.steps and any(descent.lr.values())):
        return Baseline(generator, generator, descent)
    asked = controls(require_diffusion(generator, "task.baseline=none"))
    return Baseline(asked, asked, descent)


def start_only(generator: ImageModel, controls: Parametrization, descent: OptimizerSettings) -> Baseline:
    """The start alone: the words exchanged by Prompt-to-Prompt, nothing optimised."""
    return no_baseline(require_diffusion(generator, "task.baseline=start_only"), controls, replace(descent, steps=0))


def require_diffusion(generator: ImageModel, purpose: str) -> LatentDiffusion:
    """The diffusion model that what is asked for needs. Raises UserError if there is none."""
    if isinstance(generator, NoGenerator):
        raise UserError(
            f"generator=none: {purpose} needs a generator; without one allowed are pixels, yosinski, "
            f"mahendran_vedaldi, feature_attack (as far as the task has them), and task=input_gradients"
        )
    return generator


def _images_per_result(generator: ImageModel, controls: Parametrization) -> int:
    """How many images an answer of the method is; without a generator one."""
    return 1 if isinstance(generator, NoGenerator) else controls(generator).images_per_result


def pixels(
    generator: ImageModel,
    controls: Parametrization,
    descent: OptimizerSettings,
    initialization: ImageInitialization,
    max_images: PerProblemCount,
) -> Baseline:
    """The same loss by descent on the picture's pixels. initialization: where a picture begins that is not given;
    max_images: pictures per answer at most, where the method's is several."""
    shown = multi_image(
        PixelGenerator(generator, initialization, max_jitter=0), _images_per_result(generator, controls), max_images
    )
    return Baseline(shown, shown, descent)


def guidance(generator: ImageModel, controls: Parametrization, descent: OptimizerSettings) -> Baseline:
    """The same loss as a guide of one sampling: no controls are optimised, see `models.generator.guidance`."""
    sampled = require_diffusion(generator, "task.baseline=classifier_guidance")
    check_guidance(sampled)

    def finish(controls: Controls, anchor: EditContext, objective: Objective) -> Controls:
        image = guided_sampling(
            sampled, controls, anchor, lambda scene: evaluate(objective, scene).total, descent.lr["classifier_guidance"]
        )
        return {"pixels": image}

    return Baseline(
        sampled, PixelGenerator(sampled, init_from_generated, max_jitter=0), replace(descent, steps=0), finish
    )


def activation_maximization(
    generator: ImageModel,
    controls: Parametrization,
    descent: OptimizerSettings,
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
    """Pixels by another paper's descent, on the task's terms at the pictures themselves, without crops.

    initialization, max_images: see `pixels`; jitter: reach in pixels, see `models.generator.pixel_space`; method,
    steps, lr: an optimiser of torch, the number of its steps and their constant rate; regularizers: what is done with
    the picture after every update, in this order, before it is cut to [0, 1]; penalties, penalty_weights: terms beside
    the task's, with their weights; excluded_terms: terms of the task that these take the place of."""
    shown = multi_image(
        PixelGenerator(generator, initialization, jitter), _images_per_result(generator, controls), max_images
    )

    def project(after: Controls, gradients: Controls, anchor: EditContext, step: int) -> Controls:
        x, own = after["pixels"], anchor.per_image if isinstance(anchor, MultiImageContext) else anchor
        update = Update(gradients["pixels"], own.original.view_as(x), step)
        for regularise in regularizers.values():
            x = regularise(x, update)
        return {"pixels": x.clamp(0, 1)}

    def objective(task_objective: Objective) -> Objective:
        kept = {name: term for name, term in task_objective.items() if name not in excluded_terms}
        return kept | {name: (penalty_weights[name], term) for name, term in penalties.items()}

    own = replace(
        descent,
        method=method,
        steps=steps,
        lr={"pixels": lr},
        min_lr=None,
        gradient_clipping=None,
        early_stopping=None,
    )
    return Baseline(shown, shown, replace(own, project=project), adapt_objective=objective, uses_augmentation=False)


def generator_prior(
    generator: ImageModel, controls: Parametrization, descent: OptimizerSettings, max_images: PerProblemCount,
    method: Callable[..., torch.optim.Optimizer], steps: Steps, lr: LearningRate,
) -> Baseline:  # fmt: skip
    """The start latent alone, see `models.generator.latent_prior`, at the pictures themselves, without crops;
    max_images, method, steps, lr: see `activation_maximization`."""
    model = require_diffusion(generator, "task.baseline=generator_prior")
    prior = multi_image(LatentPrior(model), controls(model).images_per_result, max_images)
    own = replace(
        descent,
        method=method,
        steps=steps,
        lr={"latent": lr},
        min_lr=None,
        gradient_clipping=None,
        early_stopping=None,
    )
    return Baseline(prior, prior, own, uses_augmentation=False)


def multi_image(generator: Generator, reported: int, max_images: int) -> Generator:
    """A generator whose answers are as many pictures as the method's, `max_images` at most."""
    count = min(reported, max_images)
    return generator if count == 1 else MultiImageGenerator(generator, count)
