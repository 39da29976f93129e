"""Success, and what the oracles see, over the seconds of an explanation: by sampler and with each approximation.

    python scripts/bench/quality.py                          # hours on 2 cores; what is answered is not computed again
    python scripts/bench/quality.py only=uvce n=8
    python scripts/bench/quality.py write=true               # brings docs/results/quality.md and its picture up to date

Keys and defaults are those of `Options`. Every setting answers the same questions and computes its own inversions; the
seconds are the runner's, per problem of a batch. Exit code 0; 2: bad input; 143: told to stop.
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
PROMPT_CLASSES = ("rock crab", "fiddler crab", "partridge", "prairie chicken")  # two of them tied


@dataclass
class Options:
    """What the command line may say.

    only: beginnings of tasks, by commas, or `all`; variants: the same of settings; n: problems per task, None for each
    one's own; write: whether docs/results and the picture are brought up to date; outputs: where the runs lie.
    """

    only: str = "all"
    variants: str = "all"
    n: Annotated[int, Ge(2), Le(1_000_000)] | None = None
    write: bool = False
    outputs: str = "outputs/quality"


@dataclass(frozen=True)
class Point:
    """A setting's answers to a task's questions: seconds of one; shares with their 95 % intervals, (value, low, high),
    of those that reached what was asked, and of those in which both oracles see what it takes."""

    seconds: float
    success: tuple[float, float, float]
    oracle_score: tuple[float, float, float]
    n: int


@dataclass(frozen=True)
class QualityTask:
    """A task's questions. compute_results: their answers; success, oracle_check: what is counted, and in words."""

    compute_results: Callable[[Setting, tuple[str, ...], int], Sequence[Result]]
    sample_size: int
    success: Callable[[Result], bool]
    oracle_check: Callable[[Setting, Sequence[Result]], list[bool]]
    column_titles: tuple[str, str]


# --- the tasks -----------------------------------------------------------------------------------------------


def _flips(setting: Setting, how: tuple[str, ...], n: int) -> list[Result]:
    """Half of them within pairs, half towards any other class, as in the rows of `planted.uvce`."""
    return [
        a for asked, count in planted_world.problem_sets(setting, n)
        for a in compute_results(setting, CLASSIFIER, (*how, *asked), count)
    ]  # fmt: skip


def _disputes(setting: Setting, how: tuple[str, ...], n: int) -> Sequence[Result]:
    return compute_results(
        setting,
        "planted_shortcut",
        (*disagreement_and_errors.disagreement_overrides(setting, n, SHORTCUT_CLASSES), *how),
        n,
    )


def _portraits(setting: Setting, how: tuple[str, ...], n: int) -> Sequence[Result]:
    """Of these classes one prompt each, from the best of 64 random ones."""
    asked = (
        "task=diffexplainer_class",
        f"task.classes=[{','.join(PROMPT_CLASSES[:n])}]",
        "task.num_seeds=1",
        "parametrization.num_initializations=64",
        f"seed={setting.seed}",
    )
    return compute_results(setting, "planted_shortcut", (*asked, *how), n)


def _targets_seen(setting: Setting, given: Sequence[Result]) -> list[bool]:
    """Whether both oracles name the target."""
    rows, images = result_images(given)
    return oracles_confirm(setting, "class", images, [planted.CLASSES[given[i].problem.target] for i in rows])


def _cues_seen(setting: Setting, given: Sequence[Result]) -> list[bool]:
    """Whether both oracles see what the network goes by: a tied class's cue, any other class itself; in every picture
    of an answer."""
    seen: list[bool] = []
    for answer in given:
        if answer.samples is not None:
            name = planted.CLASSES[answer.problem.target]
            factor, value = planted.SHORTCUTS.get(name, ("class", name))
            seen += oracles_confirm(setting, factor, answer.samples, [value] * len(answer.samples))
    return seen


def _high(answer: Result) -> bool:
    return answer.record is not None and answer.record["activation_score"] >= class_explanations.SCORE_THRESHOLD


TASKS: Mapping[str, QualityTask] = {
    "uvce": QualityTask(
        _flips, 16, lambda a: a.is_target_predicted, _targets_seen, ("called the target", "both oracles see the target")
    ),
    "disagreement": QualityTask(
        _disputes, 8, lambda a: a.success, _cues_seen, ("gap of 0.8 or more", "both oracles see the cue")
    ),
    "prompts": QualityTask(
        _portraits, 4, _high, _cues_seen, ("score of 90 % or more", "both oracles see the cue, or the class")
    ),
}  # fmt: skip


def measure_variant(setting: Setting, asked: QualityTask, how: tuple[str, ...], n: int) -> Point:
    """Answer the questions, or read the answers. Raises UserError if none could be given."""
    given = [a for a in asked.compute_results(setting, how, n) if a.record is not None]
    if not given:
        raise UserError(f"{setting.outputs}: none of {n} problems has an answer")
    seconds = median(float(a.record["seconds"]) for a in given if a.record is not None)
    counted = [asked.success(a) for a in given] + [False] * (n - len(given))
    seen = asked.oracle_check(setting, given)
    shares = [(s.value, s.low, s.high) for s in (estimates.proportion(counted), estimates.proportion(seen))]
    return Point(seconds, shares[0], shares[1], n)


# --- telling -------------------------------------------------------------------------------------------------


def format_percent(share: Sequence[float]) -> str:
    """A share with its interval."""
    value, low, high = (100 * x for x in share)
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def format_table(known: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a page."""
    head = "Written by `scripts/bench/quality.py`; [performance.md](../performance.md) says how to read it."
    rows = ["# Quality per second", "", head, "", "![Quality over seconds](../images/quality.png)", ""]
    for task, points in known.items():
        success, oracles = TASKS[task].column_titles
        rows += [f"## {task}", "", f"| setting | seconds | {success} | {oracles} | n |", "|---|---|---|---|---|"]
        for name, p in points.items():
            rows.append(
                f"| {name} | {p['seconds']:.3g} | {format_percent(p['success'])} | "
                f"{format_percent(p['oracle_score'])} | {p['n']} |"
            )
        rows.append("")
        for how in dict.fromkeys((p["command"], p["machine"], p["date"]) for p in points.values()):
            rows += [f"`{how[0]}`, {how[1]}, {how[2]}", ""]
    return "\n".join(rows)


def plot(known: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel per task: shares over seconds. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is missing: pip install -e '.[figures]'") from error
    figure = Figure(figsize=(1.2 + 4 * len(known), 4.6), layout="constrained")
    panels = figure.subplots(1, len(known), squeeze=False, sharey=True)[0]
    for axes, (task, points) in zip(panels, known.items(), strict=True):
        _panel(axes, task, points)
    panels[0].set_ylabel("% of the answers")
    shapes = {name: axes.plot([], [], MARKERS[name], color="grey", mfc="none")[0] for name in MARKERS}
    used = [name for name in shapes if any(name in points for points in known.values())]
    figure.legend([shapes[name] for name in used], used, loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, task: str, points: Mapping[str, Any]) -> None:
    """The samplers of a kind are joined by a line and named above; approximations have shapes of their own."""
    from matplotlib.ticker import NullLocator

    for i, (key, label) in enumerate(zip(("success", "oracle_score"), TASKS[task].column_titles, strict=True)):
        colour, aside = (("tab:blue", 0.99), ("tab:orange", 1.01))[i]  # beside each other where both are equal
        axes.plot([], [], "o", color=colour, label=label)
        for kind in ("DDIM", "LCM"):
            joined = [p for name, p in points.items() if name.startswith(kind) and name not in MARKERS]
            at = [aside * p["seconds"] for p in joined]
            axes.plot(at, [100 * p[key][0] for p in joined], "o-", color=colour, linewidth=1)
            low, high = ([100 * p[key][end] for p in joined] for end in (1, 2))
            axes.vlines(at, low, high, color=colour, linewidth=0.6)
        for name, p in points.items():
            if name in MARKERS:
                axes.plot([aside * p["seconds"]], [100 * p[key][0]], MARKERS[name], color=colour, mfc="none")
    for name, p in points.items():
        if name not in MARKERS:
            axes.annotate(name, (p["seconds"], 104), fontsize=7, ha="center", va="bottom", rotation=30)
    seconds = [p["seconds"] for p in points.values()]
    shown = [x for x in TICKS if min(seconds) / 2 < x < 2 * max(seconds)]
    axes.set(xscale="log", ylim=(0, 118), xlabel="seconds of one answer", title=task)
    axes.set_xticks(shown, [f"{x:g}" for x in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize=7, loc="lower center")


def save(known: Mapping[str, Mapping[str, Any]]) -> None:
    """The table, its numbers and its picture."""
    write_durable(RESULTS / "quality.json", json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    write_durable(RESULTS / "quality.md", format_table(known))
    plot(known, FIGURE_FILE)


# --- the command line ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    try:
        chosen = parse_options(Options, arguments)
        tasks = select_names("only", chosen.only, list(TASKS))
        settings = select_names("variants", chosen.variants, list(VARIANTS))
        path = RESULTS / "quality.json"
        known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        how = {
            "command": shlex.join(["python", "scripts/bench/quality.py", *arguments]), "machine": machine_name(),
            "date": datetime.now(UTC).date().isoformat(),
        }  # fmt: skip
        for task in tasks:
            asked = TASKS[task]
            n = asked.sample_size if chosen.n is None else min(chosen.n, asked.sample_size)
            for name in settings:
                own = Setting(0, "auto", f"{chosen.outputs}/{name.replace(' ', '_')}")
                point = measure_variant(own, asked, VARIANTS[name], n)
                print(
                    f"{task:<13} {name:<24} {point.seconds:>7.2f} s  {format_percent(point.success):<18} "
                    f"{format_percent(point.oracle_score):<18}", flush=True,
                )  # fmt: skip
                known.setdefault(task, {})[name] = {**asdict(point), **how}
                if chosen.write:
                    ordered = {t: {s: known[t][s] for s in VARIANTS if s in known[t]} for t in TASKS if t in known}
                    save(ordered)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
