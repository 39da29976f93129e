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
from platformdirs import user_cache_dir, user_config_dir, user_data_dir

from classifier_lens.runner.configuration.value_ranges import Seconds
from classifier_lens.runner.types import UserError, first_line

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
MODE_ALIASES = {"dryrun": "offline", "run": "online"}  # what WANDB_MODE may also say
WANDB_FOLDERS = {
    "WANDB_CACHE_DIR": user_cache_dir,
    "WANDB_CONFIG_DIR": user_config_dir,
    "WANDB_DATA_DIR": user_data_dir,
}
MAX_PROBLEMS = (
    500  # problems of an attempt with curves and pictures: with each section of one W&B takes longer for the next
)
TABLE_COLUMNS = ("name", "source", "target", "predicted_before", "predicted_after", "success", "prompt", "seconds")


class WandbLogger:
    """Weights & Biases, one W&B run per attempt, grouped by the run's key: curves, pictures with the mask of what was
    free to change, a table of the results, the configuration.

    Attempts are not resumed W&B runs: offline, `resume` is ignored and a second run of the same id replaces the first.
    Each of the first `MAX_PROBLEMS` problems has its own section of curves over its own step; the table has all. W&B's
    step counts rows of the whole attempt, since it must never fall; problems of a batch, logged at the same step, share
    a row.
    """

    def __init__(self, mode: str | None, project: str, entity: str | None, timeout: Seconds) -> None:
        """mode: one of `MODES`, None for what WANDB_MODE says or else offline; what cannot be online is offline,
        and says so; timeout: seconds to wait for the server when an attempt starts and ends."""
        if mode not in (*MODES, None):
            raise UserError(f"logger.mode={mode}: allowed are null, {', '.join(MODES)}")
        self.mode = mode_from_environment(os.environ) if mode is None else mode
        self.project, self.entity, self.timeout = project, entity, timeout
        self._run: wandb.Run | None = None
        self._row = 0
        self._step: int | None = None
        self._problems: set[str] = set()
        self._judged, self._successes = 0, 0
        self._lines: list[list[Any]] = []
        self._placed: list[str] = []  # variables of the environment that are this attempt's

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self.finish()
        if self.mode == "disabled" or is_disabled(os.environ):
            return
        self._placed = _keep_within(folder / "wandb")
        try:
            self._begin(folder, config, key, task)
        except BaseException:
            self._release()
            raise
        self._lines = []
        self._row, self._step = 0, None
        self._problems, self._judged, self._successes = set(), 0, 0

    def _begin(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
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

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        if self._run is None or not self._shown(problem):
            return
        self._advance(step)
        curves = {f"{problem}/{name}": value for name, value in values.items()}
        self._run.log({f"{problem}/step": step, **curves}, step=self._row)

    def log_result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        if self._run is None:
            return
        wandb = _import_wandb()
        self._advance(None)
        numbers = {f"result/{k}": float(v) for k, v in record.items() if isinstance(v, (bool, int, float))}
        shown = pictures if self._shown(record["name"]) else {}
        free = _free(shown)
        images = [
            wandb.Image(str(path), caption=name, masks=free if name == "best" else None)
            for name, path in shown.items()
            if path.is_file()
        ]
        self._lines.append([record.get(name) for name in TABLE_COLUMNS])
        panel = {f"pictures/{record['name']}": images} if images else {}
        self._run.log({**numbers, **panel}, step=self._row)
        if isinstance(record.get("success"), bool):
            self._judged, self._successes = self._judged + 1, self._successes + record["success"]
            self._run.summary["success_rate"] = self._successes / self._judged
            self._run.summary["judged"] = self._judged

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
        """The next run of this process has places of its own."""
        for variable in self._placed:
            os.environ.pop(variable, None)
        self._placed = []

    def _shown(self, problem: str) -> bool:
        """Whether a problem has its own section, which the first ones get."""
        if problem not in self._problems and len(self._problems) < MAX_PROBLEMS:
            self._problems.add(problem)
            assert self._run is not None
            self._run.define_metric(f"{problem}/*", step_metric=f"{problem}/step")
        return problem in self._problems

    def _advance(self, step: int | None) -> None:
        """Begin a new row unless `step` is that of the present row; None always begins one."""
        if step is None or step != self._step:
            self._row += 1
        self._step = step


def mode_from_environment(variables: Mapping[str, str]) -> str:
    """The mode that WANDB_MODE names, offline where it names none. Raises UserError for another word."""
    said = variables.get("WANDB_MODE", "").strip().lower() or "offline"
    mode = MODE_ALIASES.get(said, said)
    if mode not in MODES:
        raise UserError(f"WANDB_MODE={said}: allowed are {', '.join(MODES)}; logger=none switches logging off")
    return mode


def is_disabled(variables: Mapping[str, str]) -> bool:
    """Whether WANDB_DISABLED says that nothing is to be logged, whatever the configuration says."""
    return variables.get("WANDB_DISABLED", "").strip().lower() not in ("", "0", "false", "no", "off")


def _keep_within(folder: Path) -> list[str]:
    """Have W&B keep its cache, settings and logs in a folder where it cannot in the user's home: it would tell all of
    them to the console instead. Returns the variables of the environment that say so."""
    placed = []
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
            placed.append(variable)
    return placed


def _free(pictures: Mapping[str, Path]) -> dict[str, Any] | None:
    """What of a picture was free to change, where a mask was saved."""
    if "mask" not in pictures or not pictures["mask"].is_file():
        return None
    with Image.open(pictures["mask"], formats=["PNG"]) as file:
        mask = (np.asarray(file.convert("L")) > 127).astype(np.uint8)
    return {"free": {"mask_data": mask, "class_labels": {0: "kept", 1: "free"}}}


def _import_wandb() -> ModuleType:
    """W&B, imported when first used: it is slow to import. Its crash reports, which go out even offline, stay off."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb
