"""What answers in the method's place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.diffusion import LatentDiffusion
from models.pixels import PixelDescent
from runner import optimize
from runner.baselines import BASELINES, contestant
from runner.optimize import Descent
from runner.types import Problem, UserError
from tasks.terms import class_log_prob
from tests.conftest import TinyClassifier

Make = Callable[..., LatentDiffusion]
DESCENT = Descent(torch.optim.Adam, 4, {"latent": 0.1, "pixels": 0.01}, None, None, True)


def test_the_method_itself_and_its_start(make_generator: Make) -> None:
    generator = make_generator()
    assert contestant("none", generator, DESCENT) == (generator, DESCENT)
    same, descent = contestant("start_only", generator, DESCENT)
    assert same is generator and descent.steps == 0 and descent.lr == DESCENT.lr


def test_an_unknown_baseline_is_refused_with_the_known_ones(make_generator: Make) -> None:
    with pytest.raises(UserError, match=r"task\.baseline=magic: allowed are none, start_only, pixels"):
        contestant("magic", make_generator(), DESCENT)
    assert set(BASELINES) == {"none", "start_only", "pixels"}


def test_pixels_start_at_the_original_and_descend(
    make_generator: Make, make_problems: Callable[[int], list[Problem]]
) -> None:  # fmt: skip
    generator, descent = contestant("pixels", make_generator(), DESCENT)
    assert isinstance(generator, PixelDescent)
    problems = [p for p in make_problems(3) if p.target != int(TinyClassifier()(p.image[None]).logits.argmax())]
    start = generator.begin(problems)
    (anchor,) = start.anchors
    assert torch.equal(start.controls["pixels"], torch.stack([p.image for p in problems]))
    assert start.controls["pixels"].data_ptr() != anchor.original.data_ptr()
    with torch.no_grad():
        (scene,) = generator(start.controls, anchor)
        torch.testing.assert_close(scene.latent, anchor.encoded)
    objective = {
        "class_log_prob": (1.0, class_log_prob(TinyClassifier(), torch.tensor([p.target for p in problems])))
    }  # fmt: skip
    *_, state = optimize.optimise(
        generator, anchor, objective, lambda scene, k: scene, descent, optimize.begin(start.controls)
    )
    assert (state.best_total < torch.tensor(state.history[0]["total"])).all()


def test_pixels_outside_the_range_are_cut_and_keep_their_gradient(
    make_generator: Make, make_problems: Callable[[int], list[Problem]]
) -> None:  # fmt: skip
    generator, _ = contestant("pixels", make_generator(), DESCENT)
    anchor = generator.begin(make_problems(1)).anchors[0]
    pixels = torch.full((1, 3, 16, 16), 1.5, requires_grad=True)
    (scene,) = generator({"pixels": pixels}, anchor)
    assert scene.image.max() == 1 and torch.autograd.grad(scene.image.sum(), pixels)[0].eq(1).all()
