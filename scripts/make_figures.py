"""Run the planted experiments of conf/experiment/planted and compose a figure of each.

    python scripts/make_figures.py
    python scripts/make_figures.py only=uvce,error
    python scripts/make_figures.py only=uvce figures=/tmp/figures limit=2 optimizer.steps=5

Each is `python run.py experiment=planted/<name>` with what else is given, so that what is done already is not done
again. Figures are `<figures>/<name>.png` and `.pdf`. Exit code: the highest of the runs'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runner.compose import CONF, build, configure  # noqa: E402
from runner.figures import Chosen, compose  # noqa: E402
from runner.record import RunFolder, run_key  # noqa: E402
from runner.run import BAD_INPUT, DONE, STOPPED, run  # noqa: E402
from runner.types import UserError  # noqa: E402

GROUP = "planted"
EXPERIMENTS = CONF / "experiment" / GROUP


def select(only: str | None, folder: Path = EXPERIMENTS) -> list[str]:
    """The experiments of a folder, or those of them that are named, by commas. Raises UserError for another name."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    wanted = names if only is None else [name.strip() for name in only.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(f"only={name}: no such experiment; allowed are {', '.join(names)}")
    return wanted


def solve(name: str, overrides: Sequence[str]) -> tuple[Path, int]:
    """Run an experiment, or what of it is not done yet; returns its run folder and its exit code."""
    config = configure([f"experiment={GROUP}/{name}", *overrides])
    parts = build(config)
    code = run(parts, config)
    key = run_key(config, parts.digests)
    return RunFolder(Path(config["outputs"]) / config["name"] / key).path, code


def make_figures(names: Sequence[str], figures: str, overrides: Sequence[str]) -> int:
    """Run and compose one after the other; an experiment that cannot run does not keep the next from it."""
    codes = [DONE]
    for name in names:
        try:
            folder, code = solve(name, overrides)
            codes.append(code)
            if code == STOPPED:
                break
            for file in compose([folder], Chosen(name=name, out=figures)):
                print(f"figure: {file}", flush=True)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            codes.append(BAD_INPUT)
    return max(codes)


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own = {"only": None, "figures": Chosen().out}
    overrides = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key in own:
            own[key] = value
        else:
            overrides.append(argument)
    with chdir(ROOT):
        try:
            names = select(own["only"])
        except UserError as error:
            print(error, file=sys.stderr)
            return BAD_INPUT
        return make_figures(names, str(own["figures"]), overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
