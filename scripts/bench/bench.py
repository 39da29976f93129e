"""Time the runner beside the plain loop that published code is (scripts/plain_loop.py).

    python scripts/bench/bench.py                     # every measure, an hour on 2 cores
    python scripts/bench/bench.py only=uvce,memory repeats=1
    python scripts/bench/bench.py write=true          # brings docs/results/speed.md up to date

Keys and defaults are those of `Options`. Prints a line per measure; an `x` stands behind ratios of time alone. Both
sides take turns in one process, and what is printed are medians. Exit code 0: every bar is reached; 1: one is not; 2:
bad input.
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
from classifier_lens.scripts.bench import command_measures as runs
from classifier_lens.scripts.bench import measures as measures
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.benchmarked_models import (
    APPROXIMATIONS,
    PLANTED,
    UVCE,
    BenchmarkedModel,
    stable_diffusion,
)
from classifier_lens.scripts.bench.machine import machine_name
from classifier_lens.scripts.bench.many_problems import large_runs
from classifier_lens.scripts.bench.result_line import ResultLine, speedup
from classifier_lens.scripts.bench.timing import count_macs, matmul_throughput, peak_memory, time_interleaved
from classifier_lens.scripts.choices import select_names
from classifier_lens.scripts.weights.random_pipeline import ModelSize

RESULTS = ROOT / "docs" / "results"
DISAGREEMENT = ("task=disagreement", "classifier=planted_shortcut")
# With little of what takes no part in a step: training pictures, plain prompts and starts to compare with.
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
    """What the command line may say.

    only: beginnings of measures, by commas, or `all`; repeats: of every timing; write: whether docs/results/speed.md
    is brought up to date.
    """

    only: str = "all"
    repeats: PerProblemCount = 3
    write: bool = False


# --- the measures --------------------------------------------------------------------------------------------


def counterfactual_speed(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """Whole counterfactuals, their inversion and their steps."""
    most = subject.batch_sizes[0]
    contestants = {
        f"uvce batch {n}": partial(measures.time_explanation, measures.prepare_run(subject.ddim_overrides, n))
        for n in subject.batch_sizes
    }
    contestants[f"uvce lcm-4 batch {most}"] = partial(
        measures.time_explanation, measures.prepare_run(subject.lcm_overrides, most)
    )
    contestants["plain"] = partial(measures.time_plain_explanation, measures.prepare_run(subject.ddim_overrides, 1))
    found = time_interleaved(contestants, repeats)
    plain, own = found.pop("plain"), found[f"uvce batch {most}"]
    bars = subject.thresholds
    lines = [speedup(name, parts["all"], plain["all"], bars.get(name)) for name, parts in found.items()]
    for part in ("inversion", "begin", "search", "step", "end"):
        name = f"{part} batch {most}"
        lines.append(speedup(name if name in bars else f"  {name}", own[part], plain[part], bars.get(name)))
    return lines


def loop_overhead(repeats: int) -> list[ResultLine]:
    """A step over the sum of its own calls of networks: what the loop adds."""
    eight, one = (measures.prepare_step(measures.prepare_run(UVCE, batch)) for batch in (8, 1))
    plain = plain_loop.plain_model(one.run.parts.diffusion)
    lines = []
    for name, r, own, plainly in (
        ("uvce step batch 8 over networks", eight, eight.run.parts.diffusion.networks, None),
        ("reference step over networks", one, plain.networks, plain),
    ):
        step = partial(measures.time_step, r, plainly)
        step()
        found = time_interleaved({"step": step, "networks": partial(measures.time_networks, r, own)}, repeats)
        whole, calls = found["step"]["all"], found["networks"]["all"]
        detail = f"step {whole:.2f} s  calls {calls:.2f} s"
        lines.append(ResultLine(name, whole / calls, "x", detail, 1.15, higher_is_better=False))
    return lines


def disagreement_speed(repeats: int) -> list[ResultLine]:
    """Steps of maximal disagreement, and the whole."""
    eight, one = (measures.prepare_run(DISAGREEMENT, batch) for batch in (8, 1))
    found = time_interleaved(
        {"ours": partial(measures.time_explanation, eight), "plain": partial(measures.time_plain_explanation, one)},
        repeats,
    )
    return [speedup("disagreement batch 8", found["ours"]["all"], found["plain"]["all"], 3.0)]


def audit_speed(repeats: int) -> list[ResultLine]:
    """Features of an audit, eight at once, with 32 random starts."""
    eight, one = (measures.prepare_run(AUDIT, batch) for batch in (8, 1))
    found = time_interleaved(
        {"ours": partial(measures.time_prompt, eight), "plain": partial(measures.time_plain_prompt, one)}, repeats
    )
    lines = [speedup("spurious_audit feature batch 8", found["ours"]["all"], found["plain"]["all"], 3.0)]
    return lines + [speedup(f"  {part} batch 8", found["ours"][part], found["plain"][part])
                    for part in ("search", "step", "end")]  # fmt: skip


def mac_counts(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """Multiply-adds of a step, and how near their speed is to a plain matrix product's."""
    most = subject.batch_sizes[0]
    many, one = (measures.prepare_step(measures.prepare_run(subject.ddim_overrides, batch)) for batch in (most, 1))
    generator = many.run.parts.diffusion
    plain = plain_loop.plain_model(one.run.parts.diffusion)
    ours = count_macs(lambda: measures.run_step(many)) / most
    theirs = count_macs(lambda: measures.run_plain_step(plain, one))
    product = partial(matmul_throughput, generator.device, generator.networks.unet.dtype)
    found = time_interleaved(
        {"step": partial(measures.time_step, many), "product": lambda: {"speed": product()}}, repeats
    )  # fmt: skip
    top = found["product"]["speed"]
    reached, detail = ours / found["step"]["all"] / top, f"a matrix product does {top / 1e9:.0f} G/s"
    again = f"recompute={generator.gradient_checkpointing}; reference {theirs / 1e9:.1f} G, with recomputation"
    return [
        ResultLine("multiply-adds of a uvce step", ours / 1e9, "G", again),
        ResultLine("uvce step of the ceiling", 100 * reached, "%", detail, subject.min_utilization),
    ]


def step_profile(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """Where a step's time goes."""
    many = measures.prepare_step(measures.prepare_run(subject.ddim_overrides, subject.batch_sizes[0]))
    measures.time_step_parts(many)
    found = time_interleaved({"ours": partial(measures.time_step_parts, many)}, repeats)["ours"]
    total = sum(found.values())
    return [
        ResultLine(f"  {name} of a step", 100 * value / total, "%", f"{value:.3f} s") for name, value in found.items()
    ]


def variants(repeats: int, subject: BenchmarkedModel = PLANTED) -> list[ResultLine]:
    """A batch's step of counterfactuals under each setting, over the present one."""
    return _under_settings(subject.ddim_overrides, subject.variants, subject.batch_sizes[0], repeats)


def prompt_variants(repeats: int) -> list[ResultLine]:
    """A step of two prompts by DDIM with each approximation, over the exact one."""
    return _under_settings(PROMPTS, APPROXIMATIONS, 2, repeats)


def _under_settings(words: Sequence[str], settings: Sequence[str], batch: int, repeats: int) -> list[ResultLine]:
    prepared = {"default": measures.prepare_step(measures.prepare_run(words, batch))}
    prepared |= {word: measures.prepare_step(measures.prepare_run((*words, word), batch)) for word in settings}
    first = {name: measures.time_step(r) for name, r in prepared.items()}
    found = time_interleaved({name: partial(measures.time_step, r) for name, r in prepared.items()}, repeats)
    own = found["default"]["all"]
    lines = [speedup(f"  {name}", own, parts["all"], names=("default", name)) for name, parts in found.items()]
    for name in (word for word in settings if word == "generator.compile=true"):
        compiling = batch * (first[name]["all"] - found[name]["all"])
        lines.append(ResultLine(f"  {name}, first step", compiling, "s", "compiling, once per size of batch"))
    return lines


def attention_heads(repeats: int) -> list[ResultLine]:
    """A sampler step of the planted UNet's shape with other numbers of heads, over its own four."""
    pipeline = ROOT / "models" / "pretrained" / "planted"
    passes = {count: measures.unet_timer(pipeline, count, 8) for count in (4, 2, 8, 16)}
    for run in passes.values():
        run()
    found = time_interleaved({str(count): run for count, run in passes.items()}, 3 * repeats)
    own = found["4"]["all"]
    return [
        ResultLine(
            f"  {count} heads", parts["all"] / own, "x", f"{1000 * parts['all']:.0f} ms per picture and sampler step"
        )
        for count, parts in found.items()
    ]


def peak_memory_by_batch(subject: BenchmarkedModel) -> list[ResultLine]:
    """Peak memory of a step by the batch, in this process."""
    lines = []
    for batch in subject.batch_sizes:
        own = measures.prepare_step(measures.prepare_run(subject.ddim_overrides, batch))
        states = measures.optimization_states(own)
        next(states)
        before = peak_memory(lambda: None)
        peak = peak_memory(partial(next, states)) - before
        mode = f"recompute={own.run.parts.diffusion.gradient_checkpointing}, above what is kept between steps"
        lines.append(ResultLine(f"  peak, batch {batch}", peak / 2**20, "M", mode))
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
    """A step of it under each setting."""
    return _at_size(partial(variants, repeats))


def _at_size(measure: Callable[[BenchmarkedModel], list[ResultLine]]) -> list[ResultLine]:
    if not torch.cuda.is_available():
        return [ResultLine("stable diffusion", float("nan"), "", "skipped: needs a GPU")]
    with stable_diffusion(ModelSize(), (16, 4, 1), "bfloat16") as subject:
        return measure(subject)


def memory(repeats: int) -> list[ResultLine]:
    """Peak memory of a step by recomputation and by the sampler's steps, each in a process of its own."""
    del repeats
    lines = []
    for mode in ("none", "step", "block"):
        for steps in (5, 20, 50):
            words = (
                f"generator.gradient_checkpointing={mode}",
                f"generator.steps={steps}",
                "generator.null_text.inner_steps=1",
            )
            peak = runs.peak_step_memory((*UVCE, *words), 4)
            detail = "batch 4, above what is kept between steps"
            lines.append(ResultLine(f"  peak, recompute={mode}, T={steps}", peak / 2**20, "M", detail))
    flat = [line.value for line in lines if "recompute=step" in line.name]
    spread = 100 * (max(flat) / min(flat) - 1)
    return [
        ResultLine("memory growth, recompute=step", spread, "%", "T = 5 to 50", 10.0, higher_is_better=False),
        *lines,
    ]


def memory_limits(repeats: int) -> list[ResultLine]:
    """batch=auto in control groups with little memory."""
    del repeats
    return [runs.memory_limit(gib) for gib in (4, 8, 16)]


MEASURES: Mapping[str, Callable[[int], list[ResultLine]]] = {
    "uvce": counterfactual_speed, "networks": loop_overhead, "disagreement": disagreement_speed, "audit": audit_speed,
    "operations": mac_counts, "parts": step_profile, "variants": variants,
    "prompt_variants": prompt_variants, "heads": attention_heads, "memory": memory, "limits": memory_limits,
    "growth": runs.scaling, "overhead": runs.overhead, "durability": runs.durability,
    "scale": large_runs,
    "stable_diffusion": stable_diffusion_speed, "stable_diffusion_variants": stable_diffusion_variants,
}  # fmt: skip


# --- the command line ----------------------------------------------------------------------------------------


def save(measured: Mapping[str, Sequence[ResultLine]], words: Sequence[str]) -> None:
    """Replace what docs/results/speed.json has of these measures, and write the table anew from it."""
    path = RESULTS / "speed.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    how = {
        "command": shlex.join(["python", "scripts/bench/bench.py", *words]), "machine": machine_name(),
        "threads": torch.get_num_threads(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    for name, lines in measured.items():
        known[name] = {**how, "lines": [asdict(line) for line in lines]}
    known = {name: known[name] for name in MEASURES if name in known}
    write_durable(path, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    write_durable(path.with_suffix(".md"), format_table(known))


def format_table(known: Mapping[str, Any]) -> str:
    """The results as a page."""
    head = "Written by `scripts/bench/bench.py`; [performance.md](../performance.md) says how to read it."
    rows = ["# Speed", "", head, ""]
    for name, measure in known.items():
        rows += [f"## {name}", "", "| what | | of what | bar |", "|---|---|---|---|"]
        for line in (ResultLine(**fields) for fields in measure["lines"]):
            rows.append(
                f"| {line.name.strip()} | {line.formatted_value} {line.unit} | {line.detail} | {line.verdict} |"
            )
        where = f"{measure['machine']}, {measure['threads']} threads, {measure['date']}"
        rows += ["", f"`{measure['command']}`, {where}", ""]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    try:
        chosen = parse_options(Options, arguments)
        names = select_names("only", chosen.only, list(MEASURES))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    measured: dict[str, list[ResultLine]] = {}
    for name in names:
        began = time.monotonic()
        measured[name] = MEASURES[name](chosen.repeats)
        for line in measured[name]:
            print(line, flush=True)
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
        if chosen.write:
            save({name: measured[name]}, arguments)
    return 0 if all(line.passed for lines in measured.values() for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
