"""Figures like the paper's from the files of run folders: rows of pictures with captions, as PNG and PDF.

    python scripts/figure.py <run folder> [<run folder> ...] [name=...] [out=outputs/figures] [most=12]

Several folders have to be of one task. Their blocks stand one after the other; counterfactuals of several runs stand
beside each other instead, for the problems that all of them answered, and portraits, for each class. Needs matplotlib
(the extra `figures`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classifier_lens.runner.configuration.command_line import with_paths
from classifier_lens.runner.configuration.value_ranges import Count
from classifier_lens.runner.report.figures.attention_and_gradients import attention_maps, input_gradients
from classifier_lens.runner.report.figures.counterfactuals import disagreement, uvce
from classifier_lens.runner.report.figures.drawing import Layout, save
from classifier_lens.runner.report.figures.prompts import diffexplainer_class, spurious_audit
from classifier_lens.runner.report.figures.units import neuron_cf, neuron_vis, npca_cf
from classifier_lens.runner.results.reader import Run, read_run
from classifier_lens.runner.types import UserError


@dataclass
class Chosen:
    """What the command line may say beside run folders. name: of the files, None for the task's and the run's;
    out: their folder; most: blocks that are shown at most, the first ones."""

    name: str | None = None
    out: str = "outputs/figures"
    most: Count = 12


LAYOUTS: dict[str, Callable[[Sequence[Run]], Layout]] = {
    "disagreement": disagreement, "uvce": uvce, "neuron_vis": neuron_vis, "neuron_cf": neuron_cf, "npca_cf": npca_cf,
    "attention_maps": attention_maps, "input_gradients": input_gradients, "diffexplainer_class": diffexplainer_class,
    "spurious_audit": spurious_audit,
}  # fmt: skip


def lay_out(runs: Sequence[Run]) -> Layout:
    """The figure of runs of one task. Raises UserError for several tasks and one that no figure is made for."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) != 1:
        raise UserError(f"the run folders are of several tasks ({', '.join(tasks)}); give those of one")
    if tasks[0] not in LAYOUTS:
        raise UserError(f"{runs[0].folder}: task={tasks[0]} has no figure; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[tasks[0]](runs)


# --- files ---------------------------------------------------------------------------------------------------


def compose(folders: Sequence[Path], chosen: Chosen) -> list[Path]:
    """The figure of one or several run folders as files, PNG first."""
    runs = [read_run(folder) for folder in folders]
    layout = lay_out(runs)
    name = chosen.name or "-".join([runs[0].task, *(run.folder.resolve().name for run in runs)])
    if Path(name).name != name:
        raise UserError(f"name={name}: is no file name; out= gives the folder")
    sources = ", ".join("/".join(run.folder.resolve().parts[-3:]) for run in runs)
    return save(replace(layout, blocks=layout.blocks[: chosen.most]), Path(chosen.out) / name, sources)


# --- the command line ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Compose the figure of the run folders named on the command line and print its files."""
    try:
        folders, chosen = with_paths(Chosen, arguments)
        if not folders:
            raise UserError("usage: python scripts/figure.py <run folder> [<run folder> ...] [name=] [out=] [most=]")
        for file in compose([Path(folder) for folder in folders], chosen):
            print(file)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
