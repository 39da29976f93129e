"""ImageNet in its published layout, and the table of its classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from classifier_lens.data.imagenet import ImageNet
from classifier_lens.data.imagenet_hierarchy import class_names, read_synsets
from classifier_lens.models.classifier.loaders.class_names import imagenet_labels
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError
from tests.conftest import SHARED

SAMPLES = SHARED / "imagenet_samples"


def save(path: Path, shade: int = 0) -> None:
    """An image of one shade of gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade,) * 3).save(path, format="PNG")


def examples(data: Dataset) -> dict[str, str]:
    """The labels by the names of the images."""
    return {data[i].name: data[i].label for i in range(len(data))}


def test_folders_may_be_named_by_wordnet_ids(tmp_path: Path) -> None:
    save(tmp_path / "n01484850" / "ILSVRC2012_val_00000107.JPEG")
    save(tmp_path / "n01440764" / "ILSVRC2012_val_00000293.JPEG", 255)
    save(tmp_path / "n01440764" / "n01440764_10026.JPEG", 255)
    data: Dataset = ImageNet(tmp_path, 0)
    assert data.labels == ("tench", "great white shark")
    assert examples(data) == {
        "great-white-shark-ILSVRC2012_val_00000107": "great white shark",
        "tench-ILSVRC2012_val_00000293": "tench", "tench-n01440764_10026": "tench",
    }  # fmt: skip
    assert {float(data[i].image.mean()) for i in data.indices("Tench")} == {1.0}


def test_folders_may_be_named_by_classes(tmp_path: Path) -> None:
    for folder in ("viaduct", "tiger shark", "n01491361", "my own class"):
        save(tmp_path / folder / "n01440764_1.png")
    data = ImageNet(tmp_path, 0)
    assert data.labels == ("tiger shark", "viaduct", "my own class"), "known classes by number, then others"
    assert len(data.indices("tiger shark")) == 2 and len(data.indices("tench")) == 0


def test_files_may_begin_with_wordnet_ids(tmp_path: Path) -> None:
    for name in ("n01484850_great_white_shark.JPEG", "n04532670_viaduct.JPEG", "loose.png", "n0148_x.png"):
        save(tmp_path / name)
    assert examples(ImageNet(tmp_path, 0)) == {
        "great-white-shark-n01484850_great_white_shark": "great white shark", "viaduct-n04532670_viaduct": "viaduct",
    }  # fmt: skip


def test_the_digest_depends_on_order_and_files(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / "n01440764" / f"{k}.png")
    digest = ImageNet(tmp_path, 0).digest
    assert ImageNet(tmp_path, 0).digest == digest != ImageNet(tmp_path, 1).digest
    (tmp_path / "n01440764").rename(tmp_path / "n01443537")
    assert ImageNet(tmp_path, 0).digest != digest


def test_wrong_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.path is missing"):
        ImageNet(None, 0)
    with pytest.raises(UserError, match="no such folder; expected a folder of <n01440764 or class>/<image>"):
        ImageNet(tmp_path / "absent", 0)
    with pytest.raises(UserError, match="contains no image; expected files <n01440764 or class>/<image>"):
        ImageNet(tmp_path, 0)
    save(tmp_path / "n00000001" / "a.png")
    with pytest.raises(UserError, match="data.path: n00000001 is not an id of ImageNet's 1000 classes"):
        ImageNet(tmp_path, 0)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is not there")
def test_the_samples_show_the_classes_of_their_names() -> None:
    data = ImageNet(SAMPLES, 0)
    result = examples(data)
    assert len(data) == len(list(SAMPLES.glob("*.JPEG"))) == len(data.labels)
    assert result["great-white-shark-n01484850_great_white_shark"] == "great white shark"
    assert result["fiddler-crab-n01980166_fiddler_crab"] == "fiddler crab"


# --- the table -----------------------------------------------------------------------------------------------


def test_the_table_has_the_classifiers_names_in_their_order() -> None:
    assert tuple(class_names().values()) == imagenet_labels()
    assert [kind.index for kind in read_synsets().values()][:1001] == [*range(1000), None]
    known = {"n01440764": "tench", "n01484850": "great white shark", "n01980166": "fiddler crab"}
    assert {wnid: class_names()[wnid] for wnid in known} == known
    assert list(class_names()) == sorted(class_names()), "ImageNet's numbers follow the ids"


def test_entity_is_a_hypernym_of_all_synsets() -> None:
    kinds = read_synsets()
    for wnid in class_names():
        above, reached = [wnid], set()
        while above:
            reached.add(one := above.pop())
            above += kinds[one].hypernyms
        assert [kinds[one].name for one in reached if not kinds[one].hypernyms] == ["entity"]
