"""`python run.py experiment=report`: the runs about one classifier, one after the other, and a page over all of them.
They are no sweep, since the later ones take their classes from the results of the first one."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classifier_lens.runner.cluster.signals import SignalHandler, exit_on_signal, is_stop_code
from classifier_lens.runner.command import JobResult, run_job, worst_code
from classifier_lens.runner.configuration.compose import MULTIRUN_FLAGS, compose_config, expand_sweep
from classifier_lens.runner.configuration.override_errors import list_override
from classifier_lens.runner.logging.console import resilient_streams
from classifier_lens.runner.report.classifier_report import read_report_run, write_report_page
from classifier_lens.runner.report.report_findings import Evidence, ReportRun
from classifier_lens.runner.report.wording import count, duration
from classifier_lens.runner.results.run_folder import run_key
from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED, PENDING, Parts
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.tasks.concept_effect import ConceptEffect
from classifier_lens.tasks.interventions.effect_records import PHRASES

EXPERIMENT = "experiment=report"
MAX_CLASSES = 50  # of a classifier, above which the user has to choose those that images are generated of
# Measured for the planted world on one CPU core, in seconds: the start of a run, an image of the consistency model, the
# images of random prompts and the ranking of features, both features of a class, and a result of the last two tasks.
START_SECONDS, IMAGE_SECONDS, AUDIT_START_SECONDS, AUDIT_SECONDS = 10.0, 0.07, 50.0, 14.0
COUNTERFACTUAL_SECONDS, DISAGREEMENT_SECONDS = 3.0, 6.0
NUM_COUNTERFACTUALS = 4


def is_report(words: Sequence[str]) -> bool:
    """Whether a command writes a report, and not only shows the configuration."""
    return EXPERIMENT in words and not [w for w in words if w.startswith("-") and w not in MULTIRUN_FLAGS]


def main(words: Sequence[str]) -> int:
    """`python run.py experiment=report <words>`; returns the exit code, of several runs that of a failed one."""
    codes = [DONE]
    with exit_on_signal(), resilient_streams():
        try:
            for job in expand_sweep(words):
                codes.append(write_report(job))
                if is_stop_code(codes[-1]):
                    break
        except UserError as error:
            print(error, file=sys.stderr)
            codes.append(BAD_INPUT)
    return worst_code(codes)


@dataclass(frozen=True)
class ReportPlan:
    """What a report computes. shared: the words of all its commands; classes: those that the user chose, None for all;
    reference: option of the reference network, None for none; num_classes: classes of the later runs."""

    words: Sequence[str]
    shared: Sequence[str]
    classes: Sequence[str] | None
    reference: str | None
    num_classes: int
    folder: Path
    classifier: str

    @staticmethod
    def of(words: Sequence[str]) -> ReportPlan:
        """The plan of a command. Raises UserError for wrong settings, for an unknown reference network and for a task,
        which the report chooses."""
        if tasks := [word for word in words if word.startswith("task=")]:
            raise UserError(f"{tasks[0]}: experiment=report chooses its tasks; leave it out")
        config = compose_config(words)
        settings: Mapping[str, Any] = config["report"]
        key = run_key(config, [json.dumps(settings)])
        classifier = config["options"]["classifier"]
        folder = Path(config["outputs"]) / "report" / f"{classifier}-{key}"
        shared = [word for word in words if word != EXPERIMENT and not word.startswith("report.")]
        plan = ReportPlan(words, shared, **settings, folder=folder, classifier=classifier)
        if plan.reference is not None:
            compose_config(plan.run_words("disagreement", *plan.reference_words))
        return plan

    @property
    def reference_words(self) -> list[str]:
        """The word that selects the reference network."""
        return [f"classifier@rival={self.reference}"]

    def run_words(self, task: str, *others: str) -> list[str]:
        """The words of the command of one run."""
        return [f"{EXPERIMENT}/{task}", *self.shared, *others]


class _Report:
    """A report while it is computed. runs: those that are done, failed or left out, by task; codes: their exit codes;
    can_generate: whether there is a generator, None before the first run is loaded; has_features: whether the
    classifier has features; labels: its classes."""

    def __init__(self, plan: ReportPlan, interrupt: SignalHandler) -> None:
        self.plan, self._interrupt = plan, interrupt
        self.evidence = Evidence(plan.classifier, plan.reference, {}, plan.folder.resolve())
        self.codes = [DONE]
        self.can_generate: bool | None = None
        self.has_features = False
        self.labels: Sequence[str] = ()

    @property
    def is_stopped(self) -> bool:
        return is_stop_code(self.codes[-1])

    def run(self, task: str, *others: str) -> None:
        """Run a task; a failure is kept for the page."""
        words = self.plan.run_words(task, *others)
        print(f"\n{task}: {shlex.join(['python', 'run.py', *words])}", flush=True)
        try:
            result = run_job(lambda: compose_config(words), self._interrupt, self._announce)
        except Exception as error:  # an error of the program in one run must not lose the others
            traceback.print_exc()
            result = JobResult(FAILED, f"{type(error).__name__}: {first_line(error)}")
        self.codes.append(result.code)
        self._add(read_report_run(task, words, result.folder, _problem(result), self.evidence.folder))

    def reason_against(self, task: str) -> str:
        """Why a task is left out, empty if it is run."""
        if self.is_stopped:
            return "since the command was stopped; the same command continues"
        if not self.can_generate:
            return "since it needs a generator of images"
        if task == "spurious_audit" and not self.has_features:
            return "since the classifier has no last linear layer, whose inputs are its features"
        return ""

    def leave_out(self, task: str, reason: str) -> None:
        """Note on the page that a task is not run."""
        print(f"\n{task}: left out, {reason}", flush=True)
        self._add(ReportRun(task, [], problem=f"Left out, {reason}"))

    def _add(self, run: ReportRun) -> None:
        self.evidence = replace(self.evidence, runs={**self.evidence.runs, run.task: run})

    def _announce(self, parts: Parts) -> None:
        """Before the first run: print what will be computed. Raises UserError for too many classes."""
        if self.can_generate is not None:
            return
        can_generate, labels = parts.generator.can_generate, parts.classifier.labels
        if can_generate and self.plan.classes is None and len(labels) > MAX_CLASSES:
            raise UserError(
                f"report.classes: the classifier has {len(labels)} classes, and images are generated of each; name "
                'some, as in report.classes="[tench, goldfish]", or use generator=none'
            )
        self.can_generate, self.labels, self.has_features = can_generate, labels, parts.classifier.head is not None
        for line in plan_lines(self.plan, parts):
            print(line, flush=True)

    def write(self) -> Path:
        """Write the page with the runs so far."""
        command = shlex.join(["python", "run.py", *self.plan.words])
        return write_report_page(self.evidence, command, self.plan.classes)


def _problem(result: JobResult) -> str:
    """Why a run is not complete, empty if it is."""
    if result.reason or result.code == DONE:
        return result.reason
    if is_stop_code(result.code):
        return "it was stopped; the same command continues"
    return "some results are left to other processes" if result.code == PENDING else "some results failed: see its page"


def write_report(words: Sequence[str]) -> int:
    """Compute the runs of a report and write its page, whose path is printed last; returns the exit code."""
    plan, interrupt = ReportPlan.of(words), SignalHandler()
    with interrupt.installed():
        report = _Report(plan, interrupt)
        classes = [] if plan.classes is None else [list_override("task.classes", plan.classes)]
        report.run("concept_effect", *classes)
        if report.can_generate is None:  # the classifier or its data could not be loaded: nothing else can run
            return report.codes[-1]
        for task in ("spurious_audit", "disagreement", "uvce"):
            if task == "disagreement" and plan.reference is None:
                continue
            if reason := report.reason_against(task):
                report.leave_out(task, reason)
            else:
                report.run(task, *_words_of(task, report))
        page = report.write()
    interrupt.forward()
    print(f"\nreport: {page.resolve()}", flush=True)
    return worst_code(report.codes)


def _words_of(task: str, report: _Report) -> list[str]:
    """The words that set the classes of a later run: those with the largest effects of phrases."""
    plan = report.plan
    records = report.evidence.records("concept_effect", kind=PHRASES)
    ranked = sorted(records, key=lambda r: -max((row["effect"] for row in r["effects"] if row["tested"]), default=0.0))
    chosen = ranked[: plan.num_classes]
    classes = [r["target"] for r in chosen] or list(plan.classes or report.labels)[: plan.num_classes]
    similar = list(dict.fromkeys(r["similar_class"] for r in chosen))
    if task == "uvce":
        return [list_override("select.classes", similar or classes)]
    words = [list_override("task.classes", classes)]
    if task == "disagreement":
        phrases = list(dict.fromkeys(phrase for r in chosen for phrase in r["found"]))
        words += [*plan.reference_words, list_override("task.start_classes", similar or classes)]
        words += [list_override("task.context_phrases", phrases)] if phrases else []
    return words


def plan_lines(plan: ReportPlan, parts: Parts) -> list[str]:
    """What a report will compute, and for the planted world how long that takes."""
    task = parts.task
    assert isinstance(task, ConceptEffect), "experiment=report/concept_effect sets it"
    lines, seconds = [f"report on {plan.classifier} -> {plan.folder / 'index.html'}"], START_SECONDS
    if parts.generator.can_generate:
        classes = len(plan.classes or parts.classifier.labels)
        images = classes * task.images_per_phrase * max(map(len, task.phrases.values()))
        later = min(plan.num_classes, classes)
        lines += [
            f"concept_effect: {images} generated images of {count(classes, 'class')}, and matched pairs",
            f"spurious_audit: features of {count(later, 'class')}",
            f"uvce: {NUM_COUNTERFACTUALS} counterfactuals",
        ]
        pairs = 3 * task.pairs * classes
        seconds += (images + pairs) * IMAGE_SECONDS
        seconds += START_SECONDS + AUDIT_START_SECONDS + later * AUDIT_SECONDS
        seconds += START_SECONDS + NUM_COUNTERFACTUALS * COUNTERFACTUAL_SECONDS
        if plan.reference is not None:
            lines.append(f"disagreement: with {plan.reference}, for {count(later, 'class')}")
            seconds += START_SECONDS + later * DISAGREEMENT_SECONDS
    else:
        lines.append("generator=none: overlays alone; phrases, audit and counterfactuals need a generator")
    if len(parts.data):
        images = min(task.num_images, len(parts.data))
        lines.append(f"overlays: {len(task.overlays)} on {count(images, 'image')}")
    if parts.classifier.domain == "planted":
        lines.append(f"about {duration(seconds)} on one CPU core, less if the images are in the cache")
    else:
        lines.append("each image is generated or classified once; the progress lines show how long that takes")
    return lines
