"""Rows of pictures with headings and captions, drawn as PNG and PDF. Needs matplotlib (the extra `figures`)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from classifier_lens.data.image_folder import DECODE_ERRORS
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.results.reader import REWRITE_HINT
from classifier_lens.runner.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGE_SIDE, GAP, BLOCK_GAP, MARGIN = (
    1.25,
    0.08,
    0.3,
    0.12,
)  # inches: a picture's side, gaps within and between blocks, the rim
TITLE_HEIGHT, HEADING_HEIGHT, LINE_HEIGHT = (
    0.18,
    0.16,
    0.125,
)  # inches: heights of a block's title, a heading and a line of a caption
MAX_COLUMNS, CAPTION_WIDTH = 10, 24  # pictures beside each other at most; letters of a caption's line
SMALL_IMAGE_SIDE = 160  # px; narrower images are enlarged with hard pixel edges
DPI = 200


@dataclass(frozen=True)
class Panel:
    """A picture between its heading, if any, and its caption. heatmap: a map laid over it, bright where it is high;
    color: of its heading and its frame, None for grey."""

    heading: str
    image: Path
    caption: str = ""
    heatmap: Path | None = None
    color: str | None = None


@dataclass(frozen=True)
class Block:
    """What belongs together: a title over one or more lines of panels."""

    title: str
    rows: Sequence[Sequence[Panel]]


@dataclass(frozen=True)
class Matrix:
    """Numbers shown as colours, one list per row; NaN where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Layout:
    """A figure before it is drawn."""

    blocks: Sequence[Block]
    matrix: Matrix | None = None


def escape_math(name: str) -> str:
    """A name whose dollars are no formulas."""
    return name.replace("$", r"\$")


def draw(layout: Layout) -> Figure:
    """Blocks beside and below each other, as many side by side as `MAX_COLUMNS` allows, then the matrix."""
    from matplotlib.figure import Figure

    depth = max(len(block.rows) for block in layout.blocks)
    lines = [[block.rows[i] for block in layout.blocks if i < len(block.rows)] for i in range(depth)]
    texts = [LINE_HEIGHT * max(len(_wrapped(panel.caption)) for line in level for panel in line) for level in lines]
    headings = [HEADING_HEIGHT * any(panel.heading for line in level for panel in line) for level in lines]
    heights = [heading + IMAGE_SIDE + text + GAP for heading, text in zip(headings, texts, strict=True)]
    columns = max(len(line) for level in lines for line in level)
    across = min(len(layout.blocks), max(1, MAX_COLUMNS // columns))
    width, height = columns * (IMAGE_SIDE + GAP) - GAP + BLOCK_GAP, TITLE_HEIGHT + sum(heights) + GAP
    down = -(-len(layout.blocks) // across)
    below = (
        0.0
        if layout.matrix is None
        else TITLE_HEIGHT + HEADING_HEIGHT + 2 * LINE_HEIGHT * len(layout.matrix.rows) + GAP
    )
    size = (max(across * width - BLOCK_GAP, 3 * IMAGE_SIDE) + 2 * MARGIN, down * height + below + 2 * MARGIN)
    figure = Figure(figsize=size)
    for i, block in enumerate(layout.blocks):
        left, top = MARGIN + i % across * width, MARGIN + i // across * height
        _text(figure, left, top, block.title, weight="bold", parse_math=False)
        top += TITLE_HEIGHT
        for line, heading, level in zip(block.rows, headings, heights, strict=False):
            for k, panel in enumerate(line):
                _draw_panel(figure, left + k * (IMAGE_SIDE + GAP), top, heading, panel)
            top += level
    if layout.matrix is not None:
        _draw_matrix(figure, MARGIN + down * height, layout.matrix)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place that is measured in inches from the top left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    w, h = figure.get_size_inches()
    figure.text(left / w, 1 - top / h, text, va="top", **style)


def _pixels(path: Path, mode: str) -> np.ndarray:
    """An image of a run's folder in one of Pillow's modes. Raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return np.asarray(file.convert(mode))
    except DECODE_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {REWRITE_HINT}") from error


def _draw_panel(figure: Figure, left: float, top: float, heading: float, panel: Panel) -> None:
    """A panel at a place; heading: the height that is left for its heading."""
    _text(figure, left, top, panel.heading, color=panel.color or "0.35", parse_math=False)
    axes = _axes(figure, left, top + heading, IMAGE_SIDE, IMAGE_SIDE)
    pixels = _pixels(panel.image, "RGB")
    side = (0, 1, 0, 1)  # a map of another size covers the same square
    sharp = "nearest" if pixels.shape[1] <= SMALL_IMAGE_SIDE else "antialiased"
    axes.imshow(pixels, interpolation=sharp, extent=side)
    if panel.heatmap is not None:
        axes.imshow(_pixels(panel.heatmap, "L"), cmap="inferno", alpha=0.6, extent=side, interpolation=sharp)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():  # without a frame a white picture has no edge
        spine.set(color=panel.color or "0.8", linewidth=0.4 if panel.color is None else 1.2)
    _text(figure, left, top + heading + IMAGE_SIDE + 0.03, "\n".join(_wrapped(panel.caption)), linespacing=1.15)


def _wrapped(caption: str) -> list[str]:
    """A caption's lines, none longer than a picture is wide."""
    return [part for line in caption.split("\n") for part in textwrap.wrap(line, CAPTION_WIDTH) or [""]]


def _draw_matrix(figure: Figure, top: float, matrix: Matrix) -> None:
    _text(figure, MARGIN, top, matrix.title, weight="bold", parse_math=False)
    left = MARGIN + IMAGE_SIDE
    width = min(IMAGE_SIDE * len(matrix.columns), figure.get_size_inches()[0] - left - MARGIN)
    axes = _axes(figure, left, top + TITLE_HEIGHT + HEADING_HEIGHT, width, 2 * LINE_HEIGHT * len(matrix.rows))
    values = np.array(matrix.values)
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(matrix.columns)), matrix.columns)
    axes.set_yticks(range(len(matrix.rows)), matrix.rows)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink)


def save(layout: Layout, path: Path, title: str) -> list[Path]:
    """Draw a figure and write it as `path` with the endings png and pdf. Raises UserError without matplotlib."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError("matplotlib is missing: pip install -e '.[figures]'") from error
    described = {"png": {"Title": title}, "pdf": {"Title": title, "CreationDate": None}}
    files = []
    with rc_context({"font.family": "DejaVu Sans", "font.size": 7, "pdf.fonttype": 42}):  # 42: a PDF's words stay words
        figure = draw(layout)
        for kind, metadata in described.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files.append(path.with_name(f"{path.name}.{kind}"))
            write_durable(files[-1], buffer.getvalue())
    return files
