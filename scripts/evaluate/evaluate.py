"""Measure the rows of the results table and say which of them are short of their bar.

    python scripts/evaluate/evaluate.py                                  # every row at full size, hours on 2 cores
    python scripts/evaluate/evaluate.py metrics=planted.vae,planted.prompt n=32
    python scripts/evaluate/evaluate.py metrics=cifar10 seed=1 write=true

Keys and defaults are those of `Options`. Prints `row  value  [95 % interval]  bar  ok|short  seconds`, a line each.
Exit code 0: every row with a bar is ok; 1: one is short or had to be skipped; 2: bad input; 143: told to stop.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le

from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.configuration.value_ranges import OneOf, Seed
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench.machine import cpu_name
from classifier_lens.scripts.choices import select_names
from classifier_lens.scripts.evaluate import (
    cifar10,
    class_explanations,
    consistency_model,
    disagreement_and_errors,
    feature_audit,
    planted_world,
    sanity_checks,
    shortcut_strength,
    text_segmenter,
    units_and_components,
)
from classifier_lens.scripts.evaluate.bfloat16_emulation import Bfloat16Emulation
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import DTYPE_OVERRIDES, Metric, Setting

METRICS: tuple[Metric, ...] = (
    *planted_world.ROWS, *consistency_model.ROWS, *disagreement_and_errors.ROWS,
    *units_and_components.ROWS, *sanity_checks.ROWS, *class_explanations.ROWS,
    *text_segmenter.ROWS, *feature_audit.ROWS, *shortcut_strength.ROWS, *cifar10.ROWS,
)  # fmt: skip
RESULTS = ROOT / "docs" / "results"
PASSED, FAILED, NO_THRESHOLD, UNDEFINED = "ok", "short", "-", "undefined"


@dataclass
class Options:
    """What the command line may say.

    metrics: names or beginnings of names, by commas, or `all`; n: sample size of every row, None for each one's own;
    seed: of the held-out draw; write: whether docs/results is brought up to date, at full size only;
    device: auto | cpu | cuda; outputs: where the runs lie; dtype: float32, or bfloat16 for the generator's networks and
    classifiers while they are descended on; without a GPU that is computed as one would
    (scripts/evaluate/bfloat16_emulation.py).
    """

    metrics: str = "all"
    n: Annotated[int, Ge(2), Le(1_000_000)] | None = None
    seed: Seed = 0
    write: bool = False
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    outputs: str = "outputs/evaluate"
    dtype: Annotated[str, OneOf(tuple(DTYPE_OVERRIDES))] = "float32"


@dataclass(frozen=True)
class MetricResult:
    """A measured row, in plain values; `command` to `date` say how it came about."""

    metric: str
    value: float
    low: float
    high: float
    unit: str
    threshold: str
    verdict: str
    n: int
    seconds: float
    note: str
    command: str
    seed: int
    machine: str
    weights: str
    date: str


# --- judging -------------------------------------------------------------------------------------------------


def check_threshold(row: Metric, estimate: Estimate, n: int) -> str:
    """At full size by the value, and by the interval where it has to lie above something; at a smaller one by the
    favourable end of the interval: short then means that the bar is out of reach."""
    if row.threshold is None:
        return NO_THRESHOLD
    high = row.higher_is_better
    judged = estimate.value if n >= row.sample_size else estimate.high if high else estimate.low
    reached = judged >= row.threshold if high else judged <= row.threshold
    if row.interval_threshold is not None:
        reached = reached and (estimate.low if n >= row.sample_size else estimate.high) > row.interval_threshold
    return PASSED if reached else FAILED


def format_value(value: float | None, unit: str) -> str:
    """A value with its unit; shares as percentages."""
    text = format_number(value, unit)
    return text if text == UNDEFINED else f"{text} {unit}".rstrip()


def format_number(value: float | None, unit: str) -> str:
    """A value without its unit."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.2f}"


def format_threshold(row: Metric) -> str:
    """What a row has to reach, in words."""
    if row.threshold is None:
        return NO_THRESHOLD
    text = f"{'≥' if row.higher_is_better else '≤'} {format_value(row.threshold, row.unit)}"
    return (
        text if row.interval_threshold is None else f"{text}, all > {format_number(row.interval_threshold, row.unit)}"
    )


def measure_metric(row: Metric, chosen: Options, context: Mapping[str, Any]) -> MetricResult:
    """Measure and judge a row. Raises UserError if what it needs is not there."""
    n = row.sample_size if chosen.n is None else min(chosen.n, row.sample_size)
    clock = time.monotonic()
    estimate = row.function(Setting(chosen.seed, chosen.device, chosen.outputs, chosen.dtype), n)
    seconds = round(time.monotonic() - clock, 1)
    return MetricResult(
        metric=row.name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        unit=row.unit,
        threshold=format_threshold(row),
        verdict=check_threshold(row, estimate, n),
        n=n,
        seconds=seconds,
        note=estimate.note,
        weights=weights_digest(row.name.partition(".")[0]),
        **context,
    )


# --- telling -------------------------------------------------------------------------------------------------


def format_result(result: MetricResult) -> str:
    """A row of the console's table."""
    interval = f"[{format_number(result.low, result.unit)}, {format_number(result.high, result.unit)}]"
    seconds = f"{result.seconds:.1f} s"
    return format_columns(
        result.metric,
        format_value(result.value, result.unit),
        interval,
        result.threshold,
        result.verdict,
        seconds,
        result.note,
    )


def format_columns(row: str, value: str, interval: str, bar: str, verdict: str, seconds: str, note: str) -> str:
    """The console's columns."""
    return f"{row:<38}  {value:>9}  {interval:<16}  {bar:<10}  {verdict:<5}  {seconds:>9}  {note}".rstrip()


def format_summary(verdicts: Sequence[str], skipped: Sequence[str]) -> str:
    """The last line: how many rows came out how."""
    counts = [
        (verdicts.count(PASSED), PASSED),
        (verdicts.count(FAILED), FAILED),
        (verdicts.count(NO_THRESHOLD), "shown without a bar"),
    ]
    return ", ".join(f"{count} {what}" for count, what in [*counts, (len(skipped), "skipped")] if count)


def describe_machine(chosen: Options) -> str:
    """Processor, threads, torch's version and, where one is used, the GPU, or that its arithmetic is computed."""
    parts = [cpu_name(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if _on_gpu(chosen):
        parts.append(torch.cuda.get_device_name())
    elif chosen.dtype == "bfloat16":
        parts.append("a GPU's bfloat16 by scripts/evaluate/bfloat16_emulation.py")
    return ", ".join(parts)


def _on_gpu(chosen: Options) -> bool:
    return chosen.device == "cuda" or (chosen.device == "auto" and torch.cuda.is_available())


def weights_digest(domain: str) -> str:
    """Ten letters that change with the weights of the domain's shipped generator or of any shipped classifier."""
    sha = hashlib.sha256()
    for folder in (domain, "classifiers"):
        for path in sorted((ROOT / "models" / "pretrained" / folder).rglob("*.safetensors")):
            sha.update(str(path.relative_to(ROOT)).encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()[:10]


# --- the committed tables ------------------------------------------------------------------------------------


def update_tables(results: Sequence[MetricResult], folder: Path, suffix: str = "") -> None:
    """Bring `<domain><suffix>.json` and `.md` up to date: a row measured anew replaces its former self, and one that no
    longer exists goes."""
    order = [row.name for row in METRICS]
    for domain in dict.fromkeys(result.metric.partition(".")[0] for result in results):
        path = folder / f"{domain}{suffix}.json"
        former = json.loads(path.read_text()) if path.exists() else []
        known = {old["metric"]: old for old in former if old["metric"] in order}
        known |= {r.metric: json_safe(asdict(r)) for r in results if r.metric.startswith(f"{domain}.")}
        kept = [known[name] for name in sorted(known, key=lambda x: order.index(x) if x in order else len(order))]
        write_durable(path, json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_durable(path.with_suffix(".md"), format_page(path.stem, kept))


def json_safe(value: Any) -> Any:
    """Numbers that JSON has no word for become null: what a row could not estimate."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: json_safe(v) for k, v in value.items()}
    return [json_safe(v) for v in value] if isinstance(value, (list, tuple)) else value


def format_page(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The table of a domain, and how each of its rows came about."""
    keys = ("command", "seed", "machine", "weights", "date")
    runs = list(dict.fromkeys(tuple(result[key] for key in keys) for result in results))
    head = ["row", "value", "95 % interval", "bar", "", "n", "seconds", "seen besides", "run"]
    table = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for result in results:
        value = format_value(result["value"], result["unit"])
        low, high = (format_number(result[key], result["unit"]) for key in ("low", "high"))
        cells = [
            f"`{result['metric']}`", value, f"{low} … {high}", result["threshold"],
            result["verdict"], str(result["n"]), f"{result['seconds']:.0f}", result["note"],
            str(1 + runs.index(tuple(result[key] for key in keys))),
        ]  # fmt: skip
        table.append("| " + " | ".join(cells) + " |")
    how = [
        f"{i}. `{command}`: seed {seed}, {date}, {on}, shipped weights {digest}"
        for i, (command, seed, on, digest, date) in enumerate(runs, start=1)
    ]
    lines = [f"# Results: {title}", "", "Written by `scripts/evaluate/evaluate.py`; README.md says how to read it.", ""]
    return "\n".join([*lines, *table, "", "Runs:", "", *how, ""])


# --- all of it -----------------------------------------------------------------------------------------------


def evaluate(chosen: Options, rows: Sequence[Metric], command: str, folder: Path = RESULTS) -> int:
    """Measure, print and, if asked, record the rows; returns the exit code."""
    computing = Bfloat16Emulation() if chosen.dtype == "bfloat16" and not _on_gpu(chosen) else nullcontext()
    context = {
        "command": command, "seed": chosen.seed, "machine": describe_machine(chosen),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    print(format_columns("row", "value", "[95 % interval]", "bar", "", "seconds", ""))
    verdicts, skipped = [], []
    for row in rows:
        try:
            with computing:
                result = measure_metric(row, chosen, context)
        except UserError as error:
            print(f"{row.name:<38}  skipped: {error}", flush=True)
            skipped.append(row)
            continue
        print(format_result(result), flush=True)
        verdicts.append(result.verdict)
        if chosen.write:
            update_tables([result], folder, "" if chosen.dtype == "float32" else f"_{chosen.dtype}")
    print(format_summary(verdicts, [row.name for row in skipped]), flush=True)
    return int(FAILED in verdicts or any(row.threshold is not None for row in skipped))


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    try:
        chosen = parse_options(Options, arguments)
        names = select_names("metrics", chosen.metrics, [row.name for row in METRICS])
        rows = [row for row in METRICS if row.name in names]
        if small := [row for row in rows if chosen.write and chosen.n is not None and chosen.n < row.sample_size]:
            raise UserError(
                f"write=true n={chosen.n}: {small[0].name} is written at its full size {small[0].sample_size} only"
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with chdir(ROOT):
        return evaluate(chosen, rows, shlex.join(["python", "scripts/evaluate/evaluate.py", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
