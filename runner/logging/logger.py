"""What is told of a run while it goes on: curves, results and pictures to a service that shows them.

It is not the record of a run: that is its JSON and PNG files, which are written whether anything is logged or not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from classifier_lens.runner.types import first_line


class Logger(Protocol):
    """Where curves, results and pictures go. `finish` may be called more than once, and before `start`."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        """Begin one attempt at the run `key`, whose files lie in `folder`."""

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        """Note a problem's values at one optimisation step."""

    def log_result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        """Note a finished problem: its line of results.jsonl and its saved pictures by name."""

    def finish(self) -> None:
        """End the attempt and send or write what is left."""


class NullLogger:
    """A logger that does nothing."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        pass

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        pass

    def log_result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        pass

    def finish(self) -> None:
        pass


class SafeLogger:
    """A logger whose troubles stop no run: the first one is told, and nothing more is logged."""

    def __init__(self, logger: Logger) -> None:
        self._logger, self._broken = logger, False

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self._try(self._logger.start, folder, config, key, task)

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        self._try(self._logger.log_step, problem, step, values)

    def log_result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        self._try(self._logger.log_result, record, pictures)

    def finish(self) -> None:
        self._try(self._logger.finish)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._broken and call != self._logger.finish:  # which gives back what the logger holds
            return
        try:
            call(*arguments)
        except Exception as error:  # whatever a service, its client and a disk can come up with
            if not self._broken:
                print(f"logger: {first_line(error)}; nothing more is logged", file=sys.stderr, flush=True)
            self._broken = True
