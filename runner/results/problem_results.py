"""From what a batch's descent has found to each problem's pictures, measures and result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save as serialise
from torch import Tensor

from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.logging.logger import Logger
from classifier_lens.runner.optimization.loop import OptimizationState
from classifier_lens.runner.protocols import Classifier, Task
from classifier_lens.runner.results.run_folder import RunFolder, quantize_8bit, write_png
from classifier_lens.runner.types import Candidate, NonFiniteError, Problem, Reference, ensure_finite


@dataclass(frozen=True)
class BatchResults:
    """What was found for a batch. candidates: what each sample was initialized with;
    max_steps: K, those that were allowed; lasting: names of the controls that are kept;
    start_images, best_images: what the first controls and the best ones show, of each problem's pictures the one that
    counts first; prompts: the words that each was found under; losses: the terms at the best step; notes: per problem,
    what the reader has to know."""

    problems: Sequence[Problem]
    reference: Reference
    candidates: Sequence[Candidate]
    state: OptimizationState
    max_steps: int
    lasting: Sequence[str]
    start_images: Float[Tensor, "b n 3 h w"]
    best_images: Float[Tensor, "b n 3 h w"]
    prompts: Sequence[str]
    losses: Sequence[Mapping[str, float]]
    warnings: Sequence[Sequence[str]]

    def pictures(self, i: int) -> dict[str, Float[Tensor, "c h w"]]:
        """Those of problem i, in [0, 1], by their names."""
        problem, pictures = self.problems[i], {"start": self.start_images[i, 0], "best": self.best_images[i, 0]}
        pictures |= {f"sample_{j:02}": picture for j, picture in enumerate(self.best_images[i, 1:], start=1)}
        if problem.load is not None or problem.edit.source != problem.edit.target:
            pictures = {"original": self.reference.original[i], **pictures}  # drawn with the first words if not given
        if problem.preserve in ("background", "foreground"):
            pictures["mask"] = self.reference.mask[i]
        return pictures


def sample_values(values: Mapping[str, Sequence[float]], i: int) -> dict[str, float]:
    """One sample's values of an evaluation, with the target's confidence where a log-probability is among them."""
    row = {name: value[i] for name, value in values.items()}
    if "class_log_prob" in row:
        row["confidence"] = float(torch.tensor(-row["class_log_prob"]).exp())
    return row


@dataclass
class ImageWriter:
    """Pictures in a folder as their files hold them: what is reported is measured on that. The files are there when
    `wait` returns."""

    folder: Path
    executor: Executor
    images: dict[str, Tensor] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    pending: list[Future[None]] = field(default_factory=list)

    def add(self, pictures: Mapping[str, Tensor]) -> None:
        """Begin to save pictures (c, h, w) in [0, 1] under their names. Raises NonFiniteError."""
        for name, picture in pictures.items():
            ensure_finite(picture[None], f"the picture '{name}'")
            self.paths[name] = self.folder / f"{name}.png"
            self.images[name] = quantize_8bit(picture).cpu()
            self.pending.append(self.executor.submit(write_png, self.paths[name], self.images[name]))

    def wait(self) -> None:
        """Raises what kept a file from being written."""
        for writing in self.pending:
            writing.result()


def save_result(
    answers: BatchResults,
    i: int,
    task: Task,
    classifier: Classifier,
    folder: RunFolder,
    logger: Logger,
    writers: Executor,
) -> None:
    """Save the pictures of problem i and what they can be made again from, measure the saved ones and write its result.
    Raises NonFiniteError for what was given up, and for a picture or a measured value that is not finite."""
    problem, state, clock = answers.problems[i], answers.state, time.monotonic()
    if (reason := state.failures[i]) is not None:
        raise NonFiniteError(reason)
    saved = ImageWriter(folder.problem_folder(problem.name), writers)
    if lasting := {name: state.best_controls[name][i].cpu().contiguous() for name in answers.lasting}:
        controls = saved.folder / "controls.safetensors"
        write_durable(controls, serialise(lasting, metadata={"prompt": problem.edit.target}))
    saved.add(answers.pictures(i))
    before = "original" if "original" in saved.images else "start"
    shown = {**saved.images, "before": saved.images[before]}
    saved.add({"difference": (shown["best"] - shown["before"]).abs()})
    device = answers.reference.original.device
    shown = {name: picture.to(device) for name, picture in shown.items()}
    saved.add(task.illustrate(problem, shown, classifier))
    shown |= {name: picture.to(device) for name, picture in saved.images.items()}
    record = {
        "name": problem.name,
        "picture": problem.image_name,
        **task.measure(problem, shown, classifier),
        "caption": problem.edit.source,
        "prompt": answers.prompts[i],
        "loss": dict(answers.losses[i]),
        "steps": answers.max_steps,
        "best_step": int(state.best_step[i]),
        "inject": round(answers.candidates[i].cross_replace_steps, 6),
        "blend": round(answers.candidates[i].background_blend_steps, 6),
        "seconds": round(state.seconds / len(answers.problems) + time.monotonic() - clock, 2),
        "seed": problem.seed,
        "warnings": list(answers.warnings[i]),
        "keep": problem.preserve,
        "images": {name: str(path.relative_to(folder.path)) for name, path in saved.paths.items()},
        **({"controls": str(controls.relative_to(folder.path))} if lasting else {}),
        "history": [{"step": k, **sample_values(values, i)} for k, values in enumerate(state.history)],
    }
    saved.wait()
    folder.write_result(problem.name, record)
    logger.log_result(record, saved.paths)
