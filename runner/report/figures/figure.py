"""Figures like those of the papers, from run folders: rows of images with captions, as PNG and PDF.

    python scripts/figure.py <run folder> [<run folder> ...] [name=...] [out=outputs/figures] [max_blocks=12]

Several folders have to be of one task; their blocks follow each other. Of several runs of `uvce` the counterfactuals
are side by side instead, for the problems that all runs solved; of several runs of `diffexplainer_class` the images of
each class are. Needs matplotlib (the extra `figures`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from classifier_lens.runner.configuration.command_line import parse_paths_and_options
from classifier_lens.runner.configuration.value_ranges import Count
from classifier_lens.runner.report.figures.attention_and_gradients import attention_maps, input_gradients
from classifier_lens.runner.report.figures.concepts import concept_effect
from classifier_lens.runner.report.figures.counterfactuals import disagreement, uvce
from classifier_lens.runner.report.figures.drawing import Layout, save
from classifier_lens.runner.report.figures.prompts import diffexplainer_class, spurious_audit
from classifier_lens.runner.report.figures.units import neuron_cf, neuron_vis, npca_cf
from classifier_lens.runner.results.reader import RunResults, read_run
from classifier_lens.runner.types import UserError

ImageSize = Annotated[int, Ge(160), Le(2000)]  # px; details of smaller images cannot be seen


@dataclass
class FigureOptions:
    """Options of the command line. name: of the files, None for the names of task and run; out: their folder;
    max_blocks: number of blocks, the first ones; max_columns: images per row; image_size: px of an
    image's side; pdf: also write a PDF."""

    name: str | None = None
    out: str = "outputs/figures"
    max_blocks: Count = 12
    max_columns: Count = 8
    image_size: ImageSize = 250
    pdf: bool = True


LAYOUTS: dict[str, Callable[[Sequence[RunResults]], Layout]] = {
    "disagreement": disagreement, "uvce": uvce, "neuron_vis": neuron_vis, "neuron_cf": neuron_cf, "npca_cf": npca_cf,
    "attention_maps": attention_maps, "input_gradients": input_gradients, "diffexplainer_class": diffexplainer_class,
    "spurious_audit": spurious_audit, "concept_effect": concept_effect,
}  # fmt: skip


def make_layout(runs: Sequence[RunResults]) -> Layout:
    """The figure of runs of one task. Raises UserError for several tasks, and for a task without a figure."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) != 1:
        raise UserError(
            f"the run folders are of several tasks ({', '.join(tasks)}), which one figure cannot show; give one task's"
        )
    if tasks[0] not in LAYOUTS:
        raise UserError(f"{runs[0].folder}: task={tasks[0]} has no figure; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[tasks[0]](runs)


def write_figure(folders: Sequence[Path], options: FigureOptions) -> list[Path]:
    """The files of the figure of one or several run folders, PNG first."""
    runs = [read_run(folder) for folder in folders]
    layout = make_layout(runs)
    name = options.name or "-".join([runs[0].task, *(run.folder.resolve().name for run in runs)])
    if Path(name).name != name:
        raise UserError(f"name={name}: is not a file name; out= sets the folder")
    sources = ", ".join("/".join(run.folder.resolve().parts[-3:]) for run in runs)
    layout = replace(layout, blocks=layout.blocks[: options.max_blocks])
    path = Path(options.out) / name
    return save(layout, path, sources, options.max_columns, options.image_size, options.pdf)


def main(arguments: Sequence[str]) -> int:
    """Write the figure of the run folders named on the command line and print the names of its files."""
    try:
        folders, options = parse_paths_and_options(FigureOptions, arguments)
        if not folders:
            raise UserError(
                "usage: python scripts/figure.py <run folder> [<run folder> ...] [name=] [out=] [max_blocks=] "
                "[max_columns=] [image_size=] [pdf=]"
            )
        for file in write_figure([Path(folder) for folder in folders], options):
            print(file)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
