"""Figures like the paper's from the files of run folders: rows of pictures with captions, as PNG and PDF.

    python -m runner.figures <run folder> [<run folder> ...] [name=...] [out=outputs/figures] [most=12]

Several folders have to be of one task. Their blocks stand one after the other; counterfactuals of several runs stand
beside each other instead, for the problems that all of them answered. Needs matplotlib (the extra `figures`).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from runner.record import write
from runner.report import SMALL, parse_json
from runner.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]  # a line of results.jsonl
Options = TypeVar("Options")

WANTED = "give outputs/<task>/<generator>-<classifier>/<hash>"
CELL, GAP, BETWEEN, MARGIN = 1.25, 0.08, 0.3, 0.12  # inches: a picture's side, gaps within and between blocks, the rim
TITLE, HEADING, LINE = 0.18, 0.16, 0.125  # inches: heights of a block's title, a heading and a line of a caption
WIDE, CHARACTERS = 10, 24  # pictures beside each other at most; letters of a caption's line
DPI = 200


@dataclass
class Chosen:
    """What the command line may say beside run folders. name: of the files, None for the task's and the run's;
    out: their folder; most: blocks that are shown at most, the first ones."""

    name: str | None = None
    out: str = "outputs/figures"
    most: int = 12


@dataclass(frozen=True)
class Run:
    """A run folder, read: `task` is the module of the task that made it."""

    folder: Path
    task: str
    config: Mapping[str, Any]
    records: Sequence[Record]

    def picture(self, record: Record, key: str) -> Path:
        """A record's picture. Raises UserError if it has none of this name or the file is gone."""
        path = (record.get("images") or {}).get(key)
        if path is None:
            raise UserError(f"{self.folder}: {record['name']} has no picture '{key}'; run the same command again")
        if not (self.folder / path).is_file():
            raise UserError(f"{self.folder / path}: the picture is missing; was the run folder moved without it?")
        return self.folder / str(path)

    def start(self, record: Record) -> Path:
        """What a problem began with: its original, or the picture that was drawn."""
        return self.picture(record, "original" if "original" in record["images"] else "start")


@dataclass(frozen=True)
class Panel:
    """A picture between its heading and its caption. heat: a map laid over it, bright where it is high."""

    heading: str
    picture: Path
    caption: str = ""
    heat: Path | None = None


@dataclass(frozen=True)
class Block:
    """What belongs together: a title over one or more lines of panels."""

    title: str
    lines: Sequence[Sequence[Panel]]


@dataclass(frozen=True)
class Matrix:
    """Numbers shown as colours, one list per row."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Layout:
    """A figure before it is drawn."""

    blocks: Sequence[Block]
    matrix: Matrix | None = None


# --- reading -------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """A run folder's configuration and results. Raises UserError if they are not there or cannot be read."""
    for name in ("config.yaml", "results.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no run folder, {name} is missing; {WANTED}")
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    records = [parse_json(line, f"{folder / 'results.jsonl'}, line {i}") for i, line in enumerate(lines, start=1)]
    if not records:
        raise UserError(f"{folder}: holds no results yet; the same command continues the run")
    return Run(folder, config["task"]["_target_"].split(".")[-2], config, records)


def groups(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Records that agree in all of the keys, in the order of their appearance."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(found.values())


# --- layouts: one per task -----------------------------------------------------------------------------------

DISPUTES = {"over": "f up, g down", "under": "g up, f down"}
PUSHES = {"max": "maximised", "min": "minimised"}


def disagreement(runs: Sequence[Run]) -> Layout:
    """Per drawn picture the start and, per direction, the result (Fig. 3 and 4), with the real picture nearest to it
    where some were looked for (Fig. 5)."""
    return Layout([
        Block(own[0]["target"], [_dispute(run, own)])
        for run in runs for own in groups(run.records, "target", "picture")
    ])  # fmt: skip


def _dispute(run: Run, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    before = first["confidence_before"][first["target"]], first["rival_confidence_before"]
    panels = [Panel("start", run.picture(first, "start"), "$p_f$ {:.2f}\n$p_g$ {:.2f}".format(*before))]
    for r in own:
        after = r["confidence_after"][r["target"]], r["rival_confidence_after"]
        caption = f"$p_f$ {before[0]:.2f} → {after[0]:.2f}\n$p_g$ {before[1]:.2f} → {after[1]:.2f}"
        panels.append(Panel(DISPUTES[r["direction"]], run.picture(r, "best"), caption))
        if "near-1" in r["images"]:
            alike = f"{r['near_same']} of {r['near_found']} real ones alike"
            panels.append(Panel("nearest real one", run.picture(r, "near-1"), alike))
    return panels


BASELINES = {"none": "DiG-IN", "start_only": "start only"}


def uvce(runs: Sequence[Run]) -> Layout:
    """A run's counterfactuals with what led to them (Fig. 6 to 8 and 18); of several runs only the counterfactuals."""
    return _compared(runs) if len(runs) > 1 else Layout([_flip(runs[0], r) for r in runs[0].records])


def _flip(run: Run, r: Record) -> Block:
    panels = [
        Panel("original", run.picture(r, "original"), _source_and_target(r, "before")),
        Panel("start", run.picture(r, "start")),
        Panel("counterfactual", run.picture(r, "best"), _source_and_target(r, "after")),
        Panel("difference", run.picture(r, "difference")),
    ]
    if "mask" in r["images"]:
        panels.append(Panel("white may change", run.picture(r, "mask")))
    return Block(f"{r['source']} → {r['target']}", [panels])


def _compared(runs: Sequence[Run]) -> Layout:
    """Original and every run's answer to it."""
    answers = [{(r["name"], r["source"], r["target"]): r for r in run.records} for run in runs]
    blocks = []
    for question in (q for q in answers[0] if all(q in other for other in answers)):
        first = answers[0][question]
        panels = [Panel("original", runs[0].picture(first, "original"), _source_and_target(first, "before"))]
        for run, label, answer in zip(runs, _labels(runs), answers, strict=True):
            r = answer[question]
            panels.append(Panel(label, run.picture(r, "best"), _source_and_target(r, "after")))
        blocks.append(Block(f"{first['source']} → {first['target']}", [panels]))
    if not blocks:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: answered no question in common; give runs of one data set"
        )
    return Layout(blocks)


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells runs apart: classifier, baseline or, where neither does, their hash."""
    classifiers = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    baselines = [BASELINES.get(run.config["task"]["baseline"], run.config["task"]["baseline"]) for run in runs]
    own = (labels for labels in (classifiers, baselines) if len(set(labels)) == len(runs))
    return next(own, [run.folder.resolve().name for run in runs])


def neuron_vis(runs: Sequence[Run]) -> Layout:
    """Per unit the training picture that excites it most, the best word's and the results (Fig. 29 to 31), and how far
    the results excite their own unit and the others (Fig. 9)."""
    units = [(run, own) for run in runs for own in groups(run.records, "unit")]
    measured = [(own[0]["unit"], *(_mean(own, f"{whose}_standardised") for whose in ("own", "others")))
                for _, own in units]  # fmt: skip
    rows = [(unit, [mine, others]) for unit, mine, others in measured if mine is not None and others is not None]
    title = "activation in results, standard deviations over training pictures"
    matrix = Matrix(title, [u for u, _ in rows], ["own unit", "others, mean"], [v for _, v in rows]) if rows else None
    return Layout([Block(f"unit {own[0]['unit']}", [_unit(run, own)]) for run, own in units], matrix)


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = [r[key] for r in records if r[key] is not None]
    return fmean(values) if values else None


def _unit(run: Run, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    mean, highest = first["word_means"][first["word"]], first["word_max"]
    words = f"“{escaped(first['word'])}”\nmean {mean:.2f}\nany word ≤ {highest:.2f}"
    return [
        Panel("best training picture", run.picture(first, "training"), f"activation {first['training_max']:.2f}"),
        Panel("best word", run.picture(first, "worded"), words),
        *(Panel("result", run.picture(r, "best"), f"activation {r['activation_after']:.2f}") for r in own),
    ]


def neuron_cf(runs: Sequence[Run]) -> Layout:
    """Per picture and unit the original, what maximises and minimises the unit and the feature attack (Fig. 10), below
    them where the unit looks, with the share of it outside the object, and the mask (Fig. 34)."""
    return Layout([
        Block(f"{own[0]['source']}, unit {own[0]['unit']}", [line for line in _push(run, own) if line])
        for run in runs for own in groups(run.records, "picture", "unit")
    ])  # fmt: skip


def _push(run: Run, own: Sequence[Record]) -> tuple[list[Panel], list[Panel]]:
    first = own[0]
    attack = Panel("feature attack", run.picture(first, "attack"), f"activation {first['activation_attack']:.2f}")
    pictures = [*_steered(run, own, "activation", "activation"), attack]
    shown = [("before", first, run.start(first)), *(("after", r, run.picture(r, "best")) for r in own)]
    cams = [
        Panel(f"HiResCAM, {when}", picture, _outside(r, when), run.picture(r, f"cam-{when}"))
        for when, r, picture in shown if f"cam-{when}" in r["images"]
    ]  # fmt: skip
    return pictures, cams + (
        [Panel("white may change", run.picture(first, "mask"))] if "mask" in first["images"] else []
    )


def _outside(r: Record, when: str) -> str:
    share = r.get(f"cam_outside_{when}")
    return "" if share is None else f"outside {share:.2f}"


def npca_cf(runs: Sequence[Run]) -> Layout:
    """Per picture and component what it began with and what maximises and minimises the component (Fig. 11 and 35)."""
    return Layout([
        Block(f"{own[0]['source']}, component {own[0]['component']}", [_steered(run, own, "contribution", "α")])
        for run in runs for own in groups(run.records, "picture", "source", "component")
    ])  # fmt: skip


def _steered(run: Run, own: Sequence[Record], key: str, name: str) -> list[Panel]:
    """The start and each direction's result; captions: what was steered and the confidence of its class."""
    first = own[0]
    heading = "original" if "original" in first["images"] else "start"
    label = escaped(first["source"])

    def caption(r: Record, when: str) -> str:
        return f"{name} {r[f'{key}_{when}']:.2f}\n{label} {r[f'confidence_{when}'][r['source']]:.2f}"

    results = (Panel(PUSHES[r["direction"]], run.picture(r, "best"), caption(r, "after")) for r in own)
    return [Panel(heading, run.start(first), caption(first, "before")), *results]


def _source_and_target(r: Record, when: str) -> str:
    """Both classes' confidences, a line each."""
    return "\n".join(f"{escaped(name)} {r[f'confidence_{when}'][name]:.2f}" for name in (r["source"], r["target"]))


def escaped(name: str) -> str:
    """A name whose dollars are no formulas."""
    return name.replace("$", r"\$")


LAYOUTS: dict[str, Callable[[Sequence[Run]], Layout]] = {
    "disagreement": disagreement, "uvce": uvce, "neuron_vis": neuron_vis, "neuron_cf": neuron_cf, "npca_cf": npca_cf,
}  # fmt: skip


def lay_out(runs: Sequence[Run]) -> Layout:
    """The figure of runs of one task. Raises UserError for several tasks and one that no figure is made for."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) != 1:
        raise UserError(f"the run folders are of several tasks ({', '.join(tasks)}); give those of one")
    if tasks[0] not in LAYOUTS:
        raise UserError(f"{runs[0].folder}: task={tasks[0]} has no figure; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[tasks[0]](runs)


# --- drawing -------------------------------------------------------------------------------------------------


def draw(layout: Layout) -> Figure:
    """Blocks beside and below each other, as many side by side as `WIDE` allows, then the matrix."""
    from matplotlib.figure import Figure

    depth = max(len(block.lines) for block in layout.blocks)
    lines = [[block.lines[i] for block in layout.blocks if i < len(block.lines)] for i in range(depth)]
    texts = [LINE * max(len(_wrapped(panel.caption)) for line in level for panel in line) for level in lines]
    heights = [HEADING + CELL + text + GAP for text in texts]
    columns = max(len(line) for level in lines for line in level)
    across = min(len(layout.blocks), max(1, WIDE // columns))
    width, height = columns * (CELL + GAP) - GAP + BETWEEN, TITLE + sum(heights) + GAP
    down = -(-len(layout.blocks) // across)
    below = 0.0 if layout.matrix is None else TITLE + HEADING + 2 * LINE * len(layout.matrix.rows) + GAP
    size = (max(across * width - BETWEEN, 3 * CELL) + 2 * MARGIN, down * height + below + 2 * MARGIN)
    figure = Figure(figsize=size)
    for i, block in enumerate(layout.blocks):
        left, top = MARGIN + i % across * width, MARGIN + i // across * height
        _text(figure, left, top, block.title, weight="bold", parse_math=False)
        top += TITLE
        for line, level in zip(block.lines, heights, strict=False):
            for k, panel in enumerate(line):
                _draw_panel(figure, left + k * (CELL + GAP), top, panel)
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


def _draw_panel(figure: Figure, left: float, top: float, panel: Panel) -> None:
    _text(figure, left, top, panel.heading, color="0.35", parse_math=False)
    axes = _axes(figure, left, top + HEADING, CELL, CELL)
    with Image.open(panel.picture) as file:
        pixels = np.asarray(file.convert("RGB"))
    side = (0, 1, 0, 1)  # a map of another size covers the same square
    sharp = "nearest" if pixels.shape[1] <= SMALL else "antialiased"
    axes.imshow(pixels, interpolation=sharp, extent=side)
    if panel.heat is not None:
        with Image.open(panel.heat) as file:
            axes.imshow(np.asarray(file.convert("L")), cmap="inferno", alpha=0.6, extent=side, interpolation=sharp)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():  # without a frame a white picture has no edge
        spine.set(color="0.8", linewidth=0.4)
    _text(figure, left, top + HEADING + CELL + 0.03, "\n".join(_wrapped(panel.caption)), linespacing=1.15)


def _wrapped(caption: str) -> list[str]:
    """A caption's lines, none longer than a picture is wide."""
    return [part for line in caption.split("\n") for part in textwrap.wrap(line, CHARACTERS) or [""]]


def _draw_matrix(figure: Figure, top: float, matrix: Matrix) -> None:
    _text(figure, MARGIN, top, matrix.title, weight="bold", parse_math=False)
    left = MARGIN + CELL
    axes = _axes(figure, left, top + TITLE + HEADING, CELL * len(matrix.columns), 2 * LINE * len(matrix.rows))
    values = np.array(matrix.values)
    axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(matrix.columns)), matrix.columns)
    axes.set_yticks(range(len(matrix.rows)), matrix.rows)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink)


def save(layout: Layout, path: Path, subject: str) -> list[Path]:
    """Draw a figure and write it as `path` with the endings png and pdf. Raises UserError without matplotlib."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError("matplotlib is missing: pip install -e '.[figures]'") from error
    described = {"png": {"Title": subject}, "pdf": {"Title": subject, "CreationDate": None}}
    files = []
    with rc_context({"font.family": "DejaVu Sans", "font.size": 7, "pdf.fonttype": 42}):  # 42: a PDF's words stay words
        figure = draw(layout)
        for kind, metadata in described.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files.append(path.with_name(f"{path.name}.{kind}"))
            write(files[-1], buffer.getvalue())
    return files


def compose(folders: Sequence[Path], chosen: Chosen) -> list[Path]:
    """The figure of one or several run folders as files, PNG first."""
    if chosen.most < 1:
        raise UserError(f"most={chosen.most}: allowed are 1 and above")
    runs = [read_run(folder) for folder in folders]
    layout = lay_out(runs)
    name = chosen.name or "-".join([runs[0].task, *(run.folder.resolve().name for run in runs)])
    if Path(name).name != name:
        raise UserError(f"name={name}: is no file name; out= gives the folder")
    sources = ", ".join("/".join(run.folder.resolve().parts[-3:]) for run in runs)
    return save(replace(layout, blocks=layout.blocks[: chosen.most]), Path(chosen.out) / name, sources)


# --- the command line ----------------------------------------------------------------------------------------


def read_arguments(arguments: Sequence[str], defaults: Options) -> tuple[list[str], Options]:
    """The paths among the arguments, and a dataclass of options with what `key=value` says of it.

    Raises UserError for an unknown key and a value that is not allowed.
    """
    schema = OmegaConf.structured(defaults)
    paths = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not (separator and key.isidentifier()):
            paths.append(argument)
            continue
        if key not in schema:
            raise UserError(f"{argument}: allowed are paths and {', '.join(f'{k}=' for k in schema)}")
        try:
            schema[key] = value
        except OmegaConfBaseException as error:
            raise UserError(f"{argument}: {str(error).splitlines()[0]}") from error
    chosen: Any = OmegaConf.to_object(schema)
    return paths, chosen


def main(arguments: Sequence[str]) -> int:
    """Compose the figure of the run folders named on the command line and print its files."""
    try:
        folders, chosen = read_arguments(arguments, Chosen())
        if not folders:
            raise UserError("usage: python -m runner.figures <run folder> [<run folder> ...] [name=] [out=] [most=]")
        for file in compose([Path(folder) for folder in folders], chosen):
            print(file)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
