"""What may answer a task's questions in the method's place, for comparison: `conf/baseline/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from classifier_lens.models.generator.guidance import check_guided, guided_sampling
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.latent_prior import LatentPrior
from classifier_lens.models.generator.multi_image import Several, SeveralAnchor
from classifier_lens.models.generator.no_generator import ImageSpace
from classifier_lens.models.generator.pixel_space import Begun, PixelDescent, as_drawn
from classifier_lens.runner.baselines.regularizers import Regulariser, Update
from classifier_lens.runner.configuration.value_ranges import Rate, Reach, Repeats, Steps, Weights
from classifier_lens.runner.optimization.loop import Descent
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import Anchor, Controls, Objective, Term, UserError

# From where a batch starts to where its descent begins.
Finish = Callable[[Controls, Anchor, Objective], Controls]


# What of a diffusion model is optimised: `conf/controls/`.
Parametrise = Callable[[LatentDiffusion], Generator]


def unchanged(controls: Controls, anchor: Anchor, objective: Objective) -> Controls:
    """The start is where the descent begins."""
    return controls


def whole(objective: Objective) -> Objective:
    """The task's objective as it is."""
    return objective


@dataclass(frozen=True)
class Contestant:
    """What answers: what begins, what is done with its controls then, whose controls they become, how to descend, and
    on what; augmented: whether the classifier is shown the run's crops or the pictures themselves."""

    begin: Generator
    generator: Generator
    descent: Descent
    finish: Finish = unchanged
    objective: Callable[[Objective], Objective] = whole
    augmented: bool = True


# What makes a run's images: a diffusion model, or nothing, `generator=none`.
Maker = LatentDiffusion | ImageSpace
# The contestant of what makes images, of what the method would optimise of it and how, with the rates in its own scale.
Baseline = Callable[[Maker, Parametrise, Descent], Contestant]


def none(generator: Maker, controls: Parametrise, descent: Descent) -> Contestant:
    """The method itself; where nothing is optimized, given images may be looked at without a generator."""
    if isinstance(generator, ImageSpace) and not (descent.steps and any(descent.lr.values())):
        return Contestant(generator, generator, descent)
    asked = controls(diffusion(generator, "task.baseline=none"))
    return Contestant(asked, asked, descent)


def start_only(generator: Maker, controls: Parametrise, descent: Descent) -> Contestant:
    """The start alone: the words exchanged by Prompt-to-Prompt, nothing optimised."""
    return none(diffusion(generator, "task.baseline=start_only"), controls, replace(descent, steps=0))


def diffusion(generator: Maker, asked: str) -> LatentDiffusion:
    """The diffusion model that what is asked for needs. Raises UserError if there is none."""
    if isinstance(generator, ImageSpace):
        raise UserError(
            f"generator=none: {asked} needs a generator; without one allowed are pixels, yosinski, "
            f"mahendran_vedaldi, feature_attack (as far as the task has them), and task=input_gradients"
        )
    return generator


def _reported(generator: Maker, controls: Parametrise) -> int:
    """How many images an answer of the method is; without a generator one."""
    return 1 if isinstance(generator, ImageSpace) else controls(generator).reported


def pixels(
    generator: Maker, controls: Parametrise, descent: Descent, begun: Begun, most: Repeats
) -> Contestant:  # fmt: skip
    """The same loss by descent on the picture's pixels. begun: where a picture begins that is not given; most: pictures
    per answer at most, where the method's is several."""
    shown = several(PixelDescent(generator, begun, reach=0), _reported(generator, controls), most)
    return Contestant(shown, shown, descent)


def guidance(generator: Maker, controls: Parametrise, descent: Descent) -> Contestant:
    """The same loss as a guide of one sampling: no controls are optimised, see `models.generator.guidance`."""
    sampled = diffusion(generator, "task.baseline=guidance")
    check_guided(sampled)

    def finish(controls: Controls, anchor: Anchor, objective: Objective) -> Controls:
        image = guided_sampling(
            sampled, controls, anchor, lambda scene: evaluate(objective, scene).total, descent.lr["guidance"]
        )
        return {"pixels": image}

    return Contestant(sampled, PixelDescent(sampled, as_drawn, reach=0), replace(descent, steps=0), finish)


def activation_maximisation(
    generator: Maker, controls: Parametrise, descent: Descent, begun: Begun, most: Repeats, jitter: Reach,
    method: Callable[..., torch.optim.Optimizer], steps: Steps, rate: Rate, between: Mapping[str, Regulariser],
    penalties: Mapping[str, Term], weights: Weights, without: Sequence[str],
) -> Contestant:  # fmt: skip
    """Pixels by another paper's descent, on the task's terms at the pictures themselves, without crops.

    begun, most: see `pixels`; jitter: reach in pixels, see `models.generator.pixel_space`; method, steps, rate: an
    optimiser of torch, the number of its steps and their constant rate; between: what is done with the picture after
    every update, in this order, before it is cut to [0, 1]; penalties, weights: terms beside the task's, with their
    weights; without: terms of the task that these take the place of.
    """
    shown = several(PixelDescent(generator, begun, jitter), _reported(generator, controls), most)

    def project(after: Controls, gradients: Controls, anchor: Anchor, step: int) -> Controls:
        x, own = after["pixels"], anchor.own if isinstance(anchor, SeveralAnchor) else anchor
        update = Update(gradients["pixels"], own.original.view_as(x), step)
        for regularise in between.values():
            x = regularise(x, update)
        return {"pixels": x.clamp(0, 1)}

    def objective(asked: Objective) -> Objective:
        kept = {name: term for name, term in asked.items() if name not in without}
        return kept | {name: (weights[name], term) for name, term in penalties.items()}

    own = replace(descent, method=method, steps=steps, lr={"pixels": rate}, min_lr=None, clip=None, stop=None)
    return Contestant(shown, shown, replace(own, project=project), objective=objective, augmented=False)


def generator_prior(
    generator: Maker, controls: Parametrise, descent: Descent, most: Repeats,
    method: Callable[..., torch.optim.Optimizer], steps: Steps, rate: Rate,
) -> Contestant:  # fmt: skip
    """The start latent alone, see `models.generator.latent_prior`, at the pictures themselves, without crops; most,
    method, steps, rate: see `activation_maximisation`."""
    model = diffusion(generator, "task.baseline=generator_prior")
    prior = several(LatentPrior(model), controls(model).reported, most)
    own = replace(descent, method=method, steps=steps, lr={"latent": rate}, min_lr=None, clip=None, stop=None)
    return Contestant(prior, prior, own, augmented=False)


def several(generator: Generator, reported: int, most: int) -> Generator:
    """A generator whose answers are as many pictures as the method's, `most` at most."""
    count = min(reported, most)
    return generator if count == 1 else Several(generator, count)
