"""Success rates and oracle agreement over the seconds of an explanation, by sampler and approximation.

    python scripts/bench/quality.py                          # hours on 2 cores; finished results are not repeated
    python scripts/bench/quality.py only=uvce n=8
    python scripts/bench/quality.py write=true               # updates docs/results/quality.md and its figure

`Options` has the keys and defaults. All settings solve the same problems, each with its own inversions; the seconds are
the runner's, per problem of a batch. Exit code 0; 2: invalid input; 143: stopped by a signal.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from classifier_lens.data import planted
from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench.machine import machine_name
from classifier_lens.scripts.choices import select_names
from classifier_lens.scripts.evaluate import class_explanations, disagreement_and_errors, estimates, planted_world
from classifier_lens.scripts.evaluate.metric import Result, Setting, compute_results
from classifier_lens.scripts.evaluate.oracles import CLASSIFIER, SHORTCUT_CLASSES, oracles_confirm, result_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, FIGURE_FILE = ROOT / "docs" / "results", ROOT / "docs" / "images" / "quality.png"
# Samplers, and approximations of them.
DDIM, LCM = ("sampler=ddim", "generator.steps=20"), ("sampler=lcm", "generator.steps=4")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "DDIM-20": DDIM,
    "DDIM-10": ("sampler=ddim", "generator.steps=10"),
    "DDIM-20 guided to 0.6": (*DDIM, "generator.guidance_interval=[0.0,0.6]"),
    "DDIM-20 backward 10": (*DDIM, "generator.backprop_steps=10"),
    "DDIM-20 backward 5": (*DDIM, "generator.backprop_steps=5"),
    "LCM-4": LCM,
    "LCM-2": ("sampler=lcm", "generator.steps=2"),
    "LCM-4 backward 2": (*LCM, "generator.backprop_steps=2"),
}
MARKERS = {
    "DDIM-20 guided to 0.6": "s", "DDIM-20 backward 10": "^", "DDIM-20 backward 5": "v", "LCM-4 backward 2": "D",
}  # fmt: skip
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PROMPT_CLASSES = ("rock crab", "fiddler crab", "partridge", "prairie chicken")  # two of them have a shortcut


@dataclass
class Options:
    """Options of the command line.

    only: prefixes of tasks, separated by commas, or `all`; variants: likewise of settings; n: problems per task, None
    for the default of each; write: whether to update docs/results and the figure; outputs: folder of the runs."""

    only: str = "all"
    variants: str = "all"
    n: Annotated[int, Ge(2), Le(1_000_000)] | None = None
    write: bool = False
    outputs: str = "outputs/quality"


@dataclass(frozen=True)
class Point:
    """The results of a setting for a task: seconds per problem; shares with 95 % intervals, (value, low, high), of
    successes and of results that both oracles confirm; n: number of problems."""

    seconds: float
    success: tuple[float, float, float]
    oracle_score: tuple[float, float, float]
    n: int


@dataclass(frozen=True)
class QualityTask:
    """The problems of a task. compute_results: their results; success, oracle_check: criteria, with their column
    titles."""

    compute_results: Callable[[Setting, tuple[str, ...], int], Sequence[Result]]
    sample_size: int
    success: Callable[[Result], bool]
    oracle_check: Callable[[Setting, Sequence[Result]], list[bool]]
    column_titles: tuple[str, str]


# --- tasks ---------------------------------------------------------------------------------------------------


def _counterfactuals(setting: Setting, overrides: tuple[str, ...], n: int) -> list[Result]:
    """Counterfactuals, half within pairs and half towards any other class, as in the metrics `planted.uvce_*`."""
    return [
        result for half, count in planted_world.problem_sets(setting, n)
        for result in compute_results(setting, CLASSIFIER, (*overrides, *half), count)
    ]  # fmt: skip


def _disagreements(setting: Setting, overrides: tuple[str, ...], n: int) -> Sequence[Result]:
    return compute_results(
        setting,
        "planted_shortcut",
        (*disagreement_and_errors.disagreement_overrides(setting, n, SHORTCUT_CLASSES), *overrides),
        n,
    )


def _class_explanations(setting: Setting, overrides: tuple[str, ...], n: int) -> Sequence[Result]:
    """Class explanations of `PROMPT_CLASSES`, each from the best of 64 random initial prompts."""
    task_overrides = (
        "task=diffexplainer_class",
        f"task.classes=[{','.join(PROMPT_CLASSES[:n])}]",
        "task.num_seeds=1",
        "parametrization.num_initializations=64",
        f"seed={setting.seed}",
    )
    return compute_results(setting, "planted_shortcut", (*task_overrides, *overrides), n)


def _targets_confirmed(setting: Setting, results: Sequence[Result]) -> list[bool]:
    """Whether both oracles predict the target."""
    rows, images = result_images(results)
    return oracles_confirm(setting, "class", images, [planted.CLASSES[results[i].problem.target] for i in rows])


def _cues_confirmed(setting: Setting, results: Sequence[Result]) -> list[bool]:
    """Whether both oracles see the cue of a class with a shortcut, or any other class itself, per image of a result."""
    confirmed: list[bool] = []
    for result in results:
        if result.samples is not None:
            name = planted.CLASSES[result.problem.target]
            factor, value = planted.SHORTCUTS.get(name, ("class", name))
            confirmed += oracles_confirm(setting, factor, result.samples, [value] * len(result.samples))
    return confirmed


def _has_high_score(result: Result) -> bool:
    return result.record is not None and result.record["activation_score"] >= class_explanations.SCORE_THRESHOLD


TASKS: Mapping[str, QualityTask] = {
    "uvce": QualityTask(
        _counterfactuals, 16, lambda a: a.is_target_predicted, _targets_confirmed,
        ("predicted as the target", "both oracles see the target"),
    ),
    "disagreement": QualityTask(
        _disagreements, 8, lambda a: a.success, _cues_confirmed, ("gap of 0.8 or more", "both oracles see the cue")
    ),
    "prompts": QualityTask(
        _class_explanations, 4, _has_high_score, _cues_confirmed,
        ("score of 90 % or more", "both oracles see the cue, or the class"),
    ),
}  # fmt: skip


def measure_variant(setting: Setting, task: QualityTask, overrides: tuple[str, ...], n: int) -> Point:
    """Solve the problems of a task with a setting, or read the results. Raises UserError if there are none."""
    results = [result for result in task.compute_results(setting, overrides, n) if result.record is not None]
    if not results:
        raise UserError(f"{setting.outputs}: none of {n} problems has a result; its page shows the errors")
    seconds = median(float(result.record["seconds"]) for result in results if result.record is not None)
    successes = [task.success(result) for result in results] + [False] * (n - len(results))
    confirmed = task.oracle_check(setting, results)
    shares = [(s.value, s.low, s.high) for s in (estimates.proportion(successes), estimates.proportion(confirmed))]
    return Point(seconds, shares[0], shares[1], n)


# --- output --------------------------------------------------------------------------------------------------


def format_percent(share: Sequence[float]) -> str:
    """A share with its interval."""
    value, low, high = (100 * x for x in share)
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a page."""
    head = "Written by `scripts/bench/quality.py`; [Performance](../performance.md) explains it."
    rows = ["# Quality per second", "", head, "", "![Quality over seconds](../images/quality.png)", ""]
    for task, points in results.items():
        success, oracles = TASKS[task].column_titles
        rows += [f"## {task}", "", f"| setting | seconds | {success} | {oracles} | n |", "|---|---|---|---|---|"]
        for name, p in points.items():
            rows.append(
                f"| {name} | {p['seconds']:.3g} | {format_percent(p['success'])} | "
                f"{format_percent(p['oracle_score'])} | {p['n']} |"
            )
        rows.append("")
        for provenance in dict.fromkeys((p["command"], p["machine"], p["date"]) for p in points.values()):
            rows += [f"`{provenance[0]}`, {provenance[1]}, {provenance[2]}", ""]
    return "\n".join(rows)


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write a figure with a panel per task: shares over seconds. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is missing; install it by pip install -e '.[figures]'") from error
    figure = Figure(figsize=(1.2 + 4 * len(results), 4.6), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (task, points) in zip(panels, results.items(), strict=True):
        _panel(axes, task, points)
    panels[0].set_ylabel("% of the results")
    shapes = {name: axes.plot([], [], MARKERS[name], color="gray", mfc="none")[0] for name in MARKERS}
    used = [name for name in shapes if any(name in points for points in results.values())]
    figure.legend([shapes[name] for name in used], used, loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, task: str, points: Mapping[str, Any]) -> None:
    """Settings of one sampler are joined by a line and labeled above; approximations have their own markers."""
    from matplotlib.ticker import NullLocator

    for i, (key, label) in enumerate(zip(("success", "oracle_score"), TASKS[task].column_titles, strict=True)):
        color, offset = (("tab:blue", 0.99), ("tab:orange", 1.01))[i]  # side by side if both are equal
        axes.plot([], [], "o", color=color, label=label)
        for kind in ("DDIM", "LCM"):
            joined = [p for name, p in points.items() if name.startswith(kind) and name not in MARKERS]
            at = [offset * p["seconds"] for p in joined]
            axes.plot(at, [100 * p[key][0] for p in joined], "o-", color=color, linewidth=1)
            low, high = ([100 * p[key][end] for p in joined] for end in (1, 2))
            axes.vlines(at, low, high, color=color, linewidth=0.6)
        for name, p in points.items():
            if name in MARKERS:
                axes.plot([offset * p["seconds"]], [100 * p[key][0]], MARKERS[name], color=color, mfc="none")
    for name, p in points.items():
        if name not in MARKERS:
            axes.annotate(name, (p["seconds"], 104), fontsize=7, ha="center", va="bottom", rotation=30)
    seconds = [p["seconds"] for p in points.values()]
    ticks = [x for x in TICKS if min(seconds) / 2 < x < 2 * max(seconds)]
    axes.set(xscale="log", ylim=(0, 118), xlabel="seconds per problem", title=task)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize=7, loc="lower center")


def save(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the numbers, the page and the figure."""
    write_durable(RESULTS / "quality.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_durable(RESULTS / "quality.md", format_table(results))
    plot(results, FIGURE_FILE)


# --- command line --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    try:
        options = parse_options(Options, arguments)
        tasks = select_names("only", options.only, list(TASKS))
        settings = select_names("variants", options.variants, list(VARIANTS))
        path = RESULTS / "quality.json"
        results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        provenance = {
            "command": shlex.join(["python", "scripts/bench/quality.py", *arguments]), "machine": machine_name(),
            "date": datetime.now(UTC).date().isoformat(),
        }  # fmt: skip
        for task_name in tasks:
            quality_task = TASKS[task_name]
            n = quality_task.sample_size if options.n is None else min(options.n, quality_task.sample_size)
            for name in settings:
                setting = Setting(0, "auto", f"{options.outputs}/{name.replace(' ', '_')}")
                point = measure_variant(setting, quality_task, VARIANTS[name], n)
                print(
                    f"{task_name:<13} {name:<24} {point.seconds:>7.2f} s  {format_percent(point.success):<18} "
                    f"{format_percent(point.oracle_score):<18}", flush=True,
                )  # fmt: skip
                results.setdefault(task_name, {})[name] = {**asdict(point), **provenance}
                if options.write:
                    ordered = {
                        t: {s: results[t][s] for s in VARIANTS if s in results[t]} for t in TASKS if t in results
                    }
                    save(ordered)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
