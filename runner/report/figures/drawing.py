"""Rows of images with headings and captions, as PNG and PDF. Needs matplotlib (the extra `figures`)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from classifier_lens.data.images import DECODE_ERRORS
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.results.reader import REWRITE_HINT
from classifier_lens.runner.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGE_SIDE = 1.25  # inches
GAP, BLOCK_GAP, MARGIN = 0.08, 0.3, 0.12  # inches: between images, between blocks, around the figure
TITLE_HEIGHT, HEADING_HEIGHT, LINE_HEIGHT = 0.18, 0.16, 0.125  # inches: a block's title, a heading, a line of a caption
CAPTION_WIDTH = 24  # letters per line
INTERPOLATION = "bicubic"  # of small images, too: hard pixel edges look like structures of the image


@dataclass(frozen=True)
class Panel:
    """An image between its heading and its caption. heatmap: a map that is laid over the image, bright where it is
    high; color: of heading and frame, None for gray; part: position among the images that the file has side by side,
    None for the whole file."""

    heading: str
    image: Path
    caption: str = ""
    heatmap: Path | None = None
    color: str | None = None
    part: int | None = None


@dataclass(frozen=True)
class Block:
    """A title over one or more rows of panels, e.g. all images of one problem."""

    title: str
    rows: Sequence[Sequence[Panel]]


@dataclass(frozen=True)
class Matrix:
    """Numbers shown as colors, one list per row; NaN for an empty cell."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Layout:
    """The content of a figure."""

    blocks: Sequence[Block]
    matrix: Matrix | None = None


def escape_math(name: str) -> str:
    """The name with its dollar signs escaped, which matplotlib would read as formulas."""
    return name.replace("$", r"\$")


def wrap_rows(layout: Layout, max_columns: int) -> Layout:
    """The layout with rows of at most `max_columns` panels; a longer row becomes rows of about the same length."""
    blocks = [
        replace(block, rows=[part for row in block.rows for part in _split_evenly(row, max_columns)])
        for block in layout.blocks
    ]
    return replace(layout, blocks=blocks)


def _split_evenly(row: Sequence[Panel], most: int) -> list[Sequence[Panel]]:
    length = -(-len(row) // -(-len(row) // most))
    return [row[i : i + length] for i in range(0, len(row), length)]


def draw(layout: Layout, max_columns: int) -> Figure:
    """The blocks, side by side as far as `max_columns` panels allow, and the matrix below them."""
    from matplotlib.figure import Figure

    depth = max(len(block.rows) for block in layout.blocks)
    levels = [[block.rows[i] for block in layout.blocks if i < len(block.rows)] for i in range(depth)]
    texts = [LINE_HEIGHT * max(len(_wrapped(panel.caption)) for row in level for panel in row) for level in levels]
    headings = [HEADING_HEIGHT * any(panel.heading for row in level for panel in row) for level in levels]
    heights = [heading + IMAGE_SIDE + text + GAP for heading, text in zip(headings, texts, strict=True)]
    columns = max(len(row) for level in levels for row in level)
    across = min(len(layout.blocks), max(1, max_columns // columns))
    width, height = columns * (IMAGE_SIDE + GAP) - GAP + BLOCK_GAP, TITLE_HEIGHT + sum(heights) + GAP
    down = -(-len(layout.blocks) // across)
    size = max(across * width - BLOCK_GAP, 3 * IMAGE_SIDE), down * height + _matrix_height(layout.matrix)
    figure = Figure(figsize=(size[0] + 2 * MARGIN, size[1] + 2 * MARGIN))
    for i, block in enumerate(layout.blocks):
        left, top = MARGIN + i % across * width, MARGIN + i // across * height
        _text(figure, left, top, block.title, weight="bold", parse_math=False)
        top += TITLE_HEIGHT
        for row, heading, row_height in zip(block.rows, headings, heights, strict=False):
            for k, panel in enumerate(row):
                _draw_panel(figure, left + k * (IMAGE_SIDE + GAP), top, heading, panel)
            top += row_height
    if layout.matrix is not None:
        _draw_matrix(figure, MARGIN + down * height, layout.matrix)
    return figure


def _matrix_height(matrix: Matrix | None) -> float:
    return 0.0 if matrix is None else TITLE_HEIGHT + HEADING_HEIGHT + 2 * LINE_HEIGHT * len(matrix.rows) + GAP


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the top left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    w, h = figure.get_size_inches()
    figure.text(left / w, 1 - top / h, text, va="top", **style)


def _pixels(path: Path, mode: str) -> np.ndarray:
    """An image of a run folder in one of Pillow's modes. Raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return np.asarray(file.convert(mode))
    except DECODE_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {REWRITE_HINT}") from error


def _cut(row: np.ndarray, position: int) -> np.ndarray:
    """One of the square images that a file has side by side, with a line of one pixel around each."""
    side = row.shape[0] - 2
    left = 1 + position * (side + 1)
    return row[1:-1, left : left + side]


def _draw_panel(figure: Figure, left: float, top: float, heading: float, panel: Panel) -> None:
    """A panel at a place; heading: the height of its heading."""
    _text(figure, left, top, panel.heading, color=panel.color or "0.35", parse_math=False)
    axes = _axes(figure, left, top + heading, IMAGE_SIDE, IMAGE_SIDE)
    extent = (0, 1, 0, 1)  # a heat map of another size covers the same square
    pixels = _pixels(panel.image, "RGB")
    if panel.part is not None:
        pixels = _cut(pixels, panel.part)
    axes.imshow(pixels, interpolation=INTERPOLATION, extent=extent)
    if panel.heatmap is not None:
        heatmap = _pixels(panel.heatmap, "L")
        axes.imshow(heatmap, cmap="inferno", alpha=0.6, extent=extent, interpolation=INTERPOLATION)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():  # without a frame a white image has no edge
        spine.set(color=panel.color or "0.8", linewidth=0.4 if panel.color is None else 1.2)
    _text(figure, left, top + heading + IMAGE_SIDE + 0.03, "\n".join(_wrapped(panel.caption)), linespacing=1.15)


def _wrapped(caption: str) -> list[str]:
    """The lines of a caption, none wider than an image."""
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


def save(layout: Layout, path: Path, title: str, max_columns: int, image_size: int, pdf: bool) -> list[Path]:
    """Draw a figure with images of `image_size` px and write it as `path` with the ending png, with `pdf` as PDF, too.
    Raises UserError without matplotlib."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError(
            "matplotlib is missing, so no figure can be drawn; install it with pip install -e '.[figures]'"
        ) from error
    options: dict[str, dict[str, Any]] = {
        "png": {"metadata": {"Title": title}, "pil_kwargs": {"optimize": True}},
        "pdf": {"metadata": {"Title": title, "CreationDate": None}},
    }
    files = []
    # fonttype 42: the text of a PDF stays text
    with rc_context({"font.family": "DejaVu Sans", "font.size": 7, "pdf.fonttype": 42}):
        figure = draw(wrap_rows(layout, max_columns), max_columns)
        for kind in ("png", "pdf") if pdf else ("png",):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=image_size / IMAGE_SIDE, **options[kind])
            files.append(path.with_name(f"{path.name}.{kind}"))
            write_durable(files[-1], buffer.getvalue())
    return files
