"""A visual counterfactual of one image, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from classifier_lens.data.image_folder import SingleImageDataset
from classifier_lens.data.in_memory import to_image_tensor
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.user_network import callable_classifier
from classifier_lens.runner.batch import report_progress
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.logging.progress_bar import Progress, progress
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.protocols import Classifier, TaskInputs
from classifier_lens.runner.result_schema import ResultImages
from classifier_lens.runner.results.run_folder import check_finite, quantize_8bit
from classifier_lens.runner.run import Parts, make_solver, plan_batch
from classifier_lens.runner.types import Example, UserError
from classifier_lens.tasks.prompts.target_rules import TARGET_RULES
from classifier_lens.tasks.uvce import Uvce


@dataclass(frozen=True)
class Counterfactual:
    """A counterfactual with its measurements.

    image: the counterfactual in [0, 1]; mask: the editable region; success: whether the prediction changes to the
    target; confidences: by class name; loss: the terms at the best step, before their weights.
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
    image: object, classifier: Classifier | nn.Module | Callable[[Tensor], Tensor], label: str, target: str,
    caption: str | None = None, overrides: Sequence[str] = (), labels: Sequence[str] | None = None, **settings: Any,
) -> Counterfactual:  # fmt: skip
    """A visual counterfactual of one image. Prints progress and the folder that stores inverted images.

    image: a Pillow image, a NumPy array or a tensor, see `data.in_memory.to_image_tensor`;
    classifier: a network, any module or function that maps normalized images (b, 3, size, size) to logits (b, k); or
    one with class names and preprocessing, as `models.classifier.loaders` returns;
    label: the class that the image shows; target: the class that should be predicted, or a rule such as `confusion`;
    caption: has to contain the label; None for one from a template;
    overrides: as on the command line, such as `optimizer.steps=10`;
    labels: of a network, the class names in the order of the logits; settings: of a network, `size`, `mean`, `std` and
    the other keys of conf/classifier/callable.yaml, with its defaults. A network keeps its modes and weights.

    Raises UserError for bad input, RuntimeError if the loss is not finite, NonFiniteError if a measured value is not
    finite.
    """
    pixels = to_image_tensor(image)
    texts = {"label": label, "target": target} | ({} if caption is None else {"caption": caption})
    for key, text in (texts | {f"overrides[{i}]": word for i, word in enumerate(overrides)}).items():
        if not isinstance(text, str):
            raise UserError(f"{key}={text!r}: is of type {type(text).__name__}; give a text")
    with _restored(classifier), _default_torch_state():
        image_classifier, config = _compose(classifier, labels, target, overrides, settings)
        data = SingleImageDataset(Example("image", lambda: pixels, label, caption))
        with progress(1, 0) as bar:
            bar.start_batch(["image"])
            if folder := config["cache"]["folder"]:
                bar.message(f"inverted images are stored in {Path(folder).resolve()}")
            bar.set_phase("preparing")
            return _explain(build(config, classifier=image_classifier, data=data), data, config, bar)


def _compose(
    classifier: Any, labels: Sequence[str] | None, target: str, overrides: Sequence[str], settings: Mapping[str, Any]
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier with class names and preprocessing, and its configuration."""
    is_complete = all(
        hasattr(classifier, name) for name in ("labels", "size", "digest", "fingerprint", "forward_with_activations")
    )
    if is_complete and (labels is not None or settings):
        raise UserError(f"{', '.join(['labels', *settings])}: the classifier has its own; leave them out")
    if is_complete:
        words = _words(getattr(classifier, "domain", None), overrides)
        return classifier, compose_config(words, {"task.target": _target(target, classifier.labels)})
    if labels is None or isinstance(labels, (str, Path)):
        raise UserError("labels: a network needs the names of its classes, a list in the order of the logits")
    names = list(read_labels(labels))
    values: dict[str, object] = {"task.target": _target(target, names)}
    values |= {"classifier.target": "in memory", "classifier.labels": names}
    values |= {f"classifier.{key}": value for key, value in settings.items()}
    config = compose_config(["classifier=callable", *_words(settings.get("domain"), overrides)], values)
    node = {key: value for key, value in config["classifier"].items() if key != "_target_"}
    return callable_classifier(**{**node, "target": classifier}), config


def _target(target: str, names: Sequence[str]) -> str | list[str]:
    """The target, as a class also if its name is that of a rule."""
    return [target] if target in names and target in TARGET_RULES else target


def _words(domain: str | None, overrides: Sequence[str]) -> list[str]:
    """The overrides, with the classifier's domain unless they select one or it has none."""
    if classifiers := [word for word in overrides if word.startswith("classifier=")]:
        raise UserError(f"overrides: {classifiers[0]}; is not allowed, since the classifier is given as an object")
    domain_words = (
        [] if domain is None or any(word.startswith("domain=") for word in overrides) else [f"domain={domain}"]
    )
    return [*domain_words, "logger=none", *overrides]


def _explain(parts: Parts, data: SingleImageDataset, config: Mapping[str, Any], bar: Progress) -> Counterfactual:
    """The counterfactual of the only problem."""
    if not isinstance(parts.task, Uvce):
        raise UserError(
            f"task={config['options']['task']}: explain() has the task uvce alone; start other tasks with run.py"
        )
    solver = make_solver(parts)
    problems, _ = parts.task.problems(TaskInputs(data, parts.classifier, parts.generator, config["seed"], limit=1))
    if problems[0].error is not None:
        raise problems[0].error
    solver.check(problems)
    if parts.generator.gradient_checkpointing == "auto":
        plan_batch(parts, solver, 1, 1)
    batch = solver.initialize(problems)
    state = loop.initial_state(batch.controls, batch.choice)
    for latest in solver.optimize(batch, state):
        state = latest
        if state.failures[0] is not None:
            raise RuntimeError(state.failures[0])
        report_progress(state, problems, solver.settings.steps, bar, parts.logger)
    results, reference = solver.results(batch, state), batch.reference
    original, start, result = (
        quantize_8bit(images[0])
        for images in (reference.original, results.start_images[:, 0], results.result_images[:, 0])
    )
    values = parts.task.measure(problems[0], ResultImages(original, start, result, reference.mask[0]), parts.classifier)
    check_finite({**values, "loss": results.losses[0]})
    bar.advance(1)
    return Counterfactual(
        image=result, original=original, mask=reference.mask[0], success=values["success"],
        confidence_before=values["confidence_before"], confidence_after=values["confidence_after"],
        loss=dict(results.losses[0]), warnings=list(results.warnings[0]),
    )  # fmt: skip


@contextmanager
def _default_torch_state() -> Iterator[None]:
    """PyTorch with the defaults of a run: gradients, float32, no autocast, tensors on the CPU; afterwards the caller's
    settings and random state are restored."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, default)
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        elsewhere = [torch.device("cpu")] if torch.get_default_device().type != "cpu" else []
        autocast = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
        contexts: list[AbstractContextManager[Any]] = [torch.inference_mode(False), torch.enable_grad()]
        for context in [*contexts, *autocast, *elsewhere]:
            stack.enter_context(context)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _restored(classifier: object) -> Iterator[None]:
    """Restores a module's modes, trainable parameters, number format and device afterwards."""
    if not isinstance(classifier, nn.Module):
        yield
        return
    modes = [(module, module.training, dict(module.named_buffers(recurse=False))) for module in classifier.modules()]
    weights = [(parameter, parameter.requires_grad, parameter.data) for parameter in classifier.parameters()]
    try:
        yield
    finally:
        for module, mode, buffers in modes:
            module.training = mode
            for name, buffer in buffers.items():  # moving or converting a module replaces them
                setattr(module, name, buffer)
        for parameter, trained, data in weights:
            parameter.requires_grad_(trained)
            parameter.data = data
