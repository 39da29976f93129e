"""Time the runner and the plain loop of published code (scripts/bench/plain_loop.py).

    python scripts/bench/bench.py                     # every measure, an hour on 2 cores
    python scripts/bench/bench.py only=uvce,memory repeats=1
    python scripts/bench/bench.py write=true          # updates docs/results/speed.md

`Options` has the keys and defaults. Prints a line per measure; the unit `x` marks ratios of times. Both sides take
turns in one process, and medians are printed. Exit code 0: every threshold is reached; 1: one is not; 2: invalid input.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.configuration.value_ranges import PerProblemCount
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench import command_measures, plain_loop
from classifier_lens.scripts.bench.benchmarked_models import (
    APPROXIMATIONS,
    PLANTED,
    UVCE,
    BenchmarkedModel,
    stable_diffusion,
)
from classifier_lens.scripts.bench.explanation_timing import (
    time_explanation,
    time_plain_explanation,
    time_plain_prompt,
    time_prompt,
)
from classifier_lens.scripts.bench.machine import machine_name
from classifier_lens.scripts.bench.many_problems import large_runs
from classifier_lens.scripts.bench.result_line import ResultLine, speedup
from classifier_lens.scripts.bench.step_timing import (
    optimization_states,
    prepare_step,
    run_plain_step,
    run_step,
    time_networks,
    time_step,
    time_step_parts,
    unet_timer,
)
from classifier_lens.scripts.bench.timed_run import prepare_run
from classifier_lens.scripts.bench.timing import count_macs, matmul_throughput, peak_memory, time_interleaved
from classifier_lens.scripts.choices import select_names
from classifier_lens.scripts.weights.random_pipeline import ModelSize

RESULTS = ROOT / "docs" / "results"
DISAGREEMENT = ("task=disagreement", "classifier=planted_shortcut")
# With few training images, plain prompts and initializations, which take no part in a step.
PROMPTS = (
    "task=diffexplainer_class",
    "classifier=planted_shortcut",
    "sampler=ddim",
    "training.count=500",
    "task.images_per_prompt=2",
    "parametrization.num_initializations=2",
)
AUDIT = ("task=spurious_audit", "classifier=planted_shortcut", "parametrization.num_initializations=32")


@dataclass
class Options:
    """Options of the command line.

    only: prefixes of measures, separated by commas, or `all`; repeats: of every timing; write: whether to update
    docs/results/speed.md.
    """

    only: str = "all"
    repeats: PerProblemCount = 3
    write: bool = False


# --- measures ------------------------------------------------------------------------------------------------


def counterfactual_speed(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """Complete counterfactuals, by parts."""
    largest_batch = subject.batch_sizes[0]
    timed_calls = {
        f"uvce batch {n}": partial(time_explanation, prepare_run(subject.ddim_overrides, n))
        for n in subject.batch_sizes
    }
    timed_calls[f"uvce lcm-4 batch {largest_batch}"] = partial(
        time_explanation, prepare_run(subject.lcm_overrides, largest_batch)
    )
    timed_calls["plain"] = partial(time_plain_explanation, prepare_run(subject.ddim_overrides, 1))
    medians = time_interleaved(timed_calls, repeats)
    plain, medians_of_batch = medians.pop("plain"), medians[f"uvce batch {largest_batch}"]
    thresholds = subject.thresholds
    lines = [speedup(name, parts["all"], plain["all"], thresholds.get(name)) for name, parts in medians.items()]
    for part in ("inversion", "initialization", "search", "step", "rendering"):
        name = f"{part} batch {largest_batch}"
        lines.append(
            speedup(
                name if name in thresholds else f"  {name}", medians_of_batch[part], plain[part], thresholds.get(name)
            )
        )
    return lines


def loop_overhead(repeats: int) -> list[ResultLine]:
    """The time of a step over that of its network calls: the overhead of the loop."""
    batch_of_8, single = (prepare_step(prepare_run(UVCE, batch)) for batch in (8, 1))
    plain = plain_loop.plain_model(single.run.parts.diffusion)
    lines = []
    for name, inputs, networks, plain_model in (
        ("uvce step batch 8 over networks", batch_of_8, batch_of_8.run.parts.diffusion.networks, None),
        ("reference step over networks", single, plain.networks, plain),
    ):
        step = partial(time_step, inputs, plain_model)
        step()
        medians = time_interleaved({"step": step, "networks": partial(time_networks, inputs, networks)}, repeats)
        step_seconds, network_seconds = medians["step"]["all"], medians["networks"]["all"]
        detail = f"step {step_seconds:.2f} s  calls {network_seconds:.2f} s"
        lines.append(ResultLine(name, step_seconds / network_seconds, "x", detail, 1.15, higher_is_better=False))
    return lines


def disagreement_speed(repeats: int) -> list[ResultLine]:
    """Complete explanations of maximal disagreement."""
    batch_of_8, single = (prepare_run(DISAGREEMENT, batch) for batch in (8, 1))
    medians = time_interleaved(
        {
            "ours": partial(time_explanation, batch_of_8),
            "plain": partial(time_plain_explanation, single),
        },
        repeats,
    )
    return [speedup("disagreement batch 8", medians["ours"]["all"], medians["plain"]["all"], 3.0)]


def audit_speed(repeats: int) -> list[ResultLine]:
    """Features of an audit, eight at once, with 32 random initial prompts."""
    batch_of_8, single = (prepare_run(AUDIT, batch) for batch in (8, 1))
    medians = time_interleaved(
        {"ours": partial(time_prompt, batch_of_8), "plain": partial(time_plain_prompt, single)},
        repeats,
    )
    lines = [speedup("spurious_audit feature batch 8", medians["ours"]["all"], medians["plain"]["all"], 3.0)]
    return lines + [speedup(f"  {part} batch 8", medians["ours"][part], medians["plain"][part])
                    for part in ("search", "step", "rendering")]  # fmt: skip


def mac_counts(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """Multiply-adds of a step, and their speed as a share of that of a matrix product."""
    largest_batch = subject.batch_sizes[0]
    batched, single = (prepare_step(prepare_run(subject.ddim_overrides, batch)) for batch in (largest_batch, 1))
    generator = batched.run.parts.diffusion
    plain = plain_loop.plain_model(single.run.parts.diffusion)
    ours = count_macs(lambda: run_step(batched)) / largest_batch
    theirs = count_macs(lambda: run_plain_step(plain, single))
    product = partial(matmul_throughput, generator.device, generator.networks.unet.dtype)
    medians = time_interleaved(
        {"step": partial(time_step, batched), "product": lambda: {"speed": product()}}, repeats
    )  # fmt: skip
    peak_throughput = medians["product"]["speed"]
    utilization, detail = (
        ours / medians["step"]["all"] / peak_throughput,
        f"a matrix product reaches {peak_throughput / 1e9:.0f} G/s",
    )
    detail_of_macs = (
        f"gradient_checkpointing={generator.gradient_checkpointing}; reference {theirs / 1e9:.1f} G, with recomputation"
    )
    return [
        ResultLine("multiply-adds of a uvce step", ours / 1e9, "G", detail_of_macs),
        ResultLine("utilization of a uvce step", 100 * utilization, "%", detail, subject.min_utilization),
    ]


def step_profile(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """The time of a step by parts."""
    batched = prepare_step(prepare_run(subject.ddim_overrides, subject.batch_sizes[0]))
    time_step_parts(batched)
    medians = time_interleaved({"ours": partial(time_step_parts, batched)}, repeats)["ours"]
    total = sum(medians.values())
    return [
        ResultLine(f"  {name} of a step", 100 * value / total, "%", f"{value:.3f} s") for name, value in medians.items()
    ]


def variants(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """The speed of a step of counterfactuals with each setting, relative to the default."""
    return _under_settings(subject.ddim_overrides, subject.variants, subject.batch_sizes[0], repeats)


def prompt_variants(repeats: int) -> list[ResultLine]:
    """The speed of a DDIM step of two prompts with each approximation, relative to the exact one."""
    return _under_settings(PROMPTS, APPROXIMATIONS, 2, repeats)


def _under_settings(overrides: Sequence[str], settings: Sequence[str], batch: int, repeats: int) -> list[ResultLine]:
    prepared = {"default": prepare_step(prepare_run(overrides, batch))}
    prepared |= {setting: prepare_step(prepare_run((*overrides, setting), batch)) for setting in settings}
    first_seconds = {name: time_step(inputs) for name, inputs in prepared.items()}
    medians = time_interleaved({name: partial(time_step, inputs) for name, inputs in prepared.items()}, repeats)
    default_seconds = medians["default"]["all"]
    lines = [
        speedup(f"  {name}", default_seconds, parts["all"], names=("default", name)) for name, parts in medians.items()
    ]
    for name in (setting for setting in settings if setting == "generator.compile=true"):
        compiling = batch * (first_seconds[name]["all"] - medians[name]["all"])
        lines.append(ResultLine(f"  {name}, first step", compiling, "s", "compilation, once per batch size"))
    return lines


def attention_heads(repeats: int) -> list[ResultLine]:
    """The time of a sampler step with the planted UNet's shape and other numbers of heads, relative to four."""
    pipeline = ROOT / "models" / "pretrained" / "planted"
    passes = {count: unet_timer(pipeline, count, 8) for count in (4, 2, 8, 16)}
    for run in passes.values():
        run()
    medians = time_interleaved({str(count): run for count, run in passes.items()}, 3 * repeats)
    default_seconds = medians["4"]["all"]
    return [
        ResultLine(
            f"  {count} heads",
            parts["all"] / default_seconds,
            "x",
            f"{1000 * parts['all']:.0f} ms per image and sampler step",
        )
        for count, parts in medians.items()
    ]


def peak_memory_by_batch(subject: BenchmarkedModel) -> list[ResultLine]:
    """Peak memory of a step by batch size, in this process."""
    lines = []
    for batch in subject.batch_sizes:
        inputs = prepare_step(prepare_run(subject.ddim_overrides, batch))
        states = optimization_states(inputs)
        next(states)
        before = peak_memory(lambda: None)
        peak = peak_memory(partial(next, states)) - before
        mode = inputs.run.parts.diffusion.gradient_checkpointing
        detail = f"gradient_checkpointing={mode}, above the memory between steps"
        lines.append(ResultLine(f"  peak, batch {batch}", peak / 2**20, "M", detail))
    return lines


def stable_diffusion_speed(repeats: int) -> list[ResultLine]:
    """Stable Diffusion 1.5's architecture at 512 px with ViT-B/384, on a GPU."""
    return _at_size(
        lambda subject: [
            *counterfactual_speed(repeats, subject),
            *mac_counts(repeats, subject),
            *step_profile(repeats, subject),
            *peak_memory_by_batch(subject),
        ]
    )


def stable_diffusion_variants(repeats: int) -> list[ResultLine]:
    """The speed of a step of Stable Diffusion with each setting."""
    return _at_size(partial(variants, repeats))


def _at_size(measure: Callable[[BenchmarkedModel], list[ResultLine]]) -> list[ResultLine]:
    if not torch.cuda.is_available():
        return [ResultLine("stable diffusion", float("nan"), "", "skipped: needs a GPU")]
    with stable_diffusion(ModelSize(), (16, 4, 1), "bfloat16") as subject:
        return measure(subject)


def memory(repeats: int) -> list[ResultLine]:
    """Peak memory of a step by gradient checkpointing and by sampler steps, each in a separate process."""
    del repeats
    lines = []
    for mode in ("none", "step", "block"):
        for steps in (5, 20, 50):
            overrides = (
                f"generator.gradient_checkpointing={mode}",
                f"generator.steps={steps}",
                "generator.null_text.inner_steps=1",
            )
            peak = command_measures.peak_step_memory((*UVCE, *overrides), 4)
            detail = "batch 4, above the memory between steps"
            lines.append(ResultLine(f"  peak, gradient_checkpointing={mode}, T={steps}", peak / 2**20, "M", detail))
    step_peaks = [line.value for line in lines if "gradient_checkpointing=step" in line.name]
    spread = 100 * (max(step_peaks) / min(step_peaks) - 1)
    return [
        ResultLine(
            "memory growth, gradient_checkpointing=step", spread, "%", "T = 5 to 50", 10.0, higher_is_better=False
        ),
        *lines,
    ]


def memory_limits(repeats: int) -> list[ResultLine]:
    """batch=auto in control groups with limited memory."""
    del repeats
    return [command_measures.memory_limit(gib) for gib in (4, 8, 16)]


MEASURES: Mapping[str, Callable[[int], list[ResultLine]]] = {
    "uvce": counterfactual_speed, "networks": loop_overhead, "disagreement": disagreement_speed, "audit": audit_speed,
    "operations": mac_counts, "parts": step_profile, "variants": variants,
    "prompt_variants": prompt_variants, "heads": attention_heads, "memory": memory, "limits": memory_limits,
    "growth": command_measures.scaling, "overhead": command_measures.overhead,
    "durability": command_measures.durability,
    "scale": large_runs,
    "stable_diffusion": stable_diffusion_speed, "stable_diffusion_variants": stable_diffusion_variants,
}  # fmt: skip


# --- command line --------------------------------------------------------------------------------------------


def save(measured: Mapping[str, Sequence[ResultLine]], arguments: Sequence[str]) -> None:
    """Replace the results of these measures in docs/results/speed.json, and write the page from it."""
    path = RESULTS / "speed.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    provenance = {
        "command": shlex.join(["python", "scripts/bench/bench.py", *arguments]), "machine": machine_name(),
        "threads": torch.get_num_threads(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    for name, lines in measured.items():
        results[name] = {**provenance, "lines": [asdict(line) for line in lines]}
    results = {name: results[name] for name in MEASURES if name in results}
    write_durable(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_durable(path.with_suffix(".md"), format_table(results))


def format_table(results: Mapping[str, Any]) -> str:
    """The results as a page."""
    head = "Written by `scripts/bench/bench.py`; [Performance](../performance.md) explains it."
    rows = ["# Speed", "", head, ""]
    for name, measure in results.items():
        rows += [f"## {name}", "", "| measure | value | detail | threshold |", "|---|---|---|---|"]
        for line in (ResultLine(**fields) for fields in measure["lines"]):
            rows.append(
                f"| {line.name.strip()} | {line.formatted_value} {line.unit} | {line.detail} | {line.verdict} |"
            )
        where = f"{measure['machine']}, {measure['threads']} threads, {measure['date']}"
        rows += ["", f"`{measure['command']}`, {where}", ""]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    try:
        options = parse_options(Options, arguments)
        names = select_names("only", options.only, list(MEASURES))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    measured: dict[str, list[ResultLine]] = {}
    for name in names:
        started = time.monotonic()
        measured[name] = MEASURES[name](options.repeats)
        for line in measured[name]:
            print(line, flush=True)
        print(f"({name}: {time.monotonic() - started:.0f} s)", flush=True)
        if options.write:
            save({name: measured[name]}, arguments)
    return 0 if all(line.passed for lines in measured.values() for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
