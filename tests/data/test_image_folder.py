"""Images from files: decoding, refusal of damaged files, and data sets of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL import ImageFile as PillowFile

from classifier_lens.data import images
from classifier_lens.data.image_folder import ImageFile, ImageFolder, SingleImageDataset, _unique_names
from classifier_lens.data.images import center_crop_resize, read_image
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import Example, UnreadableImageError, UserError

FORMATS = ("jpg", "png", "webp", "bmp", "gif", "tiff")


def make_image(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    """A random image, which does not compress well."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or make_image()).save(path, **options)
    return path


def test_an_image_is_read_at_its_own_size(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png"))
    assert image.shape == (3, 24, 40) and image.dtype == torch.float32
    assert torch.equal(image, torch.from_numpy(np.array(make_image())).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"a.{suffix}"))
    assert image.shape == (3, 24, 40) and 0 <= float(image.min()) and float(image.max()) <= 1


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, shown turned clockwise
    image = read_image(save(tmp_path / "a.png", exif=exif))
    upright = torch.from_numpy(np.array(make_image().rotate(-90, expand=True))).permute(2, 0, 1) / 255
    assert torch.equal(image, upright)


def test_modes_become_rgb(tmp_path: Path) -> None:
    gray = read_image(save(tmp_path / "grey.png", Image.new("L", (20, 20), 51)))
    assert torch.allclose(gray, torch.full((3, 20, 20), 0.2))
    clear = read_image(save(tmp_path / "clear.png", Image.new("RGBA", (20, 20), (255, 0, 0, 0))))
    assert torch.equal(clear, torch.ones(3, 20, 20))
    deep = Image.fromarray(np.full((20, 20), 257 * 51, dtype=np.uint16))
    assert torch.allclose(read_image(save(tmp_path / "deep.png", deep)), torch.full((3, 20, 20), 0.2))
    print_colours = read_image(save(tmp_path / "cmyk.jpg", Image.new("CMYK", (20, 20), (0, 0, 0, 0))))
    assert torch.allclose(print_colours, torch.ones(3, 20, 20), atol=0.01)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize("tolerant", [False, True])
def test_a_truncated_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, share: float, tolerant: bool
) -> None:
    monkeypatch.setattr(PillowFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = save(tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        UserError, match=rf"data.path=.*a\.{suffix}: cannot be read .* wanted is a complete image"
    ) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert PillowFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.jpg"
    text.write_text("not an image")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(text)
    with pytest.raises(UserError, match=r"b\.jpg: no such file"):
        read_image(tmp_path / "b.jpg")
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    for suffix in ("gif", "webp", "png"):
        path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert read_image(path).mean(dim=(1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.01)


def test_no_other_decoder_is_run(tmp_path: Path) -> None:
    """Pillow recognizes formats by content, not by name, and runs Ghostscript for PostScript."""
    for kind in ("eps", "ppm", "ico", "pcx"):
        path = tmp_path / "a.png"
        with path.open("wb") as file:
            make_image(64, 64).save(file, kind)
        with pytest.raises(UnreadableImageError, match="cannot be read"):
            read_image(path)


def test_a_large_image_is_reduced_before_it_becomes_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "REDUCED_SIDE", 20)
    for width, height, shape in ((39, 90, (90, 39)), (40, 90, (45, 20)), (130, 65, (22, 44)), (64, 61, (21, 22))):
        image = make_image(width, height)
        result = read_image(save(tmp_path / "a.png", image))
        assert result.shape[1:] == shape
        if shape == (45, 20):  # means of 2 x 2 pixels, rounded
            blocks = torch.from_numpy(np.array(image)).float().view(45, 2, 20, 2, 3).mean(dim=(1, 3)).permute(2, 0, 1)
            assert (255 * result - blocks).abs().max() <= 0.5 + 1e-4


def test_a_too_large_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", make_image(40, 30))
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert read_image(path).shape == (3, 30, 40)
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(UnreadableImageError, match="40 x 30 pixels; allowed are up to"):
        read_image(path)


@pytest.mark.parametrize(("width", "height", "allowed"), [(15, 40, False), (40, 15, False), (16, 16, True)])
def test_a_small_image_is_refused(tmp_path: Path, width: int, height: int, allowed: bool) -> None:
    path = save(tmp_path / "a.png", make_image(width, height))
    if allowed:
        assert read_image(path).shape == (3, height, width)
        return
    with pytest.raises(UserError, match=f"{width} x {height} pixels; allowed are 16 x 16 and larger"):
        read_image(path)


def test_center_crop_is_central() -> None:
    image = torch.zeros(3, 20, 40)
    image[:, :, 10:30] = 1
    assert torch.equal(center_crop_resize(image, 20), torch.ones(3, 20, 20))
    assert torch.equal(center_crop_resize(image.transpose(1, 2), 20), torch.ones(3, 20, 20))


def test_center_crop_resizes_without_aliasing_and_stays_in_range() -> None:
    checks = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    small = center_crop_resize(checks.float().expand(3, 256, 256), 32)
    assert small.shape == (3, 32, 32)
    assert torch.allclose(small, torch.full((3, 32, 32), 0.5), atol=0.02)
    step = torch.zeros(3, 16, 16)
    step[:, :, 8:] = 1
    large = center_crop_resize(step, 64)
    assert float(large.min()) == 0 and float(large.max()) == 1


def test_center_crop_does_not_change_an_image_of_the_right_size() -> None:
    image = torch.rand(3, 64, 64)
    assert torch.equal(center_crop_resize(image, 64), image)


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
    with pytest.raises(UserError, match=r"data.path=.*: contains no image; wanted are files <label>/<image>"):
        ImageFolder(tmp_path, 0)
    save(tmp_path / "loose.png")
    with pytest.raises(UserError, match="contains no image"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(tmp_path / "absent", 0)


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
