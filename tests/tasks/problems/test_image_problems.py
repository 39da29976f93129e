"""What tasks that start from images have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from classifier_lens.data import images
from classifier_lens.data.image_folder import ImageFolder
from classifier_lens.runner.results.manifest import problem_digests
from classifier_lens.runner.types import UnreadableImageError
from classifier_lens.tasks.problems.image_problems import (
    generated_image_fields,
    image_fields,
    problems_of_images,
)
from tests.conftest import TinyClassifier, uvce
from tests.tasks.tiny import Maker, world


def test_images_that_cannot_be_read_are_left_out_with_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / "crab").mkdir()
    for k in range(4):
        noise = np.random.default_rng(k).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "crab" / f"{k}.png")
    (tmp_path / "crab" / "1.png").write_bytes((tmp_path / "crab" / "1.png").read_bytes()[:400])
    Image.new("RGB", (8, 8)).save(tmp_path / "crab" / "3.png")
    data = ImageFolder(tmp_path, 0)
    found = dict(
        problems_of_images(data, range(4), lambda i, example: [(i, (example.name, float(example.image.mean())))])
    )
    assert sorted(name for name, _ in found.values()) == ["crab-0", "crab-2"]
    assert all(data[i].name == name for i, (name, _) in found.items())
    lines = sorted(capsys.readouterr().out.splitlines())
    assert len(lines) == 2 and all(line.startswith("image skipped: data.path=") for line in lines)
    assert "1.png: cannot be read" in lines[0] and "3.png: 8 x 8 pixels" in lines[1]
    heads = problems_of_images(data, range(4), lambda i, example: [image_fields(data, i, example, 16, "all", None)])
    one = next(fields for fields in heads if fields["image_name"] == "crab-1")
    with pytest.raises(
        UnreadableImageError, match=r"1\.png: cannot be read"
    ):  # of its own problem, when that is solved
        one["load"]()


def test_questions_whose_answers_need_no_pixels_decode_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_classifier: TinyClassifier
) -> None:
    (tmp_path / "rock crab").mkdir()
    for k in range(3):
        Image.new("RGB", (24, 24), (80 * k, 0, 0)).save(tmp_path / "rock crab" / f"{k}.png")
    decoded: list[object] = []
    decode = images.decode_image

    def counted(key: str, source: Path | bytes) -> Tensor:
        decoded.append(source)
        return decode(key, source)

    monkeypatch.setattr(images, "decode_image", counted)
    data, maker = ImageFolder(tmp_path, 0), Maker()
    problems, _ = uvce(target="viaduct").problems(world(data, tiny_classifier, generator=maker))
    digests = [problem_digests(problem) for problem in problems]
    assert len(problems) == 3 and len({digest["image"] for digest in digests}) == 3 and not decoded
    first_images = [problem.image for problem in problems[:2]]
    assert len(decoded) == 2
    assert all(image is not None and image.shape[-1] == maker.resolution for image in first_images)
    uvce(target="confusion").problems(world(data, tiny_classifier, generator=maker))
    assert len(decoded) == 5, "each once, where the target depends on it"


def test_images_whose_names_differ_in_case_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "猫").mkdir()
    for name in ("a", "A", "猫" * 70):
        Image.new("RGB", (16, 16)).save(tmp_path / "猫" / f"{name}.png")
    data = ImageFolder(tmp_path, 0)
    found = [data[i].name for i in range(3)]
    assert len({name.casefold() for name in found}) == 3 and all(len(name.encode()) <= 130 for name in found)


def test_an_image_is_read_when_it_is_needed_and_refused_if_it_is_another_one_then(tmp_path: Path) -> None:
    (tmp_path / "crab").mkdir()
    file = tmp_path / "crab" / "0.png"
    Image.new("RGB", (24, 24), "red").save(file)
    data = ImageFolder(tmp_path, 0)
    fields = image_fields(data, 0, data[0], 16, "background", None)
    assert not any(isinstance(value, Tensor) for value in fields.values()), "no problem holds its image"
    assert fields["load"]().mean(dim=(1, 2)).tolist() == [1, 0, 0] and fields["load"]().shape == (3, 16, 16)
    Image.new("RGB", (24, 24), "blue").save(file)
    with pytest.raises(UnreadableImageError, match="crab-0: the image was changed during the run"):
        fields["load"]()
    file.unlink()
    with pytest.raises(UnreadableImageError, match=r"0\.png: no such file"):
        fields["load"]()


def test_problems_share_the_mask_that_the_user_drew(tmp_path: Path) -> None:
    mask = str(tmp_path / "mask.png")
    Image.new("L", (16, 16), 255).save(mask)
    first, second = (generated_image_fields(name, 16, "background", mask)["mask"] for name in "ab")
    assert first is second and first.eq(1).all()
    Image.new("L", (16, 16), 0).save(mask)
    assert generated_image_fields("c", 16, "background", mask)["mask"].eq(0).all()
