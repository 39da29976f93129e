"""Conversion of network outputs (logits, probabilities, one score) to logits, and checks of the declared type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import UserError

ToLogits = Callable[[Tensor], Tensor]

SUM_TOLERANCE = 1e-3  # relative, of the sums of probabilities in half precision


def _finite_log(values: Tensor) -> Tensor:
    """log p, finite at 0."""
    return values.clamp(min=torch.finfo(torch.float32).tiny).log()


def _log_odds(values: Tensor) -> Tensor:
    """log p − log(1 − p), finite at 0 and 1."""
    return _finite_log(values) - torch.log1p(-values.clamp(max=1 - torch.finfo(torch.float32).eps / 2))


def _two_class_logits(score: Tensor) -> Tensor:
    """The logits (0, score) of two classes for the score of the second class."""
    score = score.reshape(len(score), -1)
    return torch.cat([torch.zeros_like(score), score], dim=1)


# Values of `classifier.output` -> function from float32 outputs to logits, whose softmax is the confidence.
OUTPUT_CONVERTERS: dict[str, ToLogits] = {
    "logits": lambda values: values,
    "log_probabilities": lambda values: values,
    "probabilities": _finite_log,
    "sigmoid": _log_odds,
    "binary": _two_class_logits,
    "binary_sigmoid": lambda values: _two_class_logits(_log_odds(values)),
}
BINARY_OUTPUTS = ("binary", "binary_sigmoid")


def check_output_option(name: str, output: str | None, labels: int) -> None:
    """Raises UserError unless `output` is None or one of `OUTPUT_CONVERTERS`, and fits the number of labels."""
    if output is not None and output not in OUTPUT_CONVERTERS:
        raise UserError(f"{name}: classifier.output={output}: allowed are null, {', '.join(OUTPUT_CONVERTERS)}")
    if output in BINARY_OUTPUTS and labels != 2:
        raise UserError(f"{name}: classifier.output={output} has two classes, but there are {labels} labels")


def expected_num_outputs(output: str | None, labels: int) -> int:
    """The number of outputs per image of a network with that many labels."""
    return 1 if output in BINARY_OUTPUTS else labels


def to_logits(output: str | None, values: Tensor) -> Float[Tensor, "b k"]:
    """The logits in float32 for outputs of the declared type; None stands for logits."""
    return OUTPUT_CONVERTERS[output or "logits"](values.float())


def extract_output_tensor(output: Any, name: str) -> Tensor:
    """The tensor that a network returns, or the entry or attribute `logits` of its return value.

    Raises UserError for other types: which part of a tuple contains the logits, for example, is ambiguous.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    content = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    content = f" of {len(output)}" if isinstance(output, tuple | list) else content
    raise UserError(
        f"{name}: the network returns a {type(output).__name__}{content}; allowed are a tensor (b, k) and an object "
        "with one as `logits`; return the tensor of the logits"
    )


def check_declared_output(
    name: str, output: str | None, values: Float[Tensor, "n k"], out_of_range_outputs: Callable[[], Tensor]
) -> None:
    """Raises UserError if the outputs contradict their declared type.

    Outputs without a declared type (None) are taken for logits, unless they are bounded or normalized.

    Args:
        values: outputs for several different images.
        out_of_range_outputs: computes outputs (m, k) for images far out of [0, 1]; logits leave [0, 1] there, the
            outputs of a softmax or a sigmoid do not.
    """
    value_range = f"values from {values.min().item():.3g} to {values.max().item():.3g}"
    contradictions = {
        "probabilities": not _have_equal_sums(values) and f"{value_range} whose sum differs between images",
        "sigmoid": not _in_unit_interval(values) and value_range,
        "binary_sigmoid": not _in_unit_interval(values) and value_range,
        "log_probabilities": not _are_log_probabilities(values)
        and f"{value_range} whose exponentials do not sum to 1 for each image",
    }
    if output is not None and contradictions.get(output):
        raise UserError(
            f"{name}: classifier.output={output} is declared, but the network returns {contradictions[output]}"
        )
    if output in (None, "logits", "binary") and (_have_equal_sums(values) or _in_unit_interval(values)):
        more_values = out_of_range_outputs()
        _check_logits(name, output, torch.cat([values, more_values[more_values.isfinite().all(dim=1)]]))


def _check_logits(name: str, output: str | None, values: Float[Tensor, "n k"]) -> None:
    """Raises UserError if supposed logits are normalized or bounded as probabilities are.

    Declared logits of several classes may lie in [0, 1], but may not have the same sum for every image.
    """
    name = f"{name}:" if output is None else f"{name}: classifier.output={output} is declared, but"
    if output != "binary" and _have_equal_sums(values):
        raise UserError(
            f"{name} its outputs have the same sum for every image, so they are probabilities and not logits; "
            "remove the softmax, or set classifier.output=probabilities"
        )
    if output != "logits" and _in_unit_interval(values):
        option = "binary_sigmoid" if output == "binary" else "sigmoid"
        exception = "" if output == "binary" else ", or classifier.output=logits if they are logits nevertheless"
        raise UserError(
            f"{name} its outputs lie in [0, 1] for every image, as those of a sigmoid; remove it, or set "
            f"classifier.output={option}{exception}"
        )


def _in_unit_interval(values: Tensor) -> bool:
    """Whether all values lie in [0, 1]."""
    return bool(((values >= 0) & (values <= 1)).all())


def _have_equal_sums(values: Tensor) -> bool:
    """Whether all values are non-negative and all rows have the same sum, as probabilities and percentages have."""
    sums = values.sum(dim=1)
    return bool((values >= 0).all() and sums[0] > 0 and (sums - sums[0]).abs().max() <= SUM_TOLERANCE * sums[0])


def _are_log_probabilities(values: Tensor) -> bool:
    """Whether the exponentials of each row sum to 1."""
    return bool((values.logsumexp(dim=1).exp() - 1).abs().max() <= SUM_TOLERANCE)


def describe_output_mismatch(output: str | None, outputs: int, labels: int) -> str:
    """Message that the number of outputs differs from the number of labels, with the option that resolves it."""
    is_binary = outputs == 1 and labels == 2 and output not in BINARY_OUTPUTS
    advice = (
        "; one output is the score of the second label: set classifier.output=binary, or binary_sigmoid after a sigmoid"
        if is_binary
        else ""
    )
    return f"output size {outputs} does not match its {labels} labels{advice}"
