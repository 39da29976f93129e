"""What may answer a task's questions in the method's place, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.diffusion import LatentDiffusion
from models.pixels import PixelDescent
from runner.optimize import Descent
from runner.types import Generator, UserError

Contestant = tuple[Generator, Descent]


def none(generator: LatentDiffusion, descent: Descent) -> Contestant:
    """The method itself."""
    return generator, descent


def start_only(generator: LatentDiffusion, descent: Descent) -> Contestant:
    """The start alone: the words exchanged by Prompt-to-Prompt, nothing optimised."""
    return generator, replace(descent, steps=0)


def pixels(generator: LatentDiffusion, descent: Descent) -> Contestant:
    """The same loss by descent on the picture's pixels."""
    return PixelDescent(generator), descent


BASELINES: dict[str, Callable[[LatentDiffusion, Descent], Contestant]] = {
    "none": none, "start_only": start_only, "pixels": pixels,
}  # fmt: skip


def contestant(name: str, generator: LatentDiffusion, descent: Descent) -> Contestant:
    """The generator and descent of a baseline. Raises UserError for an unknown name."""
    if name not in BASELINES:
        raise UserError(f"task.baseline={name}: allowed are {', '.join(BASELINES)}")
    return BASELINES[name](generator, descent)
