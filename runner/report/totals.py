"""What a page tells of all results of a run, which are read one after the other, and not held together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classifier_lens.runner.results.reader import Record, read_results


@dataclass
class Tally:
    """finished: how many results there are; judged: of those, how many can succeed; successes: how many do; at_start:
    how many had done so before the first step; seconds: that they took."""

    finished: int = 0
    judged: int = 0
    successes: int = 0
    at_start: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        success = record.get("success")
        self.finished += 1
        self.judged += isinstance(success, bool)
        self.successes += success is True
        self.at_start += record.get("success_start") is True
        if isinstance(record.get("seconds"), (int, float)):
            self.seconds.append(float(record["seconds"]))


def read_first(path: Path, most: int) -> tuple[list[Record], Tally]:
    """The first results of a file, `most` of them, and the tally of all. Raises UserError where the file cannot be
    read."""
    first: list[Record] = []
    tally = Tally()
    for record in read_results(path):
        tally.add(record)
        if len(first) < most:
            first.append(record)
    return first, tally
