"""What tasks that start from images have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.folder import ImageFolder
from tasks.pictures import compared, moved_by, readable


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
    found = dict(readable(data, range(4)))
    assert sorted(example.name for example in found.values()) == ["crab-0", "crab-2"]
    assert all(data[i].name == example.name for i, example in found.items())
    lines = sorted(capsys.readouterr().out.splitlines())
    assert len(lines) == 2 and all(line.startswith("left out: data.path=") for line in lines)
    assert "1.png: cannot be read" in lines[0] and "3.png: 8 x 8 pixels" in lines[1]


@pytest.mark.parametrize(("value", "said"), [(5.28, "5.28 < 5.83, x"), (6.0, "6 > 5.83, x"), (5.83, "5.83 = 5.83, x")])
def test_a_number_beside_what_it_is_measured_by(value: float, said: str) -> None:
    assert compared(value, 5.83, "x") == said


@pytest.mark.parametrize(
    ("direction", "after", "success"), [(1, 2.6, True), (1, 2.4, False), (-1, 2.6, False), (-1, -0.6, True)]
)
def test_a_change_counts_in_its_direction(direction: int, after: float, success: bool) -> None:
    found = moved_by(1.0, after, 0.5, direction, 3.0)
    assert found["success"] is success
    assert found["criterion"].startswith(f"1 to {after} (wanted: {'+' if direction == 1 else '-'}3 standard deviations")
