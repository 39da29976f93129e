"""The user's network: where its code is, and messages about errors in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.user_network import callable_classifier
from classifier_lens.runner.types import UserError
from tests.cli import Cli

SHAPES = """import torch

def body(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
"""


def classifier(target: str | Callable[..., object]) -> ImageClassifier:
    return callable_classifier(target, ["a", "b"], 8, [0] * 3, [1] * 3, "bilinear", None)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write code to a file of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def written(name: str, code: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        return path

    return written


Write = Callable[[str, str], Path]


def test_a_file_imports_its_neighbor_from_any_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("far/shapes_beside.py", SHAPES)
    file = write("far/mine.py", "from shapes_beside import body\ndef load(): return body()\n")
    later = write("far/later.py", "def load():\n    from shapes_beside import body\n    return body()\n")
    for target in (file, "far/mine.py", later):
        assert classifier(f"{target}:load").labels == ("a", "b")
    assert sys.path[-1] == str(file.parent), "last, so that it is in nobody's way"


def test_a_file_may_have_the_name_of_a_package_and_contain_dataclasses(write: Write) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A: x: int = 1\n"
    assert classifier(f"{write('torch.py', code + SHAPES)}:body").labels == ("a", "b")
    assert hasattr(sys.modules["torch"], "nn")


def test_a_function_without_arguments_is_called_once(write: Write) -> None:
    write("defaults.py", SHAPES + "def load(width=2, *, scale=1.0): return body()\nclass Net(torch.nn.Flatten): pass\n")
    assert isinstance(classifier("defaults.py:load").network, nn.Sequential)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    assert classifier(partial(lambda kind: net, kind=1)).network is net
    assert classifier(net).network is net
    with pytest.raises(UserError, match="returns a int"):
        classifier(lambda: 3)
    with pytest.raises(UserError, match="classifier=sigmoid: "):  # a built-in function without a signature
        classifier(torch.sigmoid)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def load():\n    raise FileNotFoundError('no weights.pt')\n",
            "FileNotFoundError: no weights.pt .FILE, line 2.",
        ),
        (
            "import torch\ndef load():\n    torch.load('weights.pt')\n",
            "FileNotFoundError: .*weights.pt.* .FILE, line 3.",
        ),
        ("def load():\n    assert False\n", "AssertionError: AssertionError .FILE, line 2."),
        ("x = 1\ny = z\n", "cannot import .*: NameError: name 'z' is not defined .FILE, line 2."),
        ("x = 1\ndef load(:\n", "cannot import .*: SyntaxError: .*FILE, line 2"),
        ("from nowhere_at_all import x\n", "cannot import .*: ModuleNotFoundError: .*nowhere_at_all.*FILE, line 1."),
    ],
)
def test_an_error_in_user_code_has_its_message_file_and_line(write: Write, code: str, message: str) -> None:
    file = write("broken_network.py", code)
    with pytest.raises(UserError, match=message.replace("FILE", str(file))) as refused:
        classifier(f"{file}:load")
    assert "\n" not in str(refused.value) and str(refused.value).startswith(f"classifier.target={file}:load: ")


def test_a_user_package_may_have_the_name_of_a_folder_of_the_project(write: Write) -> None:
    """The user's package is imported, since those of the project are within `classifier_lens`."""
    write("models/__init__.py", "")
    write("models/net.py", SHAPES)
    assert classifier("models.net:body").labels == ("a", "b")
    assert classifier("models/net.py:body").labels == ("a", "b")


def test_the_command_line_reports_it_in_one_line(write: Write, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    file = write("broken_network.py", "def load():\n    raise RuntimeError('cut\\nshort')\n")
    outcome = cli.here(capfd, f"classifier.target={file}:load")
    assert (outcome.code, outcome.lines) == (
        2, [f"classifier.target={file}:load: RuntimeError: cut ({file}, line 2)"],
    )  # fmt: skip
