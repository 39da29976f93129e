"""CIFAR-10, and what all data sets have in common: order, indices, digests and refused settings."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from PIL import Image

from classifier_lens.data.cifar10 import CLASSES as CIFAR_CLASSES
from classifier_lens.data.cifar10 import Cifar10
from classifier_lens.data.planted import (
    PlantedDataset,
)
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError

CONF = Path(__file__).parents[2] / "conf" / "data"


def jpeg(value: int) -> bytes:
    """A gray 32 x 32 JPEG image."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder with a test.zip of two photographs per class."""
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as files:
        for k, name in enumerate(CIFAR_CLASSES):
            for number in (1, 2):
                files.writestr(f"test/{name}/{number:04d}.jpg", jpeg(20 * k + number))
    return tmp_path


def test_iteration_over_a_data_set_ends(cifar: Path) -> None:
    for data in (PlantedDataset("test", 3, 0, "independent", None), Cifar10(cifar, "test", 3, 0)):
        assert len(list(data)) == 3  # type: ignore[call-overload]
        with pytest.raises(IndexError):
            data[-1]


def test_cifar10_has_every_image_once_in_the_seeds_order(cifar: Path) -> None:
    data: Dataset = Cifar10(cifar, "test", None, 0)
    examples = [data[i] for i in range(len(data))]
    assert {e.name for e in examples} == {f"test-{name}-000{n}" for name in CIFAR_CLASSES for n in (1, 2)}
    for example in examples:
        k, number = CIFAR_CLASSES.index(example.label), int(example.name[-1])
        assert example.name == f"test-{example.label}-000{number}" and example.caption is None
        assert example.image.shape == (3, 32, 32)
        assert float((example.image * 255 - (20 * k + number)).abs().max()) < 1.01
    names = [e.name for e in examples]
    assert [Cifar10(cifar, "test", 5, 0)[i].name for i in range(5)] == names[:5]
    other = Cifar10(cifar, "test", None, 1)
    assert [other[i].name for i in range(20)] != names
    assert data.nearest_class("cat") == "dog" and data.nearest_class("goldfish") is None
    assert data.similar_classes("cat") == ["dog"] and data.similar_classes("goldfish") == []
    assert all(data.nearest_class(data.nearest_class(name) or "") == name for name in CIFAR_CLASSES)


def test_cifar10_reads_the_folder_of_torchvision(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [3, 8]}))
    data = Cifar10(tmp_path, "test", None, 0)
    result = {data[i].name: data[i] for i in range(2)}
    assert result["test-00000"].label == "cat" and result["test-00001"].label == "ship"
    assert torch.equal(result["test-00001"].image, torch.from_numpy(pixels[1].reshape(3, 32, 32)).float() / 255)


def test_cifar10_refuses_wrong_settings(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.split=validation: allowed are train, test"):
        Cifar10(cifar, "validation", None, 0)
    with pytest.raises(UserError, match=r"data.count=21: allowed are 1 to 20"):
        Cifar10(cifar, "test", 21, 0)
    with pytest.raises(UserError, match=r"data.path=.*has neither cifar-10-batches-py/ .* nor train.zip"):
        Cifar10(cifar, "train", None, 0)


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_cifar10_refuses_a_broken_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"data.path=.*: cannot read the test split"):
        Cifar10(tmp_path, "test", None, 0)


def test_cifar10_refuses_a_truncated_image(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as files:
        files.writestr("test/cat/0001.jpg", jpeg(9)[:300])
    with pytest.raises(UserError, match=r"data.path=.*: cannot read the test split") as refused:
        Cifar10(tmp_path, "test", None, 0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_option_builds_or_names_the_missing_key(
    option: str, cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10", str(cifar))
    with zipfile.ZipFile(cifar / "train.zip", "w") as files:
        for name in CIFAR_CLASSES:
            files.writestr(f"train/{name}/0001.jpg", jpeg(9))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF.parent)):
        count = ["data.count=1"] if option == "hf" else []  # has to be given
        node = hydra.compose("config", overrides=[f"data={option}", *count]).data
    if missing := [key for key in ("path", "name") if key in node and node[key] is None]:
        with pytest.raises(hydra.errors.InstantiationException) as failed:
            hydra.utils.instantiate(node, _convert_="all")
        assert isinstance(failed.value.__cause__, UserError)
        assert f"data.{missing[0]} is missing" in str(failed.value.__cause__)
    else:
        data = hydra.utils.instantiate(node, _convert_="all")
        assert [data[i].label in data.labels for i in range(min(len(data), 1))] == [True] * (option != "none")


# --- indices and digests -----------------------------------------------------------------------------------


def test_indices_are_the_images_of_a_class(cifar: Path) -> None:
    data: Dataset
    for data in (PlantedDataset("test", 60, 0, "independent", None), Cifar10(cifar, "test", None, 3)):
        result = {label: data.indices(label) for label in data.labels}
        assert sorted(row for rows in result.values() for row in rows) == list(range(len(data)))
        for label, rows in result.items():
            assert rows and rows == sorted(rows) == data.indices(label.upper())
            assert all(data[row].label == label for row in rows)
        assert data.indices("goldfish") == []


def test_a_digest_depends_on_all_settings(cifar: Path) -> None:
    planted_ones = [
        ("test", 20, 0, "independent", None), ("validation", 20, 0, "independent", None),
        ("test", 21, 0, "independent", None), ("test", 20, 1, "independent", None), ("test", 20, 0, "present", None),
        ("test", 20, 0, "absent", None), ("test", 20, 0, "absent", {"viaduct": {"prop": "flag"}}),
    ]  # fmt: skip
    for build, several in (
        (PlantedDataset, planted_ones),
        (lambda *a: Cifar10(cifar, *a), [("test", 20, 0), ("test", 19, 0), ("test", 20, 1)]),
    ):
        digests = [build(*arguments).digest for arguments in several]
        assert digests == [build(*arguments).digest for arguments in several]
        assert len(set(digests)) == len(several) and all(len(digest) == 64 for digest in digests)


def test_a_digest_depends_on_the_content_of_images(cifar: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with zipfile.ZipFile(cifar / "test.zip") as old, zipfile.ZipFile(other / "test.zip", "w") as new:
        for i, name in enumerate(old.namelist()):
            new.writestr(name, jpeg(200) if i == 5 else old.read(name))
    assert Cifar10(other, "test", None, 0).digest != Cifar10(cifar, "test", None, 0).digest
