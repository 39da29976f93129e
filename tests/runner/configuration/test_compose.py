"""What is refused before the parts of a run are built, and what a part says by the key that it is set by."""

from __future__ import annotations

import re

import pytest
from hydra.utils import instantiate

from classifier_lens.runner.configuration import compose
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.types import UserError


@pytest.mark.parametrize("key", ["device", "generator.device"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: what is composed here may be for another machine."""
    config = compose_config([f"{key}=cuda:99"])
    monkeypatch.setattr(compose, "instantiate", lambda *_, **__: pytest.fail("a part was built"))
    with pytest.raises(UserError, match=rf"^{key}=cuda:99: allowed on this machine are auto, cpu"):
        build(config)


@pytest.mark.parametrize(
    ("words", "key", "without", "not_without"),
    [
        (["segmenter=sam", "segmenter.path=no/net"], "segmenter.path", "segmenter=attention needs none", "neuron_vis"),
        (
            ["task=spurious_audit", "text_segmenter.path=no/net"], "text_segmenter.path", "task=neuron_vis needs none",
            "segmenter=attention",
        ),
    ],
)  # fmt: skip
def test_what_does_without_weights_is_named_for_the_part_that_lacks_them(
    words: list[str], key: str, without: str, not_without: str
) -> None:
    with pytest.raises(UserError, match=rf"^{key}=no/net: neither a folder .*{without}") as caught:
        build(compose_config(words))
    assert not_without not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=folder", "data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["select.classes=[nothing]"], "select.classes"),
        (["task.target=nothing"], "task.target=nothing: no class of the classifier"),
        (["task.target=[tiger shark, nothing]"], "task.target=nothing: no class of the classifier"),
        (["task.mode=attribute"], "task.mode=attribute: needs a zero-shot classifier"),
        (["task=input_gradients", "task.target=nothing"], "task.target=nothing: no class of the classifier"),
        (["task=disagreement", "task.start_classes=[nothing]"], "task.start_classes=nothing: no class of the "),
        (["task=neuron_cf", "task.units=top:0"], "task.units=top:0: allowed are 1 "),
        (["task=neuron_cf", "task.label=nothing"], "task.label=nothing: the data set has no such image"),
        (["task=npca_cf", "task.components={nothing: [0]}"], "task.components=nothing: no class of the classifier"),
        (["task=diffexplainer_class", "task.classes=[nothing]"], "task.classes=nothing: no class of the classifier"),
        (["task=spurious_audit", "task.classes=[nothing]"], "task.classes=nothing: no class of the classifier"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_not_there_is_told_before_the_generator_is_loaded(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "classifier_lens.models.generator.latent_diffusion.load_networks",
        lambda *_: pytest.fail("the generator was loaded"),
    )
    with pytest.raises(UserError, match=rf"^{re.escape(message)}"):
        build(compose_config(words))


def test_a_text_that_looks_like_a_reference_stays_as_it_is_in_parts_that_are_shared() -> None:
    node = {
        "_target_": "classifier_lens.models.captioner.captioner.TemplateCaptioner",
        "template": "a {label} of ${x} and ${",
    }
    built = instantiate(compose._shared({"one": node, "several": [dict(node)]}), _convert_="all")
    assert built["one"] is built["several"][0] and built["one"].template == node["template"]
