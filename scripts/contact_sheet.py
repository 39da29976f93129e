"""One picture of a run: originals, counterfactuals, what changed and the classifier's confidences.

python scripts/contact_sheet.py outputs/uvce/planted_ddim-planted_clean/<hash> docs/images/uvce.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

IMAGE_ROWS = {"original": "original", "start": "words exchanged", "best": "counterfactual", "difference": "difference"}
SIDE, GAP, CAPTION_HEIGHT, HEADER_HEIGHT, LABEL_WIDTH = 160, 10, 44, 26, 130  # pixels


def contact_sheet(folder: Path, max_problems: int = 4) -> Image.Image:
    """Up to `max_problems` problems of a run folder, a column each, in the order of results.jsonl.

    Raises FileNotFoundError if the folder holds no results.
    """
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()][:max_problems]
    left = LABEL_WIDTH
    width = left + len(records) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEADER_HEIGHT + len(IMAGE_ROWS) * (SIDE + GAP) + CAPTION_HEIGHT + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, title in enumerate(IMAGE_ROWS.values()):
        pen.text((GAP, HEADER_HEIGHT + row * (SIDE + GAP) + SIDE // 2 - 8), title, fill="black", font=font)
    for column, record in enumerate(records):
        x = left + column * (SIDE + GAP)
        pen.text((x, 6), record["source"], fill="black", font=font)
        for row, name in enumerate(IMAGE_ROWS):
            with Image.open(folder / record["images"][name], formats=["PNG"]) as picture:
                large = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(large, (x, HEADER_HEIGHT + row * (SIDE + GAP)))
        pen.text((x, HEADER_HEIGHT + len(IMAGE_ROWS) * (SIDE + GAP)), caption(record), fill="black", font=font)
    return sheet


def caption(record: dict[str, Any]) -> str:
    """The target's name and its confidence before and after."""
    target = record["target"]
    before, after = (record[key][target] for key in ("confidence_before", "confidence_after"))
    return f"{target}\n{before:.2f} to {after:.2f}"


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit("usage: contact_sheet.py <run folder> <picture>")
    Path(arguments[1]).parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(Path(arguments[0])).save(arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])
