"""Data sets of image files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifier_lens.data.image_folder import ImageFile, ImageFolder, SingleImageDataset, _unique_names
from classifier_lens.data.images import read_image
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import Example, UnreadableImageError, UserError
from tests.data.test_images import make_image, save


def test_one_image_is_a_data_set(tmp_path: Path) -> None:
    path = save(tmp_path / "my gold/fish.png")
    data: Dataset = ImageFile(path, "goldfish", None)
    assert len(data) == 1 and data.labels == ("goldfish",) and data.nearest_class("goldfish") is None
    assert data.similar_classes("goldfish") == []
    example = data[0]
    assert (example.name, example.label, example.caption) == ("fish", "goldfish", None)
    assert torch.equal(example.image, read_image(path))
    assert ImageFile(path, "goldfish", "a goldfish in a bowl")[0].caption == "a goldfish in a bowl"
    with pytest.raises(IndexError):
        data[1]


@pytest.mark.parametrize("label", [None, "", "  "])
def test_one_image_needs_a_label(tmp_path: Path, label: str | None) -> None:
    with pytest.raises(UserError, match=r"data.label is missing: .*data.label='goldfish'"):
        ImageFile(save(tmp_path / "a.png"), label, None)


def test_a_path_is_needed() -> None:
    with pytest.raises(UserError, match="data.path is missing"):
        ImageFile(None, "goldfish", None)
    with pytest.raises(UserError, match="data.path is missing"):
        ImageFolder(None, 0)


def test_a_folder_has_every_image_once_in_the_seeds_order(tmp_path: Path) -> None:
    for k in range(6):
        save(tmp_path / "tiger shark" / f"{k}.JPG", make_image(seed=k), format="JPEG")
        save(tmp_path / "viaduct" / f"{k}.webp", make_image(seed=k))
    save(tmp_path / "viaduct" / "0.png")
    save(tmp_path / ".hidden" / "0.png")
    (tmp_path / "viaduct" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    data: Dataset = ImageFolder(tmp_path, 0)
    names = [data[i].name for i in range(len(data))]
    sharks, bridges = {f"tiger-shark-{k}" for k in range(6)}, {f"viaduct-{k}" for k in range(6)}
    assert len(data) == 13 and data.labels == ("tiger shark", "viaduct")
    assert set(names) == sharks | bridges | {"viaduct-0-2"}
    assert all(data[i].label == ("tiger shark" if data[i].name in sharks else "viaduct") for i in range(13))
    again, other = ImageFolder(tmp_path, 0), ImageFolder(tmp_path, 1)
    assert [again[i].name for i in range(13)] == names
    assert [other[i].name for i in range(13)] != names
    assert data.nearest_class("viaduct") is None and data.similar_classes("viaduct") == []


def test_a_broken_image_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").write_bytes(b"PNG")
    with pytest.raises(UnreadableImageError, match=r"data.path=.*broken\.png: cannot be read"):
        ImageFolder(tmp_path, 0)[0]


def test_ignored_files_of_a_folder_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "crab" / "0.png")
    assert len(ImageFolder(tmp_path, 0)) == 1 and capsys.readouterr().out == ""
    save(tmp_path / "loose.png")
    for name in ("crab/a.txt", "crab/b.mp4", "crab/empty.jpg", ".hidden", "crab/.DS_Store"):
        (tmp_path / name).touch()
    assert len(ImageFolder(tmp_path, 0)) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("1 images; ignored: crab/a.txt, crab/b.mp4, crab/empty.jpg and 1 more")
    (tmp_path / "crab" / "a\nb.txt").touch()
    assert len(ImageFolder(tmp_path, 0)) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert r"ignored: crab/a\nb.txt, crab/a.txt" in line


def test_images_in_subfolders_belong_to_the_label(tmp_path: Path) -> None:
    for name in ("crab/0.png", "crab/day/0.png", "crab/day/wet/1.png", "viaduct/day/0.png"):
        save(tmp_path / "here" / name)
    (tmp_path / "here" / "crab" / "around").symlink_to(tmp_path / "here" / "crab")  # leads into itself
    save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "here" / "urn").symlink_to(tmp_path / "elsewhere")
    data = ImageFolder(tmp_path / "here", 0)
    assert data.labels == ("crab", "urn", "viaduct") and [len(data.indices(label)) for label in data.labels] == [
        3,
        1,
        1,
    ]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path=.*: contains no image; expected files <label>/<image>"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(tmp_path / "absent", 0)


def test_images_without_folders_have_no_known_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "photos" / "a.png")
    data = ImageFolder(tmp_path / "photos", 0)
    assert len(data) == 1 and data.labels == ("photos",)
    assert "1 images without folders <label>/; their classes are unknown" in capsys.readouterr().out
    save(tmp_path / "photos" / "crab" / "b.png")
    data = ImageFolder(tmp_path / "photos", 0)
    assert data.labels == ("crab",) and "ignored: a.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ünïcode näme", "a?*: b", "x" * 200, "...b"])
def test_names_are_valid_for_folders(tmp_path: Path, name: str) -> None:
    shown = ImageFile(save(tmp_path / f"{name}.png"), "a", None)[0].name
    (tmp_path / shown).mkdir()
    assert 0 < len(shown) <= 60 and not set(shown) & set(" /?*:")


# --- indices and digests -----------------------------------------------------------------------------------


def test_many_images_of_one_name_are_numbered_quickly() -> None:
    names = _unique_names(["a", "a-2", "A", "a", *["b"] * 50_000, "a"])
    assert names[:4] == ["a", "a-2", "A-3", "a-4"] and names[-2:] == ["b-50000", "a-5"]
    assert len({name.casefold() for name in names}) == len(names)


def test_indices_of_one_image_and_of_a_folder(tmp_path: Path) -> None:
    one = SingleImageDataset(Example("x", torch.zeros(3, 16, 16).clone, "Goldfish"))
    assert one.indices("goldfish") == [0] and one.indices("crab") == []
    for k in range(4):
        save(tmp_path / "Tiger shark" / f"{k}.png", make_image(seed=k))
        save(tmp_path / "viaduct" / f"{k}.png", make_image(seed=k))
    data = ImageFolder(tmp_path, 0)
    for label in data.labels:
        assert data.indices(label) == data.indices(label.lower()) == [i for i in range(8) if data[i].label == label]
    assert data.indices("goldfish") == []


def test_the_digest_of_one_image() -> None:
    image = torch.zeros(3, 16, 16)
    plain = SingleImageDataset(Example("x", image.clone, "crab"))
    assert SingleImageDataset(Example("y", image.clone, "crab")).digest == plain.digest
    others = [
        Example("x", (image + 0.1).clone, "crab"), Example("x", image.clone, "boat"),
        Example("x", image.clone, "crab", "a crab"),
    ]  # fmt: skip
    assert len({plain.digest, *(SingleImageDataset(other).digest for other in others)}) == 4


def test_the_digest_of_a_folder_depends_on_files_and_order(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / "crab" / f"{k}.png", make_image(seed=k))
    digest = ImageFolder(tmp_path, 0).digest
    assert ImageFolder(tmp_path, 0).digest == digest != ImageFolder(tmp_path, 1).digest
    save(tmp_path / "crab" / "3.png", make_image(width=48))
    changed = ImageFolder(tmp_path, 0).digest
    save(tmp_path / "crab" / "5.png")
    assert len({digest, changed, ImageFolder(tmp_path, 0).digest}) == 3
