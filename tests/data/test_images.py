"""Decoding and cropping of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL import ImageFile as PillowFile

from classifier_lens.data import images
from classifier_lens.data.images import center_crop_resize, read_image
from classifier_lens.runner.types import UnreadableImageError, UserError

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
        UserError, match=rf"data.path=.*a\.{suffix}: cannot be read .* expected a complete image"
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
