"""Ask one question from Python: what must this picture look like to be called something else?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from data.folder import OnePicture
from runner import optimize
from runner.compose import build, configure
from runner.protocols import Classifier, World
from runner.record import to_8_bits
from runner.run import fit, solver
from runner.types import Example


@dataclass(frozen=True)
class Answer:
    """A counterfactual and what the classifier says of it.

    image, original: (3, h, w) in [0, 1]; mask: (1, h, w), the region that was free to change; success: whether the
    image is predicted as asked; confidences: by class name; loss: the terms at the best step, before their weights.
    """

    image: Float[Tensor, "3 h w"]
    original: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "1 h w"]
    success: bool
    confidence_before: dict[str, float]
    confidence_after: dict[str, float]
    loss: dict[str, float]
    warnings: list[str]


def explain(
    image: Float[Tensor, "3 h w"], classifier: Classifier, label: str, target: str, caption: str | None = None,
    overrides: Sequence[str] = (),
) -> Answer:  # fmt: skip
    """A visual counterfactual of one picture.

    image: RGB in [0, 1], any size; classifier: anything with `labels`, `size` and `digest` that maps images to a
    `runner.types.Response` (`models.zoo` has loaders, `models.classifier.ImageClassifier` wraps a network); label: what
    the picture shows, one of the classifier's names; target: what it should be called, or a rule such as `confusion`;
    caption: must contain the label, a template writes one if it is None; overrides: as on the command line, such as
    `optimizer.steps=10`. Raises UserError for bad input, RuntimeError if the loss is not finite.
    """
    domain = getattr(classifier, "domain", "planted")
    config = configure([f"domain={domain}", f"task.target={target}", "logger=none", *overrides])
    data = OnePicture(Example("picture", image, label, caption))
    parts = build(config, classifier=classifier, data=data)
    answer = solver(parts)
    problems, _ = parts.task.problems(World(data, classifier, parts.generator, config["seed"], limit=1))
    answer.check(problems)
    if parts.generator.recompute == "auto":
        fit(parts, answer, 1, 1)
    controls, anchor, notes, origin = answer.start(problems)
    state = optimize.begin(controls, origin)
    for latest in answer.states(problems, anchor, state):
        state = latest
        if state.failed[0] is not None:
            raise RuntimeError(state.failed[0])
    found = answer.answers(problems, controls, anchor, state, notes)
    shown = (anchor.original, found.starts[:, 0], found.bests[:, 0])
    original, start, best = (to_8_bits(pictures[0]) for pictures in shown)
    pictures = {"before": original, "start": start, "best": best, "mask": anchor.mask[0]}
    pictures |= parts.task.illustrate(problems[0], pictures, classifier)
    measured = parts.task.measure(problems[0], pictures, classifier)
    return Answer(
        image=best, original=original, mask=anchor.mask[0], success=measured["success"],
        confidence_before=measured["confidence_before"], confidence_after=measured["confidence_after"],
        loss=dict(found.losses[0]), warnings=list(found.notes[0]),
    )  # fmt: skip
