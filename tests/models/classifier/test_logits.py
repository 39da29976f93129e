"""Types of outputs: all types of the same prediction give the same confidences, and none is taken for another."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.logits import OUTPUT_CONVERTERS
from classifier_lens.runner.types import UserError
from tests.models.classifier.test_image_classifier import linear, wrap

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NET = linear()
Pair = namedtuple("Pair", ["aux", "logits"])


def score(x: Tensor) -> Tensor:
    """The logit of the second of two labels."""
    return 8 * NET(x)[:, :1] - 2


# By what is declared: a network that gives it, and the logits that it stands for.
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "logits": (NET, NET),
    "log_probabilities": (lambda x: NET(x).log_softmax(1), NET),
    "probabilities": (lambda x: NET(x).softmax(1), NET),
    "sigmoid": (lambda x: NET(x).sigmoid(), NET),
    "binary": (score, lambda x: F.pad(score(x), (1, 0))),
    "binary_sigmoid": (lambda x: score(x).sigmoid(), lambda x: F.pad(score(x), (1, 0))),
}


def built(kind: str, output: str | None) -> ImageClassifier:
    return wrap(FORMS[kind][0], 2 if kind.startswith("binary") else 3, output=output)


def error_of(network: Callable[[Tensor], Any], outputs: int = 3, **changes: Any) -> str:
    """The error message for a network, which is one line."""
    with pytest.raises(UserError) as caught:
        wrap(network, outputs, **changes)
    assert "\n" not in str(caught.value) and "classifier.target=x" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMS)
def test_declared_outputs_have_the_confidences_and_gradients_of_their_logits(kind: str) -> None:
    assert set(FORMS) == set(OUTPUT_CONVERTERS)
    images, same = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    log_probabilities = [built(kind, kind)(images).logits.log_softmax(1), FORMS[kind][1](same).log_softmax(1)]
    torch.testing.assert_close(log_probabilities[0], log_probabilities[1], atol=1e-5, rtol=1e-4)
    slopes = [torch.autograd.grad(a[:, 1].sum(), x)[0] for a, x in zip(log_probabilities, (images, same), strict=True)]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-4, rtol=1e-3)


def test_one_score_belongs_to_the_second_label() -> None:
    classifier = wrap(lambda x: x.mean((1, 2, 3))[:, None] * 8 - 4, 2, output="binary")
    assert classifier(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])).logits.argmax(1).tolist() == [0, 1]
    flat = wrap(lambda x: x.mean((1, 2, 3)) * 8 - 4, 2, output="binary")
    assert torch.equal(flat(IMAGES).logits, classifier(IMAGES).logits), "also without the second dimension"


def test_undeclared_outputs_are_logits_or_refused() -> None:
    torch.testing.assert_close(built("logits", None)(IMAGES).logits, NET(IMAGES))
    torch.testing.assert_close(built("log_probabilities", None)(IMAGES).logits.softmax(1), NET(IMAGES).softmax(1))
    assert "set classifier.output=probabilities" in error_of(FORMS["probabilities"][0])
    assert "set classifier.output=probabilities" in error_of(lambda x: 100 * NET(x).softmax(1)), "percentages"
    assert "classifier.output=sigmoid" in error_of(FORMS["sigmoid"][0])
    for kind in ("binary", "binary_sigmoid"):
        assert "output size 1 does not match its 2 labels; one output is" in error_of(FORMS[kind][0], 2)
        assert "classifier.output=binary, or binary_sigmoid" in error_of(FORMS[kind][0], 2)


def test_logits_that_lie_in_the_range_of_probabilities_are_logits() -> None:
    """A network at the beginning of training, whose outputs are not bounded."""
    weak = wrap(lambda x: 0.3 + 0.05 * NET(x))
    assert 0 < weak(IMAGES).logits.min() and weak(IMAGES).logits.max() < 1
    flat = linear()
    nn.init.constant_(flat[1].get_parameter("weight"), 1e-6)
    nn.init.constant_(flat[1].get_parameter("bias"), 0.5)
    assert wrap(flat).head is not None, "the outputs of a linear layer are logits, however small"
    assert "as those of a sigmoid" in error_of(lambda x: 0.1 + 0.2 * NET(x).sigmoid()), "bounded, if not by 0 and 1"
    wrap(lambda x: 0.1 + 0.2 * NET(x).sigmoid(), output="logits")


@pytest.mark.parametrize("declared", OUTPUT_CONVERTERS)
@pytest.mark.parametrize("actual", OUTPUT_CONVERTERS)
def test_outputs_that_contradict_their_declaration_are_refused(declared: str, actual: str) -> None:
    # Logarithms are logits as well; values in [0, 1] may be logits, if somebody says so; shares may be sigmoids.
    right = {
        actual,
        *{"log_probabilities": ["logits"], "sigmoid": ["logits"], "probabilities": ["sigmoid"]}.get(actual, []),
    }
    if declared in right:
        return
    labels = 2 if declared.startswith("binary") else 3
    assert (
        f"classifier.output={declared}" in (line := error_of(FORMS[actual][0], labels, output=declared))
        or "match" in line
    )


def test_less_than_two_labels_are_refused() -> None:
    """With one label all predictions agree, so every problem would be a success."""
    assert "labels are c0; at least 2" in error_of(lambda x: NET(x)[:, :1], 1)
    assert "labels are none; at least 2" in error_of(lambda x: NET(x)[:, :0], 0)
    assert "has two classes, but there are 3 labels" in error_of(score, 3, output="binary")
    assert "allowed are null, logits, log_prob" in error_of(NET, output="softmax")


@pytest.mark.parametrize(
    "holding",
    [
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits, features=1),
        lambda logits: Pair(aux=None, logits=logits),
    ],
)
def test_logits_are_found_by_their_name(holding: Callable[[Tensor], Any]) -> None:
    torch.testing.assert_close(wrap(lambda x: holding(NET(x)))(IMAGES).logits, NET(IMAGES))


@pytest.mark.parametrize(
    ("holding", "named"),
    [
        (lambda logits: {"scores": logits, "aux": logits}, "the network returns a dict of scores, aux;"),
        (lambda logits: (logits, logits), "the network returns a tuple of 2;"),
        (lambda logits: [logits], "the network returns a list of 1;"),
        (lambda logits: SimpleNamespace(scores=logits), "the network returns a SimpleNamespace;"),
        (lambda logits: logits.detach().numpy(), "the network returns a ndarray;"),
        (lambda logits: None, "the network returns a NoneType;"),
        (lambda logits: logits[0], "output shape (3,) does not match its 3 labels"),
        (lambda logits: logits[:, :, None, None], "output shape (1, 3, 1, 1) does not match its 3 labels"),
    ],
)
def test_other_return_values_are_refused(holding: Callable[[Tensor], Any], named: str) -> None:
    assert named in error_of(lambda x: holding(NET(x)))


# --- outputs that depend on more than the image -------------------------------------------------------------


class Always(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(F.dropout(images.flatten(1), 0.1, training=True))
        return out


def training(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function around a network that was left in training mode."""
    torch.manual_seed(0)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 3)).train()
    return lambda images: network(images)


def test_outputs_that_change_between_calls_are_refused() -> None:
    state = torch.get_rng_state()
    for network in (training(nn.Dropout(0.1)), Always(), training(nn.BatchNorm2d(3))):
        assert "outputs for the same image differ" in (line := error_of(network)) and "eval()" in line
    assert torch.equal(torch.get_rng_state(), state), "checks leave the random numbers as they are"
    wrap(training(nn.Dropout(0.0)))
    wrap(nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 3))), "a module is put in evaluation mode"


# --- the normalization ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], "divide both by 255"),
        ([103.939, 116.779, 123.68], [1.0, 1.0, 1.0], "divide both by 255"),
        ([0.0] * 3, [255.0] * 3, "divide both by 255"),
        ([0.485, 0.456, 0.406], [58.395, 57.12, 57.375], "divide both by 255"),
        ([-0.5] * 3, [0.5] * 3, "images are in [0, 1]"),
        ([0.5] * 3, [2.0] * 3, "images are in [0, 1]"),
    ],
)
def test_a_normalization_of_other_images_is_refused(mean: list[float], std: list[float], named: str) -> None:
    line = error_of(NET, mean=mean, std=std)
    assert named in line and f"mean={mean} std={std}" in line


def test_networks_for_values_up_to_255_can_be_described() -> None:
    wrap(NET, mean=[0.0] * 3, std=[1 / 255] * 3)
    wrap(NET, mean=[0.408, 0.459, 0.485], std=[1 / 255] * 3)


@pytest.mark.parametrize("size", [0, -8, True, 8.0, "8", None, 10**6])
def test_sizes_are_whole_numbers_of_pixels(size: Any) -> None:
    assert f"size={size}; allowed are whole numbers" in error_of(NET, size=size)
