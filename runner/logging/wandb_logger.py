"""Runs of Weights & Biases (W&B)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from platformdirs import user_cache_dir, user_config_dir, user_data_dir

from classifier_lens.runner.configuration.value_ranges import Seconds
from classifier_lens.runner.result_schema import MASK, RESULT
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.tasks.result_schemas import result_schema

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
MODE_ALIASES = {"dryrun": "offline", "run": "online"}  # further values of WANDB_MODE
WANDB_FOLDERS = {
    "WANDB_CACHE_DIR": user_cache_dir,
    "WANDB_CONFIG_DIR": user_config_dir,
    "WANDB_DATA_DIR": user_data_dir,
}
# Problems of an attempt with curves and images: every section that exists slows down W&B for the next one.
MAX_PROBLEMS = 500
TABLE_COLUMNS = ("name", "source", "target", "predicted_before", "predicted_after", "success", "prompt", "seconds")


class WandbLogger:
    """Logs to Weights & Biases, one W&B run per attempt, grouped by the run's key: curves, images with the editable
    region, a table of the results, the configuration.

    Attempts are not resumed W&B runs: offline, `resume` is ignored and a second run of the same id replaces the first.
    Each of the first `MAX_PROBLEMS` problems has its own section of curves over its own step; the table has all. W&B's
    step counts the rows of the whole attempt, since it must not decrease; problems of a batch, which are logged at the
    same step, share a row.
    """

    def __init__(self, mode: str | None, project: str, entity: str | None, timeout: Seconds) -> None:
        """mode: one of `MODES`; None for the value of WANDB_MODE, or else offline; an online attempt without a server
        becomes an offline one, and a line says so; timeout: s to wait for the server at the start and the end."""
        if mode not in (*MODES, None):
            raise UserError(f"logger.mode={mode}: allowed are null, {', '.join(MODES)}")
        self.mode = mode_from_environment(os.environ) if mode is None else mode
        self.project, self.entity, self.timeout = project, entity, timeout
        self._run: wandb.Run | None = None
        self._schema = result_schema("")
        self._row = 0
        self._step: int | None = None
        self._problems: set[str] = set()
        self._evaluated, self._successes = 0, 0
        self._lines: list[list[Any]] = []
        self._variables: list[str] = []  # environment variables that this attempt has set

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self.finish()
        if self.mode == "disabled" or is_disabled(os.environ):
            return
        self._variables = _redirect_folders(folder / "wandb")
        try:
            self._start_run(folder, config, key, task)
        except BaseException:
            self._release()
            raise
        self._schema, self._lines = result_schema(task), []
        self._row, self._step = 0, None
        self._problems, self._evaluated, self._successes = set(), 0, 0

    def _start_run(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        wandb = _import_wandb()
        attempt = 1 + sum(path.is_dir() for path in folder.glob("wandb/*run-*"))
        wandb.setup(wandb.Settings(silent=True))  # process-wide: otherwise W&B asks for a key on a terminal

        def begin(mode: str) -> Any:
            return wandb.init(
                mode=mode, project=self.project, entity=self.entity, dir=folder, name=f"{task}-{key}-{attempt}",
                group=key, job_type=f"attempt-{attempt}", tags=[task], config=config, reinit="finish_previous",
                settings=wandb.Settings(
                    console="off", silent=True, x_disable_stats=True, init_timeout=self.timeout,
                    finish_timeout=self.timeout if mode == "online" else 0.0,  # 0: no limit
                ),
            )  # fmt: skip

        try:
            self._run = begin(self.mode)
        except wandb.Error as error:
            if self.mode != "online":
                raise
            consequence = "this attempt is logged offline; `wandb sync` sends it later"
            print(f"logger.mode=online: {first_line(error)}; {consequence}", file=sys.stderr, flush=True)
            self._run = begin("offline")

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        if self._run is None or not self._has_section(problem):
            return
        self._advance(step)
        curves = {f"{problem}/{name}": value for name, value in values.items()}
        self._run.log({f"{problem}/step": step, **curves}, step=self._row)

    def log_result(self, record: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        if self._run is None:
            return
        wandb = _import_wandb()
        self._advance(None)
        numbers = {f"result/{k}": float(v) for k, v in record.items() if isinstance(v, (bool, int, float))}
        logged = images if self._has_section(record["name"]) else {}
        region = _editable_region(logged)
        panels = [
            wandb.Image(
                str(logged[image.key]), caption=image.caption, masks=region if image.key == RESULT.key else None
            )
            for image in self._schema.images_of({**record, "images": logged})
            if logged[image.key].is_file()
        ]
        self._lines.append([record.get(name) for name in TABLE_COLUMNS])
        section = {f"images/{record['name']}": panels} if panels else {}
        self._run.log({**numbers, **section}, step=self._row)
        if isinstance(record.get("success"), bool):
            self._evaluated, self._successes = self._evaluated + 1, self._successes + record["success"]
            self._run.summary["success_rate"] = self._successes / self._evaluated
            self._run.summary["evaluated"] = self._evaluated

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            if self._lines:
                run.log({"results": _import_wandb().Table(list(TABLE_COLUMNS), self._lines)}, step=self._row + 1)
            run.finish()
        finally:
            self._release()

    def _release(self) -> None:
        """Unset the folders of this attempt, since the next run of this process has others."""
        for variable in self._variables:
            os.environ.pop(variable, None)
        self._variables = []

    def _has_section(self, problem: str) -> bool:
        """Whether a problem has its own section, as the first `MAX_PROBLEMS` have."""
        if problem not in self._problems and len(self._problems) < MAX_PROBLEMS:
            self._problems.add(problem)
            assert self._run is not None
            self._run.define_metric(f"{problem}/*", step_metric=f"{problem}/step")
        return problem in self._problems

    def _advance(self, step: int | None) -> None:
        """Start a new row unless `step` is that of the current row; None always starts one."""
        if step is None or step != self._step:
            self._row += 1
        self._step = step


def mode_from_environment(variables: Mapping[str, str]) -> str:
    """The mode of the variable WANDB_MODE, offline if it is unset. Raises UserError for an unknown mode."""
    value = variables.get("WANDB_MODE", "").strip().lower() or "offline"
    mode = MODE_ALIASES.get(value, value)
    if mode not in MODES:
        raise UserError(f"WANDB_MODE={value}: allowed are {', '.join(MODES)}; logger=none switches logging off")
    return mode


def is_disabled(variables: Mapping[str, str]) -> bool:
    """Whether the variable WANDB_DISABLED switches logging off, which overrides the configuration."""
    return variables.get("WANDB_DISABLED", "").strip().lower() not in ("", "0", "false", "no", "off")


def _redirect_folders(folder: Path) -> list[str]:
    """The environment variables that were set to move W&B's cache, settings and logs into a folder, because the user's
    home cannot be written: W&B would print them on the console instead."""
    variables = []
    for variable, default in WANDB_FOLDERS.items():
        if variable in os.environ:
            continue
        home = Path(default("wandb"))
        try:
            home.mkdir(parents=True, exist_ok=True)
            writable = os.access(home, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            os.environ[variable] = str(folder)
            variables.append(variable)
    return variables


def _editable_region(images: Mapping[str, Path]) -> dict[str, Any] | None:
    """The editable region as a W&B mask, None if no mask was saved."""
    if MASK.key not in images or not images[MASK.key].is_file():
        return None
    with Image.open(images[MASK.key], formats=["PNG"]) as file:
        mask = (np.asarray(file.convert("L")) > 127).astype(np.uint8)
    return {"editable": {"mask_data": mask, "class_labels": {0: "preserved", 1: "editable"}}}


def _import_wandb() -> ModuleType:
    """W&B, imported at its first use, since its import is slow. Its crash reports, sent even offline, are off."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb
