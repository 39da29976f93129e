"""Runs at Weights & Biases."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from runner.types import UserError, first_line

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online")
TABLE = ("name", "source", "target", "predicted_before", "predicted_after", "success", "prompt", "seconds")


class WandbLogger:
    """Weights & Biases, one W&B run per attempt, grouped by the run's key: curves, pictures with the mask of what was
    free to change, a table of the results, the configuration.

    Attempts are not resumed W&B runs: offline, `resume` is ignored and a second run of the same id replaces the first.
    Each problem has its own section of curves over its own step. W&B's step counts rows of the whole attempt, since it
    must never fall; problems of a batch, logged at the same step, share a row.
    """

    def __init__(self, mode: str, project: str, entity: str | None, timeout: float) -> None:
        """mode: one of `MODES`; an attempt that cannot be online is offline, and says so; timeout: seconds to wait for
        the server when an attempt starts and ends."""
        if mode not in MODES:
            raise UserError(f"logger.mode={mode}: allowed are {', '.join(MODES)}; logger=none switches logging off")
        self.mode, self.project, self.entity, self.timeout = mode, project, entity, timeout
        self._run: wandb.Run | None = None
        self._row = 0
        self._step: int | None = None
        self._problems: set[str] = set()
        self._successes: list[bool] = []
        self._lines: list[list[Any]] = []

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self.finish()
        wandb = _import_wandb()
        attempt = 1 + sum(path.is_dir() for path in folder.glob("wandb/*run-*"))
        wandb.setup(wandb.Settings(silent=True))  # process-wide: without it a terminal is asked for a key

        def begin(mode: str) -> Any:
            return wandb.init(
                mode=mode, project=self.project, entity=self.entity, dir=folder, name=f"{task}-{key}-{attempt}",
                group=key, job_type=f"attempt-{attempt}", tags=[task], config=config, reinit="finish_previous",
                settings=wandb.Settings(
                    console="off", silent=True, x_disable_stats=True, init_timeout=self.timeout,
                    finish_timeout=self.timeout if mode == "online" else 0.0,  # 0: until all is written
                ),
            )  # fmt: skip

        try:
            self._run = begin(self.mode)
        except wandb.Error as error:
            if self.mode != "online":
                raise
            said = f"{first_line(error)}; this attempt is logged offline, and `wandb sync` sends it later"
            print(f"logger.mode=online: {said}", file=sys.stderr, flush=True)
            self._run = begin("offline")
        self._lines = []
        self._row, self._step = 0, None
        self._problems, self._successes = set(), []

    def log(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            return
        if problem not in self._problems:
            self._problems.add(problem)
            self._run.define_metric(f"{problem}/*", step_metric=f"{problem}/step")
        self._advance(step)
        curves = {f"{problem}/{name}": value for name, value in values.items()}
        self._run.log({f"{problem}/step": step, **curves}, step=self._row)

    def result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        if self._run is None:
            return
        wandb = _import_wandb()
        self._advance(None)
        numbers = {f"result/{k}": float(v) for k, v in record.items() if isinstance(v, (bool, int, float))}
        free = _free(pictures)
        images = [
            wandb.Image(str(path), caption=name, masks=free if name == "best" else None)
            for name, path in pictures.items()
            if path.is_file()
        ]
        self._lines.append([record.get(name) for name in TABLE])
        panel = {f"pictures/{record['name']}": images} if images else {}
        self._run.log({**numbers, **panel}, step=self._row)
        if isinstance(record.get("success"), bool):
            self._successes.append(record["success"])
            self._run.summary["success_rate"] = sum(self._successes) / len(self._successes)
            self._run.summary["judged"] = len(self._successes)

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if self._lines:
            run.log({"results": _import_wandb().Table(list(TABLE), self._lines)}, step=self._row + 1)
        run.finish()

    def _advance(self, step: int | None) -> None:
        """Begin a new row unless `step` is that of the present row; None always begins one."""
        if step is None or step != self._step:
            self._row += 1
        self._step = step


def _free(pictures: Mapping[str, Path]) -> dict[str, Any] | None:
    """What of a picture was free to change, where a mask was saved."""
    if "mask" not in pictures or not pictures["mask"].is_file():
        return None
    with Image.open(pictures["mask"]) as file:
        mask = (np.asarray(file.convert("L")) > 127).astype(np.uint8)
    return {"free": {"mask_data": mask, "class_labels": {0: "kept", 1: "free"}}}


def _import_wandb() -> ModuleType:
    """W&B, imported when first used: it is slow to import. Its crash reports, which go out even offline, stay off."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb
