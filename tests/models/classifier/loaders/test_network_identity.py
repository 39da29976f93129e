"""Identity of a user's network: its code, the modules that it imports, and the values that it refers to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.network_identity import find_external_state
from classifier_lens.models.classifier.loaders.user_network import callable_classifier
from classifier_lens.runner.types import UserError

FILE = """
import torch
from pathlib import Path
import layers
from layers import SCALE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 2, bias=False)
        torch.nn.init.constant_(self.linear.weight, SCALE)
        self.plain = torch.ones(2)

    def forward(self, x):
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)) * self.plain

net = Net()
table = {"weights": [torch.linspace(0, 1, 24).view(12, 2)]}

class Hidden:
    def __init__(self):
        self.folder = Path(__file__).with_name("weights.pt")

    def weights(self):
        return torch.load(self.folder)

hidden = Hidden()

def by_network(x):
    return net(x)

def by_table(x):
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ table["weights"][0]

def by_file(x):
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ hidden.weights()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of a network, a module beside it, and weights that only a function reads."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "layers.py").write_text("SCALE = 0.1\n")
    (tmp_path / "stranger.py").write_text("nothing imports it\n")
    torch.save(torch.linspace(0, 1, 24).view(12, 2), tmp_path / "weights.pt")
    return tmp_path


def load(folder: Path, name: str, files: list[str] | None = None) -> ImageClassifier:
    """The classifier, imported again."""
    import sys

    sys.modules.pop("layers", None)
    target = f"{folder / 'net.py'}:{name}"
    return callable_classifier(target, ["a", "b"], 8, [0] * 3, [1] * 3, "bilinear", None, extra_files=files or [])


def edited(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("net", edited("net.py", "* self.plain", "* self.plain * 2")),
        ("net", edited("layers.py", "SCALE = 0.1", "SCALE = 0.1\n\n")),
        ("by_network", edited("layers.py", "0.1", "0.2")),
        ("by_table", edited("net.py", "linspace(0, 1, 24)", "linspace(0, 2, 24)")),
    ],
    ids=["code", "neighbour", "network of a function", "table"],
)
def test_code_and_external_state_are_part_of_the_fingerprint(
    folder: Path, name: str, change: Callable[[Path], object]
) -> None:
    before = load(folder, name).fingerprint
    assert load(folder, name).fingerprint == before
    (folder / "stranger.py").write_text("something else\n")
    assert load(folder, name).fingerprint == before
    change(folder)
    assert load(folder, name).fingerprint != before


def test_untracked_weights_give_a_warning_and_files_can_be_declared(folder: Path) -> None:
    assert load(folder, "net").untracked_dependencies is None
    message = load(folder, "by_file").untracked_dependencies
    assert message is not None and "by_file" in message and "classifier.extra_files=" in message and "\n" not in message
    weights = str(folder / "weights.pt")
    before = load(folder, "by_file", [weights])
    assert (
        before.untracked_dependencies is None and before.fingerprint == load(folder, "by_file", [weights]).fingerprint
    )
    torch.save(torch.zeros(12, 2) + torch.eye(12, 2), weights)
    assert load(folder, "by_file", [weights]).fingerprint != before.fingerprint
    with pytest.raises(UserError, match=r"classifier\.extra_files=nowhere\.pt: No such file"):
        load(folder, "by_file", ["nowhere.pt"])


def test_external_state_is_found() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("own", torch.ones(1))
            self.register_buffer("passing", torch.zeros(1), persistent=False)
            self.listed: Any = [nn.Linear(1, 1), {"x": torch.ones(3)}]
            self.number = 3

    assert sorted(name for name, _ in find_external_state(Odd())) == ["./listed/0", "./listed/1/x", ".passing"]
    assert find_external_state(nn.Linear(2, 2)) == []
    shift = torch.ones(2)
    assert [name for name, _ in find_external_state(lambda x: x + shift)] == ["/shift"]


def test_arrays_of_texts_are_part_of_the_fingerprint() -> None:
    def fingerprint(words: Any) -> str:
        return callable_classifier(
            lambda x: x.mean((2, 3))[:, : len(words)], ["a", "b"], 8, [0] * 3, [1] * 3, "bilinear", None
        ).fingerprint

    for kind in (None, object):
        assert fingerprint(np.array(["cat", "dog"], kind)) == fingerprint(np.array(["cat", "dog"], kind))
        assert fingerprint(np.array(["cat", "dog"], kind)) != fingerprint(np.array(["cat", "dot"], kind))
