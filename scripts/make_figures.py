"""Run the miniatures of conf/experiment/planted and draw a figure of each.

    python scripts/make_figures.py
    python scripts/make_figures.py only=fig06,fig19
    python scripts/make_figures.py only=fig06 figures=/tmp/figures limit=2 optimizer.steps=5

Each is `python run.py experiment=planted/<name>` with the other arguments, so that finished runs are not repeated; the
runs of an experiment's sweep make one figure. Without `only` all figures and tables of the
papers are made; it may name any file of the folder. `max_blocks`, `max_columns`, `image_size` and `pdf` are those of
scripts/figure.py. Figures are `<figures>/<name>.png` and `.pdf`. Exit code: the highest of the runs'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from classifier_lens.runner.cluster.signals import is_stop_code
from classifier_lens.runner.configuration.command_line import split_options
from classifier_lens.runner.configuration.compose import CONFIG_FOLDER, build, compose_config, expand_sweep
from classifier_lens.runner.configuration.value_ranges import Count
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.report.figures.figure import FigureOptions, ImageSize, write_figure
from classifier_lens.runner.run import BAD_INPUT, DONE, run, run_folder
from classifier_lens.runner.types import UserError

GROUP = "planted"
EXPERIMENTS = CONFIG_FOLDER / "experiment" / GROUP
FIGURE_PREFIXES = ("fig", "tab", "workshop", "diffexplainer_")  # of experiments for figures and tables


@dataclass
class Options:
    """Options of the command line. only: experiments, separated by commas; figures: folder of the figures; the others:
    as in `FigureOptions`."""

    only: str | None = None
    figures: str = FigureOptions.out
    max_blocks: Count = FigureOptions.max_blocks
    max_columns: Count = FigureOptions.max_columns
    image_size: ImageSize = FigureOptions.image_size
    pdf: bool = FigureOptions.pdf


def select_experiments(only: str | None, folder: Path = EXPERIMENTS) -> list[str]:
    """The figures and tables of a folder, or the experiments that are named, separated by commas. Raises UserError for
    an unknown name."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if only is None:
        return [name for name in names if name.startswith(FIGURE_PREFIXES)]
    selected = [name.strip() for name in only.split(",")]
    for name in selected:
        if name not in names:
            raise UserError(f"only={name}: no such experiment; allowed are {', '.join(names)}")
    return selected


def run_experiment(name: str, overrides: Sequence[str]) -> tuple[list[Path], int]:
    """The run folders of an experiment, after its unfinished runs have been run, and the highest exit code. A stopped
    run is the last one."""
    folders, codes = [], [DONE]
    for job in expand_sweep([f"experiment={GROUP}/{name}", *overrides]):
        config = compose_config(job)
        parts = build(config)
        codes.append(run(parts, config))
        folders.append(run_folder(parts, config).path)
        if is_stop_code(codes[-1]):
            break
    return folders, max(codes)


def make_figures(names: Sequence[str], options: Options, overrides: Sequence[str]) -> int:
    """Run and draw the experiments one after the other; one that cannot run does not stop the next one. Returns the
    highest exit code."""
    codes = [DONE]
    for name in names:
        try:
            folders, code = run_experiment(name, overrides)
            codes.append(code)
            if is_stop_code(code):
                break
            drawing = FigureOptions(
                name, options.figures, options.max_blocks, options.max_columns, options.image_size, options.pdf
            )
            for file in write_figure(folders, drawing):
                print(f"figure: {file}", flush=True)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            codes.append(BAD_INPUT)
    return max(codes)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    with chdir(ROOT):
        try:
            options, overrides = split_options(Options, arguments)
            names = select_experiments(options.only)
        except UserError as error:
            print(error, file=sys.stderr)
            return BAD_INPUT
        return make_figures(names, options, overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
