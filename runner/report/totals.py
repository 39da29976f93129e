"""Totals over all results of a run, which are read one by one so that few are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from classifier_lens.runner.report.result_keys import current_record
from classifier_lens.runner.result_schema import Record
from classifier_lens.runner.results.reader import read_results


@dataclass(frozen=True)
class SuccessRate:
    """A share of successes with its 95 % Wilson interval."""

    successes: int
    total: int

    @property
    def value(self) -> float:
        return self.successes / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if self.total == 0:
            return 0.0, 1.0  # without results no value is excluded
        ends = binomtest(self.successes, self.total).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)


@dataclass
class Totals:
    """Numbers of results. finished: all; evaluated: those that can be a success; successes: those that are one;
    successes_at_start: those that were one before the first step; seconds: of each; facts: the values of `keys` of
    each."""

    keys: Sequence[str] = ()
    finished: int = 0
    evaluated: int = 0
    successes: int = 0
    successes_at_start: int = 0
    seconds: list[float] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        success = record.get("success")
        self.finished += 1
        self.evaluated += isinstance(success, bool)
        self.successes += success is True
        self.successes_at_start += record.get("success_start") is True
        if isinstance(record.get("seconds"), (int, float)):
            self.seconds.append(float(record["seconds"]))
        self.facts.append({key: record.get(key) for key in self.keys})


def read_first(path: Path, limit: int, task: str = "", keys: Sequence[str] = ()) -> tuple[list[Record], Totals]:
    """The first `limit` results of a file and the totals of all, under the present names of a task's keys. Raises
    UserError if the file cannot be read."""
    first: list[Record] = []
    totals = Totals(keys)
    for line in read_results(path):
        record = current_record(line, task)
        totals.add(record)
        if len(first) < limit:
            first.append(record)
    return first, totals
