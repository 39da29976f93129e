"""From the optimized controls of a batch to each problem's images, measurements and result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save as serialize
from torch import Tensor

from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.logging.logger import Logger
from classifier_lens.runner.optimization.loop import OptimizationState
from classifier_lens.runner.protocols import Classifier, Task
from classifier_lens.runner.result_schema import DIFFERENCE, ImageField, ResultImages
from classifier_lens.runner.results.run_folder import RunFolder, quantize_8bit, write_png
from classifier_lens.runner.types import Candidate, NonFiniteError, Problem, Reference, ensure_finite

CONTROLS_FILE = "controls.safetensors"


@dataclass(frozen=True)
class BatchResults:
    """What the optimization of a batch found. candidates: the initialization of each sample; max_steps: K, the
    configured number of steps; saved_controls: names of the controls that are saved; start_images, result_images: of
    the first and of the best controls, of each problem the main image first; prompts: the prompt of each result;
    losses: the terms at the best step; warnings: per problem."""

    problems: Sequence[Problem]
    reference: Reference
    candidates: Sequence[Candidate]
    state: OptimizationState
    max_steps: int
    saved_controls: Sequence[str]
    start_images: Float[Tensor, "b n 3 h w"]
    result_images: Float[Tensor, "b n 3 h w"]
    prompts: Sequence[str]
    losses: Sequence[Mapping[str, float]]
    warnings: Sequence[Sequence[str]]

    def images(self, i: int) -> ResultImages:
        """The images of problem i. A generated image has an original if its prompt changes: the image of the source
        prompt."""
        problem = self.problems[i]
        has_original = problem.load is not None or problem.edit.source != problem.edit.target
        return ResultImages(
            original=self.reference.original[i] if has_original else None,
            start=self.start_images[i, 0],
            result=self.result_images[i, 0],
            mask=self.reference.mask[i] if problem.preserve in ("background", "foreground") else None,
            samples=list(self.result_images[i, 1:]),
        )


def sample_values(values: Mapping[str, Sequence[float]], i: int) -> dict[str, float]:
    """One sample's values of an evaluation, and the target's confidence if its log-probability is among them."""
    row = {name: value[i] for name, value in values.items()}
    if "class_log_prob" in row:
        row["confidence"] = float(torch.tensor(-row["class_log_prob"]).exp())
    return row


@dataclass
class ImageWriter:
    """Writes images to a folder in threads; the files exist when `wait` returns."""

    folder: Path
    executor: Executor
    paths: dict[str, Path] = field(default_factory=dict)
    pending: list[Future[None]] = field(default_factory=list)

    def add(self, images: Mapping[ImageField, Tensor]) -> dict[ImageField, Tensor]:
        """Start to save images (c, h, w) in [0, 1]; returns them as their 8-bit files hold them, on the CPU, since
        results are measured on these. Raises NonFiniteError."""
        saved = {}
        for image_field, image in images.items():
            ensure_finite(image[None], f"the image '{image_field.key}'")
            saved[image_field] = quantize_8bit(image).cpu()
            self.paths[image_field.key] = self.folder / f"{image_field.key}.png"
            self.pending.append(self.executor.submit(write_png, self.paths[image_field.key], saved[image_field]))
        return saved

    def wait(self) -> None:
        """Raises the errors of writing."""
        for writing in self.pending:
            writing.result()


def save_result(
    results: BatchResults,
    i: int,
    task: Task,
    classifier: Classifier,
    folder: RunFolder,
    logger: Logger,
    executor: Executor,
) -> None:
    """Save the images and controls of problem i, measure the saved images and write the result. Raises NonFiniteError
    for a failed problem, and for an image or a measured value that is not finite."""
    problem, state, clock = results.problems[i], results.state, time.monotonic()
    if (failure := state.failures[i]) is not None:
        raise NonFiniteError(failure)
    writer = ImageWriter(folder.problem_folder(problem.name), executor)
    controls = _save_controls(results, i, writer.folder)
    images = _save_images(writer, results.images(i), problem, task, classifier, results.reference.original.device)
    measured = task.measure(problem, images, classifier)
    record = {
        "name": problem.name,
        "image_name": problem.image_name,
        **measured,
        "caption": problem.edit.source,
        "prompt": results.prompts[i],
        "loss": dict(results.losses[i]),
        "max_steps": results.max_steps,
        "best_step": int(state.best_step[i]),
        "cross_replace_steps": round(results.candidates[i].cross_replace_steps, 6),
        "background_blend_steps": round(results.candidates[i].background_blend_steps, 6),
        "seconds": round(state.seconds / len(results.problems) + time.monotonic() - clock, 2),
        "seed": problem.seed,
        "warnings": list(results.warnings[i]),
        "preserve": problem.preserve,
        "images": {key: str(path.relative_to(folder.path)) for key, path in writer.paths.items()},
        **({} if controls is None else {"controls_file": str(controls.relative_to(folder.path))}),
        "history": [{"step": k, **sample_values(values, i)} for k, values in enumerate(state.history)],
    }
    writer.wait()
    folder.write_result(problem.name, record)
    logger.log_result(record, writer.paths)


def _save_images(
    writer: ImageWriter,
    images: ResultImages,
    problem: Problem,
    task: Task,
    classifier: Classifier,
    device: torch.device,
) -> ResultImages:
    """Save a problem's images, their difference and those of the task; returns the saved 8-bit images on a device."""
    saved = writer.add(images.by_field())
    on_cpu = ResultImages.from_fields(saved)
    writer.add({DIFFERENCE: (on_cpu.result - on_cpu.before).abs()})
    on_device = ResultImages.from_fields({key: image.to(device) for key, image in saved.items()})
    illustrations = writer.add(task.illustrate(problem, on_device, classifier))
    return replace(on_device, task_images={key: image.to(device) for key, image in illustrations.items()})


def _save_controls(results: BatchResults, i: int, folder: Path) -> Path | None:
    """Save the controls from which the result can be generated again; the path of their file, None without any."""
    controls = {name: results.state.best_controls[name][i].cpu().contiguous() for name in results.saved_controls}
    if not controls:
        return None
    path = folder / CONTROLS_FILE
    write_durable(path, serialize(controls, metadata={"prompt": results.problems[i].edit.target}))
    return path
