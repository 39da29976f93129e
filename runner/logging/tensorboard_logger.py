"""Event files of TensorBoard: `tensorboard --logdir outputs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FOLDER = "tensorboard"


class TensorBoardLogger:
    """Writes event files into the run folder, one subfolder per attempt."""

    def __init__(self) -> None:
        """Raises UserError if its package is not installed."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError(
                "logger=tensorboard: its package is not installed; pip install tensorboard, or set logger=none"
            ) from error
        self._writer: SummaryWriter | None = None
        self._results = 0

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.finish()
        attempt = 1 + sum(path.is_dir() for path in folder.glob(f"{LOG_FOLDER}/attempt-*"))
        self._writer, self._results = SummaryWriter(folder / LOG_FOLDER / f"attempt-{attempt}"), 0
        self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```")

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{problem}/{name}", value, step)

    def log_result(self, record: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        if self._writer is None:
            return
        self._results += 1
        for name, value in record.items():
            if isinstance(value, (bool, int, float)):
                self._writer.add_scalar(f"result/{name}", float(value), self._results)
        text_fields = {name: value for name, value in record.items() if name not in ("history", "images")}
        self._writer.add_text(f"{record['name']}/result", f"```json\n{json.dumps(text_fields, indent=1)}\n```")
        for name, path in images.items():
            if path.is_file():
                self._writer.add_image(f"{record['name']}/{name}", read_png(path))

    def finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
