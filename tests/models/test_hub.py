"""Messages about missing weights, and the local cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.models import hub, safety_checker
from classifier_lens.models.hub import fetch_command, local_folder, missing_weights_error
from classifier_lens.models.segmenter import clipseg, grounded_sam, sam
from classifier_lens.runner.types import UserError

LOADERS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "sam": (
        lambda: sam.load("some/net", None, 5, 0.3, False, {}),
        ("segmenter.path=some/net", "fetch hub/some/net`", "segmenter=attention needs none", "the object's edges"),
    ),
    "clipseg": (
        lambda: clipseg.load("some/net", "abc", 0.5, "{words}"),
        ("segmenter.path=some/net", "fetch hub/some/net@abc`", "segmenter=attention needs none"),
    ),
    "grounded_sam": (
        lambda: grounded_sam.load("some/net", None, 0.2, 0.2, "some/sam", None, {}),
        ("segmenter.detector=some/net", "segmenter=attention needs none"),
    ),
    "safety": (
        lambda: safety_checker.load("some/net", None, 0.06),
        ("safety_checker.path=some/net", "safety_checker=none needs none"),
    ),
    "captioner": (
        lambda: local_folder("captioner.path=some/net", "some/net", None),
        ("fetch hub/some/net`", "captioner=template needs none", "name the class alone"),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_one_line_names_the_command_and_the_alternative(name: str) -> None:
    load, message = LOADERS[name]
    with pytest.raises(UserError) as caught:
        load()
    line = str(caught.value)
    assert "\n" not in line and line.endswith("`python run.py` alone needs none")
    assert all(part in line for part in message), line


def test_no_command_is_given_for_an_invalid_id() -> None:
    for path in ("models/pretrained/nowhere", "/tmp/nowhere/else", "../nowhere"):
        with pytest.raises(UserError, match="expected a folder, or a hub id as owner/name") as caught:
            local_folder("segmenter.path=x", path, None)
        assert "fetch_weights" not in str(caught.value)


def test_the_only_cached_revision_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download by commit leaves no reference that the clients of the hub would use."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))

    def absent(*_: Any, **__: Any) -> None:
        raise hub.LocalEntryNotFoundError("no such entry")

    monkeypatch.setattr(hub, "snapshot_download", absent)
    snapshots = tmp_path / "models--some--net" / "snapshots"
    (snapshots / "a").mkdir(parents=True)
    assert local_folder("x", "some/net", None) == snapshots / "a"
    with pytest.raises(UserError, match=r"neither a folder nor, at revision b, in the hub's cache"):
        local_folder("x", "some/net", "b")
    (snapshots / "b").mkdir()
    with pytest.raises(UserError, match="neither a folder nor, at any one revision, in the hub's cache"):
        local_folder("x", "some/net", None)


def test_groups_without_an_alternative_name_none() -> None:
    assert str(missing_weights_error("classifier.path=x", "not there", fetch_command("net", "abc"))) == (
        "classifier.path=x: not there; with a network, `python scripts/fetch_weights.py fetch net@abc` gets it; "
        "`python run.py` alone needs none"
    )
