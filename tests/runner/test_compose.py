"""What is refused before the parts of a run are built, and what a part says by the key that it is set by."""

from __future__ import annotations

import pytest

from runner import compose
from runner.compose import build, configure
from runner.types import UserError


@pytest.mark.parametrize("key", ["device", "generator.device"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: what is composed here may be for another machine."""
    config = configure([f"{key}=cuda:99"])
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
        build(configure(words))
    assert not_without not in str(caught.value)
