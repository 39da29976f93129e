"""Measure the metrics of the results tables and compare them with their thresholds.

    python scripts/evaluate/evaluate.py                                  # every metric at full size, hours on 2 cores
    python scripts/evaluate/evaluate.py metrics=planted.vae,planted.prompt n=32
    python scripts/evaluate/evaluate.py metrics=cifar10 seed=1 write=true

`Options` has the keys and defaults. Prints `metric  value  [95 % interval]  threshold  pass|fail  seconds`, a line
each. Exit code 0: every metric with a threshold passes; 1: one fails or is skipped; 2: invalid input; 143: stopped by a
signal."""

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
from classifier_lens.scripts.evaluate.heldout import metrics as heldout
from classifier_lens.scripts.evaluate.metric import DTYPE_OVERRIDES, Metric, Setting

METRICS: tuple[Metric, ...] = (
    *planted_world.METRICS, *consistency_model.METRICS, *disagreement_and_errors.METRICS,
    *units_and_components.METRICS, *sanity_checks.METRICS, *class_explanations.METRICS,
    *text_segmenter.METRICS, *feature_audit.METRICS, *shortcut_strength.METRICS, *heldout.METRICS, *cifar10.METRICS,
)  # fmt: skip
RESULTS = ROOT / "docs" / "results"
GENERATORS = {"heldout": "planted"}  # domain of metrics -> that of their generator, where they differ
PASSED, FAILED, NO_THRESHOLD, UNDEFINED = "pass", "fail", "-", "undefined"


@dataclass
class Options:
    """Options of the command line.

    metrics: names or prefixes of names, separated by commas, or `all`; n: sample size of every metric, None for its
    full size; seed: of the held-out images; write: whether to update docs/results, at full size only; device: auto |
    cpu | cuda; outputs: folder of the runs; dtype: float32, or bfloat16 for the generator's networks, and for
    classifiers during optimization; without a GPU bfloat16 is emulated (scripts/evaluate/bfloat16_emulation.py)."""

    metrics: str = "all"
    n: Annotated[int, Ge(2), Le(1_000_000)] | None = None
    seed: Seed = 0
    write: bool = False
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"
    outputs: str = "outputs/evaluate"
    dtype: Annotated[str, OneOf(tuple(DTYPE_OVERRIDES))] = "float32"


@dataclass(frozen=True)
class MetricResult:
    """A measured metric, in plain values; `command` to `date` are its provenance."""

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


# --- verdicts ------------------------------------------------------------------------------------------------


def check_threshold(metric: Metric, estimate: Estimate, n: int) -> str:
    """The verdict on an estimate. At full size the value has to reach the threshold, and the lower end of the interval
    the interval threshold; at a smaller size the favorable end of the interval, so that a failure says that the
    threshold is out of reach."""
    if metric.threshold is None:
        return NO_THRESHOLD
    higher_is_better = metric.higher_is_better
    value = estimate.value if n >= metric.sample_size else estimate.high if higher_is_better else estimate.low
    passed = value >= metric.threshold if higher_is_better else value <= metric.threshold
    if metric.interval_threshold is not None:
        passed = passed and (estimate.low if n >= metric.sample_size else estimate.high) > metric.interval_threshold
    return PASSED if passed else FAILED


def format_value(value: float | None, unit: str) -> str:
    """A value with its unit; shares as percentages."""
    text = format_number(value, unit)
    return text if text == UNDEFINED else f"{text} {unit}".rstrip()


def format_number(value: float | None, unit: str) -> str:
    """A value without its unit."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.2f}"


def format_threshold(metric: Metric) -> str:
    """The threshold of a metric as text."""
    if metric.threshold is None:
        return NO_THRESHOLD
    text = f"{'≥' if metric.higher_is_better else '≤'} {format_value(metric.threshold, metric.unit)}"
    return (
        text
        if metric.interval_threshold is None
        else f"{text}, all > {format_number(metric.interval_threshold, metric.unit)}"
    )


def measure_metric(metric: Metric, options: Options, context: Mapping[str, Any]) -> MetricResult:
    """Measure a metric and compare it with its threshold. Raises UserError if data or weights are missing."""
    n = metric.sample_size if options.n is None else min(options.n, metric.sample_size)
    clock = time.monotonic()
    estimate = metric.function(Setting(options.seed, options.device, options.outputs, options.dtype), n)
    seconds = round(time.monotonic() - clock, 1)
    return MetricResult(
        metric=metric.name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        unit=metric.unit,
        threshold=format_threshold(metric),
        verdict=check_threshold(metric, estimate, n),
        n=n,
        seconds=seconds,
        note=estimate.note,
        weights=weights_digest(metric.name.partition(".")[0]),
        **context,
    )


# --- console -------------------------------------------------------------------------------------------------


def format_result(result: MetricResult) -> str:
    """A line of the console's table."""
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


def format_columns(
    metric: str, value: str, interval: str, threshold: str, verdict: str, seconds: str, note: str
) -> str:
    """The console's columns."""
    return f"{metric:<38}  {value:>9}  {interval:<16}  {threshold:<10}  {verdict:<5}  {seconds:>9}  {note}".rstrip()


def format_summary(verdicts: Sequence[str], skipped: Sequence[str]) -> str:
    """The last line: the number of metrics per verdict."""
    counts = [
        (verdicts.count(PASSED), PASSED),
        (verdicts.count(FAILED), FAILED),
        (verdicts.count(NO_THRESHOLD), "without a threshold"),
    ]
    return ", ".join(f"{count} {what}" for count, what in [*counts, (len(skipped), "skipped")] if count)


def describe_machine(options: Options) -> str:
    """Processor, threads, version of torch and, if it is used, the GPU or the emulation of its arithmetic."""
    parts = [cpu_name(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
    if _on_gpu(options):
        parts.append(torch.cuda.get_device_name())
    elif options.dtype == "bfloat16":
        parts.append("bfloat16 emulated by scripts/evaluate/bfloat16_emulation.py")
    return ", ".join(parts)


def _on_gpu(options: Options) -> bool:
    return options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())


def weights_digest(domain: str) -> str:
    """Ten hexadecimal digits of a hash over the weights of the domain's shipped generator and all shipped
    classifiers."""
    sha = hashlib.sha256()
    for folder in (GENERATORS.get(domain, domain), "classifiers"):
        for path in sorted((ROOT / "models" / "pretrained" / folder).rglob("*.safetensors")):
            sha.update(str(path.relative_to(ROOT)).encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()[:10]


# --- results tables ------------------------------------------------------------------------------------------


def update_tables(results: Sequence[MetricResult], folder: Path, suffix: str = "") -> None:
    """Update `<domain><suffix>.json` and `.md`: new results replace previous ones, and those of metrics that no longer
    exist are removed."""
    order = [metric.name for metric in METRICS]
    for domain in dict.fromkeys(result.metric.partition(".")[0] for result in results):
        path = folder / f"{domain}{suffix}.json"
        previous = json.loads(path.read_text()) if path.exists() else []
        results_by_name = {result["metric"]: result for result in previous if result["metric"] in order}
        results_by_name |= {r.metric: json_safe(asdict(r)) for r in results if r.metric.startswith(f"{domain}.")}
        updated = [
            results_by_name[name]
            for name in sorted(results_by_name, key=lambda x: order.index(x) if x in order else len(order))
        ]
        write_durable(path, json.dumps(updated, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_durable(path.with_suffix(".md"), format_page(path.stem, updated))


def json_safe(value: Any) -> Any:
    """A value with numbers that JSON does not have, such as undefined estimates, replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: json_safe(v) for k, v in value.items()}
    return [json_safe(v) for v in value] if isinstance(value, (list, tuple)) else value


def format_page(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The table of a domain, and the provenance of each metric."""
    keys = ("command", "seed", "machine", "weights", "date")
    runs = list(dict.fromkeys(tuple(result[key] for key in keys) for result in results))
    head = ["metric", "value", "95 % interval", "threshold", "verdict", "n", "seconds", "note", "run"]
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
    run_lines = [
        f"{i}. `{command}`: seed {seed}, {date}, {machine}, shipped weights {digest}"
        for i, (command, seed, machine, digest, date) in enumerate(runs, start=1)
    ]
    lines = [
        f"# Results: {title}",
        "",
        "Written by `scripts/evaluate/evaluate.py`; [Results](README.md) explains it.",
        "",
    ]
    return "\n".join([*lines, *table, "", "Runs:", "", *run_lines, ""])


# --- command line --------------------------------------------------------------------------------------------


def evaluate(options: Options, metrics: Sequence[Metric], command: str, folder: Path = RESULTS) -> int:
    """Measure and print the metrics, and write them if `options.write`; returns the exit code."""
    emulation = Bfloat16Emulation() if options.dtype == "bfloat16" and not _on_gpu(options) else nullcontext()
    context = {
        "command": command, "seed": options.seed, "machine": describe_machine(options),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    print(format_columns("metric", "value", "[95 % interval]", "threshold", "", "seconds", ""))
    verdicts, skipped = [], []
    for metric in metrics:
        try:
            with emulation:
                result = measure_metric(metric, options, context)
        except UserError as error:
            print(f"{metric.name:<38}  skipped: {error}", flush=True)
            skipped.append(metric)
            continue
        print(format_result(result), flush=True)
        verdicts.append(result.verdict)
        if options.write:
            update_tables([result], folder, "" if options.dtype == "float32" else f"_{options.dtype}")
    print(format_summary(verdicts, [metric.name for metric in skipped]), flush=True)
    return int(FAILED in verdicts or any(metric.threshold is not None for metric in skipped))


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    try:
        options = parse_options(Options, arguments)
        names = select_names("metrics", options.metrics, [metric.name for metric in METRICS])
        metrics = [metric for metric in METRICS if metric.name in names]
        if small := [
            metric for metric in metrics if options.write and options.n is not None and options.n < metric.sample_size
        ]:
            raise UserError(
                f"write=true n={options.n}: {small[0].name} is written at its full size of {small[0].sample_size} only"
            )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with chdir(ROOT):
        return evaluate(options, metrics, shlex.join(["python", "scripts/evaluate/evaluate.py", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
