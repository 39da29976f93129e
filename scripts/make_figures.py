"""Run the miniatures of conf/experiment/planted and compose a figure of each.

    python scripts/make_figures.py
    python scripts/make_figures.py only=fig06,fig19
    python scripts/make_figures.py only=fig06 figures=/tmp/figures limit=2 optimizer.steps=5

Each is `python run.py experiment=planted/<name>` with what else is given, so that what is done already is not done
again; the runs of an experiment's own sweep make one figure together. Without `only` these are the figures and tables
of the papers; it may name any other file of the folder too. Figures are `<figures>/<name>.png` and `.pdf`. Exit code:
the highest of the runs'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from classifier_lens.runner.cluster.signals import is_stop_code
from classifier_lens.runner.configuration.compose import CONFIG_FOLDER, build, compose_config, expand_sweep
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.report.figures.figure import FigureOptions, write_figure
from classifier_lens.runner.results.run_folder import RunFolder, run_key
from classifier_lens.runner.run import BAD_INPUT, DONE, run
from classifier_lens.runner.types import UserError

GROUP = "planted"
EXPERIMENTS = CONFIG_FOLDER / "experiment" / GROUP
FIGURE_PREFIXES = ("fig", "tab", "workshop", "diffexplainer_")  # how the names of the papers' figures and tables begin


def select_experiments(only: str | None, folder: Path = EXPERIMENTS) -> list[str]:
    """The figures and tables of a folder, or the experiments of it that are named, by commas. Raises UserError for
    another name."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    miniatures = [name for name in names if name.startswith(FIGURE_PREFIXES)]
    wanted = miniatures if only is None else [name.strip() for name in only.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(f"only={name}: no such experiment; allowed are {', '.join(names)}")
    return wanted


def run_experiment(name: str, overrides: Sequence[str]) -> tuple[list[Path], int]:
    """Run an experiment, or what of it is not done yet; returns its run folders and the highest of the exit codes.

    A run that is stopped is the last one.
    """
    folders, codes = [], [DONE]
    for job in expand_sweep([f"experiment={GROUP}/{name}", *overrides]):
        config = compose_config(job)
        parts = build(config)
        codes.append(run(parts, config))
        folders.append(RunFolder(Path(config["outputs"]) / config["name"] / run_key(config, parts.digests)).path)
        if is_stop_code(codes[-1]):
            break
    return folders, max(codes)


def make_figures(names: Sequence[str], figures: str, overrides: Sequence[str]) -> int:
    """Run and compose one after the other; an experiment that cannot run does not keep the next from it."""
    codes = [DONE]
    for name in names:
        try:
            folders, code = run_experiment(name, overrides)
            codes.append(code)
            if is_stop_code(code):
                break
            for file in write_figure(folders, FigureOptions(name=name, out=figures)):
                print(f"figure: {file}", flush=True)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            codes.append(BAD_INPUT)
    return max(codes)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own = {"only": None, "figures": FigureOptions().out}
    overrides = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key in own:
            own[key] = value
        else:
            overrides.append(argument)
    with chdir(ROOT):
        try:
            names = select_experiments(own["only"])
        except UserError as error:
            print(error, file=sys.stderr)
            return BAD_INPUT
        return make_figures(names, str(own["figures"]), overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
