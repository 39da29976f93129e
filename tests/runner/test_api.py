"""One question from Python: of any network, any form of image, in any program."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import Tensor, nn

from classifier_lens.models.classifier.loaders.user_network import callable_classifier
from classifier_lens.runner.api import Counterfactual, _restored, explain
from classifier_lens.runner.types import UserError
from tests.cli import Cli

NAMES = ["disc", "square", "triangle"]
Ask = Callable[..., Counterfactual]


@pytest.fixture
def ask(cli: Cli) -> Ask:
    """`explain` on the tiny generator, of a gray image."""
    tiny = [
        f"generator.path={cli.pipeline}",
        "generator.resolution=16",
        "generator.steps=2",
        "generator.attention_maps.resolution=8",
        "generator.null_text.inner_steps=1",
        "optimizer.steps=1",
        "augment.crops=1",
        f"outputs={cli.outputs}",
    ]
    image = Image.linear_gradient("L").resize((16, 16))

    def asked(classifier: Any, label: str = "disc", target: str = "square", **given: Any) -> Counterfactual:
        return explain(image, classifier, label, target, overrides=[*tiny, *given.pop("overrides", [])], **given)

    return asked


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, classes)).train()


def test_a_module_and_a_function_in_memory(ask: Ask, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    own, fixed = network(), network().eval()
    own[0].weight.requires_grad_(False)
    answers = [ask(asked, labels=NAMES, size=16) for asked in (own, lambda images: fixed(images), network)]
    assert own.training and own[2].training, "its modes are its own"
    assert [p.requires_grad for p in own.parameters()] == [False, True, True, True]
    out = capfd.readouterr().out
    assert out.count(f"inverted images are stored in {cli.outputs / 'cache'}") == 3 and out.count("step 1/1") == 3
    assert all(set(answer.confidence_after) >= {"disc", "square"} for answer in answers)
    assert torch.equal(answers[0].image, answers[2].image)


def test_a_network_in_half_precision_is_left_in_it(ask: Ask) -> None:
    own = network().bfloat16()
    before = [p.clone() for p in own.parameters()]
    ask(own, labels=NAMES, size=16)
    assert all(torch.equal(p, was) for p, was in zip(own.parameters(), before, strict=True))
    assert {p.dtype for p in own.parameters()} == {torch.bfloat16}


def test_weights_and_buffers_come_back_to_the_bit() -> None:
    """Also where their number format was a wider one, and buffers, which a conversion replaces."""
    own = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    own.state_dict()["1.running_mean"].add_(1 / 3)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with _restored(own):
        own.float().eval()
    assert own.training and all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in own.state_dict().items())


def test_the_defaults_and_the_settings_of_a_network(ask: Ask) -> None:
    """Those of conf/classifier/callable.yaml, as on the command line: 64 px, images as they are."""
    seen: list[Tensor] = []

    def shown(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.mean((2, 3))

    ask(shown, labels=NAMES)
    assert {tuple(images.shape[1:]) for images in seen} == {(3, 64, 64)} and seen[0].min() >= 0
    seen.clear()
    ask(shown, labels=NAMES, size=16, mean=[0.5] * 3, std=[0.5] * 3)
    assert {tuple(images.shape[1:]) for images in seen} == {(3, 16, 16)} and seen[0].min() < -0.5


def test_names_of_any_characters(ask: Ask) -> None:
    """Nothing of a name is read as Hydra's or OmegaConf's grammar; numbers are names, too."""
    for target in ("it's ${x}, [a=b]", "${", "\\\\${x}", "???", "{label}", "../x", "random"):
        answer = ask(network(), "7", target, labels=[7, target, "true"], size=16)
        assert set(answer.confidence_after) == {"7", target, "true"}


def test_settings_of_other_libraries(ask: Ask) -> None:
    own = {"labels": np.array(NAMES), "size": np.int64(16), "mean": torch.tensor([0.5] * 3), "std": np.full(3, 0.5)}
    plain = ask(network(), labels=NAMES, size=16, mean=[0.5] * 3, std=[0.5] * 3)
    assert torch.equal(ask(network(), **own).image, plain.image)


def test_whatever_the_caller_has_set_the_answer_is_the_same(ask: Ask) -> None:
    """And the caller's settings and random numbers are as they were."""
    plain = ask(network(), labels=NAMES, size=16)
    own, default = network(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            result = ask(own, labels=NAMES, size=16)
            assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64 and torch.equal(before, torch.get_rng_state())
        with torch.inference_mode():
            assert torch.equal(ask(own, labels=NAMES, size=16).image, plain.image)
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(result.image, plain.image)


def test_programs_are_explained_as_networks_are(ask: Ask) -> None:
    own = network().eval()
    answers = [ask(asked, labels=NAMES, size=16) for asked in (own, torch.jit.script(own))]
    torch.testing.assert_close(answers[0].image, answers[1].image)


def test_a_classifier_without_a_domain(ask: Ask) -> None:
    ready = callable_classifier(network(), NAMES, 16, [0] * 3, [1] * 3, "bilinear", None)
    assert ready.domain is None
    assert ask(ready).image.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "^labels: a network needs the names"),
        ({"labels": "names.txt"}, "^labels: a network needs the names"),
        ({"labels": set(NAMES), "size": 16}, "classifier.labels: is a set; expected a list of names, in the order"),
        ({"labels": Path("names.txt")}, "^labels: a network needs the names"),
        ({"labels": NAMES, "size": 16, "caption": 3}, "caption=3: is of type int; give a text"),
        ({"labels": NAMES, "size": 16, "overrides": [None]}, r"overrides\[\d+\]=None: is of type NoneType"),
        ({"labels": NAMES, "size": 16, "target": "disc"}, "task.target=disc: is the class of image already"),
        ({"labels": NAMES, "size": 16, "mean": 0.5}, "classifier.mean=0.5: allowed are lists"),
        ({"labels": NAMES, "sise": 16}, "classifier.sise: no such key; classifier has .*size"),
        ({"labels": NAMES[:2], "size": 16}, "classifier=Sequential: output size 3 does not match its 2 labels"),
        ({"labels": NAMES, "size": 16, "target": "sqare"}, "sqare"),
        ({"labels": NAMES, "size": 16, "target": 1}, "target=1: is of type int"),
        ({"labels": NAMES, "size": 16, "overrides": ["classifier=vit_b"]}, "given as an object"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(ask: Ask, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        ask(network(), **given)
    assert "\n" not in str(refused.value)


def test_names_beside_a_ready_classifier_are_refused(ask: Ask) -> None:
    ready = callable_classifier(network(), NAMES, 16, [0] * 3, [1] * 3, "bilinear", None)
    with pytest.raises(UserError, match="labels, size: the classifier has its own"):
        ask(ready, labels=NAMES, size=16)


def test_the_callers_hydra_is_left_as_it_was(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with initialize_config_dir(version_base="1.1", config_dir=str(tmp_path)):
            state, own, base = GlobalHydra.instance(), GlobalHydra.instance().hydra, version.getbase()
            ask(network(), labels=NAMES, size=16)
            with pytest.raises(UserError):
                ask(network(), labels=NAMES, sise=16)
            assert GlobalHydra.instance() is state and state.hydra is own and version.getbase() == base
            assert compose("mine").answer == 42
