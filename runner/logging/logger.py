"""The interface of loggers: curves, results and images for a service that shows them.

A log is not the record of a run; its JSON and PNG files are, which are written whether anything is logged or not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from classifier_lens.runner.types import first_line


class Logger(Protocol):
    """Logs curves, results and images. `finish` may be called more than once, and before `start`."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        """Start an attempt at the run `key` with this folder."""

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a problem at an optimization step."""

    def log_result(self, record: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Log a finished problem: its record in results.jsonl and its saved images by name."""

    def finish(self) -> None:
        """End the attempt; send or write buffered values."""


class NullLogger:
    """A logger that does nothing."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        pass

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        pass

    def log_result(self, record: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        pass

    def finish(self) -> None:
        pass


class SafeLogger:
    """A logger whose errors do not stop a run: the first one is printed, and logging ends."""

    def __init__(self, logger: Logger) -> None:
        self._logger, self._broken = logger, False

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self._try(self._logger.start, folder, config, key, task)

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        self._try(self._logger.log_step, problem, step, values)

    def log_result(self, record: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        self._try(self._logger.log_result, record, images)

    def finish(self) -> None:
        self._try(self._logger.finish)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._broken and call != self._logger.finish:  # still called, to release resources
            return
        try:
            call(*arguments)
        except Exception as error:  # services, their clients and disks raise anything
            if not self._broken:
                print(
                    f"logger: {first_line(error)}; logging ends, the run goes on",
                    file=sys.stderr,
                    flush=True,
                )
            self._broken = True
