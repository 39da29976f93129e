"""What a network's outputs mean, and how logits are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import UserError

ToLogits = Callable[[Tensor], Tensor]

SUM_TOLERANCE = 1e-3  # relative: probabilities in half precision sum to one this closely


def _logs(values: Tensor) -> Tensor:
    """Logarithms that stay finite at 0."""
    return values.clamp(min=torch.finfo(torch.float32).tiny).log()


def _log_odds(values: Tensor) -> Tensor:
    """log p − log(1 − p), finite at 0 and 1."""
    return _logs(values) - torch.log1p(-values.clamp(max=1 - torch.finfo(torch.float32).eps / 2))


def _two_classes(score: Tensor) -> Tensor:
    """One score per image, which speaks for the second class, as the logits of two."""
    score = score.reshape(len(score), -1)
    return torch.cat([torch.zeros_like(score), score], dim=1)


# What `classifier.output` may say, and the logits, whose softmax is the confidence, of float32 outputs.
OUTPUT_CONVERTERS: dict[str, ToLogits] = {
    "logits": lambda values: values,
    "log_probabilities": lambda values: values,
    "probabilities": _logs,
    "sigmoid": _log_odds,
    "binary": _two_classes,
    "binary_sigmoid": lambda values: _two_classes(_log_odds(values)),
}
BINARY_OUTPUTS = ("binary", "binary_sigmoid")


def check_output_option(name: str, output: str | None, labels: int) -> None:
    """Raises UserError unless `output` is None or one of `OUTPUT_CONVERTERS`, and fits the number of labels."""
    if output is not None and output not in OUTPUT_CONVERTERS:
        raise UserError(f"{name}: classifier.output={output}: allowed are null, {', '.join(OUTPUT_CONVERTERS)}")
    if output in BINARY_OUTPUTS and labels != 2:
        raise UserError(f"{name}: classifier.output={output} has two classes, but there are {labels} labels")


def expected_num_outputs(output: str | None, labels: int) -> int:
    """How many values a network gives per image for that many labels."""
    return 1 if output in BINARY_OUTPUTS else labels


def to_logits(output: str | None, values: Tensor) -> Float[Tensor, "b k"]:
    """Logits, in float32, of a network's outputs; None stands for logits."""
    return OUTPUT_CONVERTERS[output or "logits"](values.float())


def extract_output_tensor(answer: Any, name: str) -> Tensor:
    """A network's outputs: the tensor that it gives, or the entry or attribute `logits` of what it gives.

    Raises UserError for anything else: which part of a tuple, for example, holds the logits is not for us to guess.
    """
    if isinstance(answer, Tensor):
        return answer
    inside = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(inside, Tensor):
        return inside
    parts = f" of {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
    parts = f" of {len(answer)}" if isinstance(answer, tuple | list) else parts
    raise UserError(
        f"{name}: an answer is a {type(answer).__name__}{parts}; allowed are a tensor (b, k), and what has one as "
        "`logits`; return the one that holds the logits"
    )


def check_declared_output(
    name: str, output: str | None, values: Float[Tensor, "n k"], more: Callable[[], Tensor]
) -> None:
    """Raises UserError if the outputs for several unlike images contradict what they are declared as.

    Not declared (None), they are taken for logits unless they look like something else: more (m, k), outputs for images
    far out of [0, 1], which logits follow and what ends in a softmax or a sigmoid cannot.
    """
    scales = f"values from {values.min().item():.3g} to {values.max().item():.3g}"
    wrong = {
        "probabilities": not _are_shares(values) and f"{scales}, whose sum is not the same for every image",
        "sigmoid": not _inside(values) and scales,
        "binary_sigmoid": not _inside(values) and scales,
        "log_probabilities": not _are_log_shares(values)
        and f"{scales}, of which the exponentials of an image's do not sum to 1",
    }
    if output is not None and wrong.get(output):
        raise UserError(f"{name}: classifier.output={output} is declared, but the network gives {wrong[output]}")
    if output in (None, "logits", "binary") and (_are_shares(values) or _inside(values)):
        far = more()
        _check_logits(name, output, torch.cat([values, far[far.isfinite().all(dim=1)]]))


def _check_logits(name: str, output: str | None, values: Float[Tensor, "n k"]) -> None:
    """Raises UserError if what is taken for logits is bounded as probabilities are. What is declared to be the logits
    of several classes may lie in [0, 1], but not sum to the same for every image."""
    shares, inside = output != "binary" and _are_shares(values), _inside(values)
    name = f"{name}:" if output is None else f"{name}: classifier.output={output} is declared, but"
    if shares:
        raise UserError(
            f"{name} its outputs have the same sum for every image, as probabilities have, and are no logits; "
            "remove the softmax, or say classifier.output=probabilities"
        )
    if inside and output != "logits":
        named = "binary_sigmoid" if output == "binary" else "sigmoid"
        least = "" if output == "binary" else ", or classifier.output=logits if they are logits all the same"
        raise UserError(
            f"{name} its outputs lie in [0, 1] for every image, as behind a sigmoid; remove it, or say "
            f"classifier.output={named}{least}"
        )


def _inside(values: Tensor) -> bool:
    """Whether all values lie in [0, 1]."""
    return bool(((values >= 0) & (values <= 1)).all())


def _are_shares(values: Tensor) -> bool:
    """Whether every row has no negative value and all rows have the same sum: probabilities, or percentages."""
    sums = values.sum(dim=1)
    return bool((values >= 0).all() and sums[0] > 0 and (sums - sums[0]).abs().max() <= SUM_TOLERANCE * sums[0])


def _are_log_shares(values: Tensor) -> bool:
    """Whether the exponentials of every row sum to 1."""
    return bool((values.logsumexp(dim=1).exp() - 1).abs().max() <= SUM_TOLERANCE)


def describe_output_mismatch(output: str | None, outputs: int, labels: int) -> str:
    """Why a number of outputs does not fit a number of labels, with the option that fits where there is one."""
    advice = (
        "; one output is the second label's score: say classifier.output=binary, or binary_sigmoid behind a sigmoid"
    )
    one = outputs == 1 and labels == 2 and output not in BINARY_OUTPUTS
    return f"output size {outputs} does not match its {labels} labels{advice if one else ''}"
