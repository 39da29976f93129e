"""Figures like the paper's from the files of run folders: rows of pictures with captions, as PNG and PDF.

    python scripts/figure.py <run folder> [<run folder> ...] [name=...] [out=outputs/figures] [max_blocks=12]

Several folders have to be of one task. Their blocks stand one after the other; counterfactuals of several runs stand
beside each other instead, for the problems that all of them answered, and portraits, for each class. Needs matplotlib
(the extra `figures`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classifier_lens.runner.configuration.command_line import parse_paths_and_options
from classifier_lens.runner.configuration.value_ranges import Count
from classifier_lens.runner.report.figures.attention_and_gradients import attention_maps, input_gradients
from classifier_lens.runner.report.figures.counterfactuals import disagreement, uvce
from classifier_lens.runner.report.figures.drawing import Layout, save
from classifier_lens.runner.report.figures.prompts import diffexplainer_class, spurious_audit
from classifier_lens.runner.report.figures.units import neuron_cf, neuron_vis, npca_cf
from classifier_lens.runner.results.reader import RunResults, read_run
from classifier_lens.runner.types import UserError


@dataclass
class FigureOptions:
    """What the command line may say beside run folders. name: of the files, None for the task's and the run's;
    out: their folder; max_blocks: blocks that are shown at most, the first ones."""

    name: str | None = None
    out: str = "outputs/figures"
    max_blocks: Count = 12


LAYOUTS: dict[str, Callable[[Sequence[RunResults]], Layout]] = {
    "disagreement": disagreement, "uvce": uvce, "neuron_vis": neuron_vis, "neuron_cf": neuron_cf, "npca_cf": npca_cf,
    "attention_maps": attention_maps, "input_gradients": input_gradients, "diffexplainer_class": diffexplainer_class,
    "spurious_audit": spurious_audit,
}  # fmt: skip


def make_layout(runs: Sequence[RunResults]) -> Layout:
    """The figure of runs of one task. Raises UserError for several tasks and one that no figure is made for."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) != 1:
        raise UserError(f"the run folders are of several tasks ({', '.join(tasks)}); give those of one")
    if tasks[0] not in LAYOUTS:
        raise UserError(f"{runs[0].folder}: task={tasks[0]} has no figure; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[tasks[0]](runs)


# --- files ---------------------------------------------------------------------------------------------------


def write_figure(folders: Sequence[Path], chosen: FigureOptions) -> list[Path]:
    """The figure of one or several run folders as files, PNG first."""
    runs = [read_run(folder) for folder in folders]
    layout = make_layout(runs)
    name = chosen.name or "-".join([runs[0].task, *(run.folder.resolve().name for run in runs)])
    if Path(name).name != name:
        raise UserError(f"name={name}: is no file name; out= gives the folder")
    sources = ", ".join("/".join(run.folder.resolve().parts[-3:]) for run in runs)
    return save(replace(layout, blocks=layout.blocks[: chosen.max_blocks]), Path(chosen.out) / name, sources)


# --- the command line ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Compose the figure of the run folders named on the command line and print its files."""
    try:
        folders, chosen = parse_paths_and_options(FigureOptions, arguments)
        if not folders:
            raise UserError(
                "usage: python scripts/figure.py <run folder> [<run folder> ...] [name=] [out=] [max_blocks=]"
            )
        for file in write_figure([Path(folder) for folder in folders], chosen):
            print(file)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
