"""Overlays: each changes what it should and nothing else, at every size and for every batch."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.interventions import overlays
from classifier_lens.tasks.interventions.overlays import Overlay
from tests.cli import ROOT

OPTIONS = sorted(path.stem for path in (ROOT / "conf/overlay").glob("*.yaml") if path.stem != "function")
IMAGES = torch.rand(3, 3, 56, 64, generator=torch.Generator().manual_seed(0))
FONT = ROOT / "tasks/interventions/fonts/lens_han.otf"


@cache
def configured() -> dict[str, Overlay]:
    """The overlays of all options by name, built from one configuration."""
    return dict(instantiate(compose_config([f"+overlay=[{','.join(OPTIONS)}]"])["overlay"], _convert_="all"))


def is_changed(images: Tensor, changed: Tensor) -> Tensor:
    """Which pixels (h, w) differ in any image."""
    return (images != changed).flatten(0, 1).any(dim=0)


def text(**settings: Any) -> Overlay:
    """A text with other settings than those of the watermark."""
    defaults: dict[str, Any] = {
        "text": "径", "height": 0.2, "opacity": 0.5, "color": [1.0, 0.0, 0.0], "position": [0.5, 0.5], "anchor": "la",
        "font": str(FONT),
    }  # fmt: skip
    return Overlay("a text", partial(overlays.text, **defaults | settings))


def test_every_option_has_its_name_and_only_the_mirror_is_a_control() -> None:
    assert set(configured()) == set(OPTIONS)
    assert [name for name, overlay in configured().items() if overlay.is_control] == ["mirror"]
    assert len({overlay.phrase for overlay in configured().values()}) == len(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_images_remain_images_and_do_not_depend_on_the_batch(option: str) -> None:
    overlay, original = configured()[option], IMAGES.clone()
    changed = overlay(IMAGES)
    assert changed.shape == IMAGES.shape and changed.dtype == IMAGES.dtype
    assert 0 <= float(changed.min()) and float(changed.max()) <= 1
    assert torch.equal(torch.cat([overlay(image[None]) for image in IMAGES]), changed)
    assert torch.equal(IMAGES, original) and not torch.equal(changed, original)


def test_a_mark_changes_its_region_alone() -> None:
    watermark = is_changed(IMAGES, configured()["watermark"](IMAGES))
    rows, columns = watermark.nonzero().T
    assert rows.min() >= 0.4 * 56 and rows.max() < 0.4 * 56 + 1.5 * 10 and columns.max() > 0.8 * 64
    tag = is_changed(IMAGES, configured()["copyright_tag"](IMAGES))
    assert tag.any() and not tag[:44].any() and not tag[:, :20].any()
    border = is_changed(IMAGES, configured()["border"](IMAGES))
    assert border.sum() == 56 * 64 - 50 * 58 and not border[3:-3, 3:-3].any()


def test_the_watermark_is_that_of_imagenet_w() -> None:
    """Translucent text that Pillow composes with an image of 224 px, at the size and place of ImageNet-W."""
    image = Image.effect_noise((224, 224), 60).convert("RGBA")
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    place, color = (0.01 * 224, 0.4 * 224), (255, 255, 255, 128)
    ImageDraw.Draw(layer).text(place, "捷径捷径捷径", color, ImageFont.truetype(FONT, 36))
    expected = to_tensor(Image.alpha_composite(image, layer).convert("RGB"))
    changed = configured()["watermark"](to_tensor(image.convert("RGB"))[None])[0]
    assert is_changed(changed[None], to_tensor(image.convert("RGB"))[None]).sum() > 1000
    torch.testing.assert_close(changed, expected, atol=1.5 / 255, rtol=0)


@pytest.mark.parametrize("corner", overlays.CORNERS)
def test_a_patch_is_in_its_corner(corner: str) -> None:
    patch = is_changed(IMAGES, overlays.corner_patch(IMAGES, 0.25, [0.0, 1.0, 0.0], corner))
    region = patch[:14] if "top" in corner else patch[-14:]
    region = region[:, :14] if "left" in corner else region[:, -14:]
    assert region.all() and patch.sum() == 14 * 14


def test_an_opaque_mark_has_its_color_and_one_of_opacity_0_is_absent() -> None:
    opaque = text(text="I", height=0.9, position=[0.3, 0], opacity=1.0, font=None)(IMAGES)
    assert (opaque == torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).all(dim=1).any()
    assert torch.equal(text(opacity=0.0)(IMAGES), IMAGES)
    border = overlays.border(IMAGES, 0.1, [0.2, 0.4, 0.6])
    assert torch.equal(border[:, :, 0], torch.tensor([0.2, 0.4, 0.6])[:, None].expand(3, 3, 64))


def test_a_text_grows_with_the_image() -> None:
    heights = []
    for side in (64, 128):
        rows = is_changed(changed := torch.zeros(1, 3, side, side), text(height=0.5, position=[0, 0])(changed)).any(1)
        heights.append(int(rows.sum()))
    assert abs(heights[1] - 2 * heights[0]) <= 2


def test_gray_has_no_colors_and_a_mirror_undoes_itself() -> None:
    gray = configured()["gray"](IMAGES)
    assert torch.equal(gray, gray[:, :1].expand_as(gray)) and torch.allclose(
        configured()["gray"](gray), gray, atol=1e-3
    )
    mirror = configured()["mirror"]
    assert torch.equal(mirror(mirror(IMAGES)), IMAGES)


def test_a_blur_keeps_uniform_images_and_is_relative_to_the_side() -> None:
    uniform = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(overlays.blur(uniform, 4.0), uniform)
    assert overlays.blur(IMAGES, 28.0).std() < overlays.blur(IMAGES, 4.0).std() < IMAGES.std()
    large = IMAGES.repeat_interleave(4, 2).repeat_interleave(4, 3)
    pooled = torch.nn.functional.avg_pool2d(overlays.blur(large, 16.0), 4)
    torch.testing.assert_close(pooled, overlays.blur(IMAGES, 16.0), atol=0.03, rtol=0)


def test_half_a_turn_of_the_hues_exchanges_complementary_colors() -> None:
    red, cyan = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    images = red.view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(overlays.hue_shift(images, 0.5), cyan.view(1, 3, 1, 1).expand(1, 3, 4, 4))
    gray = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(overlays.hue_shift(gray, 0.5), gray)


@pytest.mark.parametrize(
    "setting",
    [
        "watermark.transform.opacity=1.5", "watermark.transform.position=[0.5]", "watermark.transform.anchor=xx",
        "border.transform.width=0.5", "corner_patch.transform.corner=middle", "corner_patch.transform.color=[2,0,0]",
        "blur.transform.sigma=0", "hue_shift.transform.turn=0.7", "mirror.transform.axis=1",
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_in_one_line(setting: str) -> None:
    key = setting.split("=")[0]
    with pytest.raises(UserError, match=rf"^overlay\.{key}"):
        compose_config([f"+overlay={key.split('.')[0]}", f"{'+' if 'axis' in key else ''}overlay.{setting}"])


def test_a_font_without_the_characters_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"overlay\.text=径: the font .* has no 径; set another font"):
        text(font=None)(IMAGES)
    with pytest.raises(UserError, match=r"overlay\.text=a b: the font Lens Han .* has no a"):
        text(text="a b")(IMAGES)
    with pytest.raises(UserError, match=r"overlay\.font=none\.otf: .*; expected a TrueType or OpenType font"):
        text(font="none.otf")(IMAGES)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda images: images[:1], r"overlay of a mistake: returns shape \(1, 3, 56, 64\); expected images of shape"),
        (lambda images: None, "returns a NoneType"),
        (lambda images: images * 2, r"returns values outside \[0, 1\]"),
        (lambda images: images * torch.nan, r"returns values outside \[0, 1\]"),
    ],
)
def test_a_transform_that_returns_no_images_is_refused_in_one_line(transform: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Overlay("a mistake", transform)(IMAGES)


# --- the user's own ------------------------------------------------------------------------------------------


def own(tmp_path: Path, body: str) -> Overlay:
    """The overlay of a user's file."""
    (tmp_path / "marks.py").write_text(f"def add(images):\n    {body}\n")
    settings = ["phrase=a logo", f"transform.target={tmp_path / 'marks.py'}:add"]
    config = compose_config(["+overlay=function", *(f"overlay.function.{setting}" for setting in settings)])
    overlay = instantiate(config["overlay"], _convert_="all")["function"]
    assert isinstance(overlay, Overlay)
    return overlay


def test_a_function_of_the_users(tmp_path: Path) -> None:
    overlay = own(tmp_path, "images[:, :, 0] = 0; return images")
    original = IMAGES.clone()
    changed = overlay(IMAGES)
    assert (changed[:, :, 0] == 0).all() and torch.equal(changed[:, :, 1:], IMAGES[:, :, 1:])
    assert torch.equal(IMAGES, original), "the function has a copy"
    assert overlay.digest != own(tmp_path, "return images").digest != configured()["mirror"].digest == ""


def test_an_error_of_the_users_function_has_its_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target=.*marks\.py:add: ZeroDivisionError: .*marks\.py, line 2\)"):
        own(tmp_path, "return images / (1 // 0)")(IMAGES)
    with pytest.raises(UserError, match=r"overlay\.function\.transform\.target=marks: allowed are module:name and"):
        overlays.user_function("marks")
    with pytest.raises(UserError, match="overlay of a logo: returns values outside"):
        own(tmp_path, "return images + 1")(IMAGES)
