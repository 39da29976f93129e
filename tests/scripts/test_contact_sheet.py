"""The contact sheet shows the files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from classifier_lens.scripts.contact_sheet import GAP, HEADER_HEIGHT, LABEL_WIDTH, SIDE, contact_sheet


def test_a_column_for_each_problem_with_its_own_pictures(tmp_path: Path) -> None:
    records = []
    for i, colour in enumerate(["red", "blue"]):
        images = {}
        for name in ("original", "start", "best", "difference"):
            path = tmp_path / f"{i}-{name}.png"
            Image.new("RGB", (8, 8), colour if name == "best" else "green").save(path)
            images[name] = path.name
        records.append({
            "source": "a", "target": "b", "confidence_before": {"b": 0.1}, "confidence_after": {"b": 0.9},
            "images": images,
        })  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    sheet = contact_sheet(tmp_path)
    y = HEADER_HEIGHT + 2 * (SIDE + GAP) + SIDE // 2  # the third row: counterfactuals
    assert sheet.getpixel((LABEL_WIDTH + SIDE // 2, y)) == (255, 0, 0)
    assert sheet.getpixel((LABEL_WIDTH + SIDE + GAP + SIDE // 2, y)) == (0, 0, 255)
    assert contact_sheet(tmp_path, max_problems=1).width < sheet.width


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        contact_sheet(tmp_path)
