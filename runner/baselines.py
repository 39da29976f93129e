"""What may answer a task's questions in the method's place, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from models.diffusion import LatentDiffusion
from models.guided import guided_sampling
from models.pixels import PixelDescent
from runner.objective import evaluate
from runner.optimize import Descent
from runner.types import Anchor, Controls, Generator, Objective, UserError

# From where a batch starts to where its descent begins.
Finish = Callable[[Controls, Anchor, Objective], Controls]


# What of a diffusion model is optimised: `conf/controls/`.
Parametrise = Callable[[LatentDiffusion], Generator]


def unchanged(controls: Controls, anchor: Anchor, objective: Objective) -> Controls:
    """The start is where the descent begins."""
    return controls


@dataclass(frozen=True)
class Contestant:
    """What answers: what begins, what is done with its controls then, whose controls they become, how to descend."""

    begin: Generator
    generator: Generator
    descent: Descent
    finish: Finish = unchanged


def none(generator: LatentDiffusion, controls: Parametrise, descent: Descent) -> Contestant:
    """The method itself."""
    asked = controls(generator)
    return Contestant(asked, asked, descent)


def start_only(generator: LatentDiffusion, controls: Parametrise, descent: Descent) -> Contestant:
    """The start alone: the words exchanged by Prompt-to-Prompt, nothing optimised."""
    return none(generator, controls, replace(descent, steps=0))


def pixels(generator: LatentDiffusion, controls: Parametrise, descent: Descent) -> Contestant:
    """The same loss by descent on the picture's pixels."""
    shown = PixelDescent(generator)
    return Contestant(shown, shown, descent)


def guidance(generator: LatentDiffusion, controls: Parametrise, descent: Descent) -> Contestant:
    """The same loss as a guide of one sampling: no controls are optimised, see `models.guided`."""

    def finish(controls: Controls, anchor: Anchor, objective: Objective) -> Controls:
        image = guided_sampling(
            generator, controls, anchor, lambda scene: evaluate(objective, scene).total, descent.lr["guidance"]
        )
        return {"pixels": image}

    return Contestant(generator, PixelDescent(generator), replace(descent, steps=0), finish)


BASELINES: dict[str, Callable[[LatentDiffusion, Parametrise, Descent], Contestant]] = {
    "none": none, "start_only": start_only, "pixels": pixels, "guidance": guidance,
}  # fmt: skip


def contestant(name: str, generator: LatentDiffusion, controls: Parametrise, descent: Descent) -> Contestant:
    """The contestant of a baseline. Raises UserError for an unknown name."""
    if name not in BASELINES:
        raise UserError(f"task.baseline={name}: allowed are {', '.join(BASELINES)}")
    return BASELINES[name](generator, controls, descent)
