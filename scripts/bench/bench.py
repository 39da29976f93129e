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

from classifier_lens.runner.configuration.command_line import parsed
from classifier_lens.runner.configuration.value_ranges import Repeats
from classifier_lens.runner.files.atomic import write
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.bench import command_measures as runs
from classifier_lens.scripts.bench import measures as measures
from classifier_lens.scripts.bench import plain_loop
from classifier_lens.scripts.bench.benchmarked_models import APPROXIMATIONS, PLANTED, UVCE, Subject, stable_diffusion
from classifier_lens.scripts.bench.machine import machine
from classifier_lens.scripts.bench.many_problems import scale
from classifier_lens.scripts.bench.result_line import Line, ratio
from classifier_lens.scripts.bench.timing import ceiling, interleaved, operations, peak_memory
from classifier_lens.scripts.choices import selected
from classifier_lens.scripts.weights.random_pipeline import Size

RESULTS = ROOT / "docs" / "results"
DISAGREEMENT = ("task=disagreement", "classifier=planted_shortcut")
# With little of what takes no part in a step: training pictures, plain prompts and starts to compare with.
PROMPTS = (
    "task=diffexplainer_class", "classifier=planted_shortcut", "sampler=ddim", "training.count=500", "task.images=2",
    "controls.starts=2",
)  # fmt: skip
AUDIT = ("task=spurious_audit", "classifier=planted_shortcut", "controls.starts=32")


@dataclass
class Options:
    """What the command line may say.

    only: beginnings of measures, by commas, or `all`; repeats: of every timing; write: whether docs/results/speed.md
    is brought up to date.
    """

    only: str = "all"
    repeats: Repeats = 3
    write: bool = False


# --- the measures --------------------------------------------------------------------------------------------


def uvce(repeats: int, subject: Subject = PLANTED) -> list[Line]:
    """Whole counterfactuals, their inversion and their steps."""
    most = subject.batches[0]
    contestants = {f"uvce batch {n}": partial(measures.explained, measures.case(subject.uvce, n))
                   for n in subject.batches}  # fmt: skip
    contestants[f"uvce lcm-4 batch {most}"] = partial(measures.explained, measures.case(subject.lcm, most))
    contestants["plain"] = partial(measures.explained_plainly, measures.case(subject.uvce, 1))
    found = interleaved(contestants, repeats)
    plain, own = found.pop("plain"), found[f"uvce batch {most}"]
    bars = subject.bars
    lines = [ratio(name, parts["all"], plain["all"], bars.get(name)) for name, parts in found.items()]
    for part in ("inversion", "begin", "search", "step", "end"):
        name = f"{part} batch {most}"
        lines.append(ratio(name if name in bars else f"  {name}", own[part], plain[part], bars.get(name)))
    return lines


def networks(repeats: int) -> list[Line]:
    """A step over the sum of its own calls of networks: what the loop adds."""
    eight, one = (measures.ready(measures.case(UVCE, batch)) for batch in (8, 1))
    plain = plain_loop.reference(one.own.parts.diffusion)
    lines = []
    for name, r, own, plainly in (
        ("uvce step batch 8 over networks", eight, eight.own.parts.diffusion.networks, None),
        ("reference step over networks", one, plain.networks, plain),
    ):
        step = partial(measures.step_time, r, plainly)
        step()
        found = interleaved({"step": step, "networks": partial(measures.networks_alone, r, own)}, repeats)
        whole, calls = found["step"]["all"], found["networks"]["all"]
        detail = f"step {whole:.2f} s  calls {calls:.2f} s"
        lines.append(Line(name, whole / calls, "x", detail, 1.15, high=False))
    return lines


def disagreement(repeats: int) -> list[Line]:
    """Steps of maximal disagreement, and the whole."""
    eight, one = (measures.case(DISAGREEMENT, batch) for batch in (8, 1))
    found = interleaved(
        {"ours": partial(measures.explained, eight), "plain": partial(measures.explained_plainly, one)}, repeats
    )
    return [ratio("disagreement batch 8", found["ours"]["all"], found["plain"]["all"], 3.0)]


def audit(repeats: int) -> list[Line]:
    """Features of an audit, eight at once, with 32 random starts."""
    eight, one = (measures.case(AUDIT, batch) for batch in (8, 1))
    found = interleaved(
        {"ours": partial(measures.prompted, eight), "plain": partial(measures.prompted_plainly, one)}, repeats
    )
    lines = [ratio("spurious_audit feature batch 8", found["ours"]["all"], found["plain"]["all"], 3.0)]
    return lines + [ratio(f"  {part} batch 8", found["ours"][part], found["plain"][part])
                    for part in ("search", "step", "end")]  # fmt: skip


def operation_counts(repeats: int, subject: Subject = PLANTED) -> list[Line]:
    """Multiply-adds of a step, and how near their speed is to a plain matrix product's."""
    most = subject.batches[0]
    many, one = (measures.ready(measures.case(subject.uvce, batch)) for batch in (most, 1))
    generator = many.own.parts.diffusion
    plain = plain_loop.reference(one.own.parts.diffusion)
    ours = operations(lambda: measures.one_step(many)) / most
    theirs = operations(lambda: measures.one_plain_step(plain, one))
    product = partial(ceiling, generator.device, generator.networks.unet.dtype)
    found = interleaved(
        {"step": partial(measures.step_time, many), "product": lambda: {"speed": product()}}, repeats
    )  # fmt: skip
    top = found["product"]["speed"]
    reached, detail = ours / found["step"]["all"] / top, f"a matrix product does {top / 1e9:.0f} G/s"
    again = f"recompute={generator.recompute}; reference {theirs / 1e9:.1f} G, with recomputation"
    return [
        Line("multiply-adds of a uvce step", ours / 1e9, "G", again),
        Line("uvce step of the ceiling", 100 * reached, "%", detail, subject.reached),
    ]


def parts(repeats: int, subject: Subject = PLANTED) -> list[Line]:
    """Where a step's time goes."""
    many = measures.ready(measures.case(subject.uvce, subject.batches[0]))
    measures.step_parts(many)
    found = interleaved({"ours": partial(measures.step_parts, many)}, repeats)["ours"]
    total = sum(found.values())
    return [Line(f"  {name} of a step", 100 * value / total, "%", f"{value:.3f} s") for name, value in found.items()]


def variants(repeats: int, subject: Subject = PLANTED) -> list[Line]:
    """A batch's step of counterfactuals under each setting, over the present one."""
    return _under_settings(subject.uvce, subject.settings, subject.batches[0], repeats)


def prompt_variants(repeats: int) -> list[Line]:
    """A step of two prompts by DDIM with each approximation, over the exact one."""
    return _under_settings(PROMPTS, APPROXIMATIONS, 2, repeats)


def _under_settings(words: Sequence[str], settings: Sequence[str], batch: int, repeats: int) -> list[Line]:
    prepared = {"default": measures.ready(measures.case(words, batch))}
    prepared |= {word: measures.ready(measures.case((*words, word), batch)) for word in settings}
    first = {name: measures.step_time(r) for name, r in prepared.items()}
    found = interleaved({name: partial(measures.step_time, r) for name, r in prepared.items()}, repeats)
    own = found["default"]["all"]
    lines = [ratio(f"  {name}", own, parts["all"], names=("default", name)) for name, parts in found.items()]
    for name in (word for word in settings if word == "generator.compile=true"):
        compiling = batch * (first[name]["all"] - found[name]["all"])
        lines.append(Line(f"  {name}, first step", compiling, "s", "compiling, once per size of batch"))
    return lines


def heads(repeats: int) -> list[Line]:
    """A sampler step of the planted UNet's shape with other numbers of heads, over its own four."""
    pipeline = ROOT / "models" / "pretrained" / "planted"
    passes = {count: measures.unet_pass(pipeline, count, 8) for count in (4, 2, 8, 16)}
    for run in passes.values():
        run()
    found = interleaved({str(count): run for count, run in passes.items()}, 3 * repeats)
    own = found["4"]["all"]
    return [
        Line(f"  {count} heads", parts["all"] / own, "x", f"{1000 * parts['all']:.0f} ms per picture and sampler step")
        for count, parts in found.items()
    ]  # fmt: skip


def peaks(subject: Subject) -> list[Line]:
    """Peak memory of a step by the batch, in this process."""
    lines = []
    for batch in subject.batches:
        own = measures.ready(measures.case(subject.uvce, batch))
        states = measures.states(own)
        next(states)
        before = peak_memory(lambda: None)
        peak = peak_memory(partial(next, states)) - before
        mode = f"recompute={own.own.parts.diffusion.recompute}, above what is kept between steps"
        lines.append(Line(f"  peak, batch {batch}", peak / 2**20, "M", mode))
    return lines


def at_size(repeats: int) -> list[Line]:
    """Stable Diffusion 1.5's architecture at 512 px with ViT-B/384, on a GPU."""
    return _at_size(lambda subject: [
        *uvce(repeats, subject), *operation_counts(repeats, subject), *parts(repeats, subject), *peaks(subject)
    ])  # fmt: skip


def variants_at_size(repeats: int) -> list[Line]:
    """A step of it under each setting."""
    return _at_size(partial(variants, repeats))


def _at_size(measure: Callable[[Subject], list[Line]]) -> list[Line]:
    if not torch.cuda.is_available():
        return [Line("stable diffusion", float("nan"), "", "skipped: needs a GPU")]
    with stable_diffusion(Size(), (16, 4, 1), "bfloat16") as subject:
        return measure(subject)


def memory(repeats: int) -> list[Line]:
    """Peak memory of a step by recomputation and by the sampler's steps, each in a process of its own."""
    del repeats
    lines = []
    for mode in ("none", "step", "block"):
        for steps in (5, 20, 50):
            words = (f"generator.recompute={mode}", f"generator.steps={steps}", "generator.null_text.inner_steps=1")
            peak = runs.peak((*UVCE, *words), 4)
            detail = "batch 4, above what is kept between steps"
            lines.append(Line(f"  peak, recompute={mode}, T={steps}", peak / 2**20, "M", detail))
    flat = [line.value for line in lines if "recompute=step" in line.name]
    spread = 100 * (max(flat) / min(flat) - 1)
    return [Line("memory growth, recompute=step", spread, "%", "T = 5 to 50", 10.0, high=False), *lines]


def limits(repeats: int) -> list[Line]:
    """batch=auto in control groups with little memory."""
    del repeats
    return [runs.limited(gib) for gib in (4, 8, 16)]


MEASURES: Mapping[str, Callable[[int], list[Line]]] = {
    "uvce": uvce, "networks": networks, "disagreement": disagreement, "audit": audit,
    "operations": operation_counts, "parts": parts, "variants": variants,
    "prompt_variants": prompt_variants, "heads": heads, "memory": memory, "limits": limits,
    "growth": runs.growth, "overhead": runs.overhead, "durability": runs.durability,
    "scale": scale,
    "stable_diffusion": at_size, "stable_diffusion_variants": variants_at_size,
}  # fmt: skip


# --- the command line ----------------------------------------------------------------------------------------


def save(measured: Mapping[str, Sequence[Line]], words: Sequence[str]) -> None:
    """Replace what docs/results/speed.json has of these measures, and write the table anew from it."""
    path = RESULTS / "speed.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    how = {
        "command": shlex.join(["python", "scripts/bench/bench.py", *words]), "machine": machine(),
        "threads": torch.get_num_threads(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    for name, lines in measured.items():
        known[name] = {**how, "lines": [asdict(line) for line in lines]}
    known = {name: known[name] for name in MEASURES if name in known}
    write(path, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    write(path.with_suffix(".md"), table(known))


def table(known: Mapping[str, Any]) -> str:
    """The results as a page."""
    head = "Written by `scripts/bench/bench.py`; [performance.md](../performance.md) says how to read it."
    rows = ["# Speed", "", head, ""]
    for name, measure in known.items():
        rows += [f"## {name}", "", "| what | | of what | bar |", "|---|---|---|---|"]
        for line in (Line(**fields) for fields in measure["lines"]):
            rows.append(f"| {line.name.strip()} | {line.figure} {line.unit} | {line.detail} | {line.verdict} |")
        where = f"{measure['machine']}, {measure['threads']} threads, {measure['date']}"
        rows += ["", f"`{measure['command']}`, {where}", ""]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    try:
        chosen = parsed(Options, arguments)
        names = selected("only", chosen.only, list(MEASURES))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    measured: dict[str, list[Line]] = {}
    for name in names:
        began = time.monotonic()
        measured[name] = MEASURES[name](chosen.repeats)
        for line in measured[name]:
            print(line, flush=True)
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
        if chosen.write:
            save({name: measured[name]}, arguments)
    return 0 if all(line.ok for lines in measured.values() for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
