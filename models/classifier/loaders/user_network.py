"""The user's network: an object, or the name of a network or of a function that creates it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.network_identity import track_identity
from classifier_lens.models.classifier.preprocessing import INTERPOLATIONS
from classifier_lens.runner.configuration.value_ranges import Names, Normalization, OneOf, Pixels
from classifier_lens.runner.user_code import load_callable


def callable_classifier(
    target: str | Callable[..., Any], labels: str | Names, size: Pixels, mean: Normalization, std: Normalization,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)], domain: str | None, output: str | None = None,
    extra_files: Sequence[str] = (),
) -> ImageClassifier:  # fmt: skip
    """The user's network as a classifier.

    Args:
        target: a function or `torch.nn.Module` that maps normalized images (b, 3, size, size) to logits (b, k), or its
            name as `module:name` or `file.py:name`. A function without required arguments is called once and has to
            return such a network.
        labels: a text file with one name per line, or the names, in the order of the logits.
        output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for undeclared logits.
        extra_files: files other than code and weights that the outputs depend on, see
            `models.classifier.loaders.network_identity`.

    Raises:
        UserError: with the file and line of the user's code, if that fails.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    key = f"classifier.target={name}" if isinstance(target, str) else f"classifier={name}"
    network = load_callable(target, key)
    if isinstance(network, nn.Module):
        network.float()
    names = read_labels(labels)
    classifier = ImageClassifier(network, names, size, mean, std, interpolation, domain, forward_logits, key, output)
    return track_identity(classifier, target if isinstance(target, str) else "", extra_files)
