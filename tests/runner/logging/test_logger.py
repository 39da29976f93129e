"""Loggers leave their traces in the run folder alone; progress reads well with and without a terminal."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from classifier_lens.runner.cluster.signals import RunStopped
from classifier_lens.runner.logging import wandb_logger
from classifier_lens.runner.logging.logger import Logger, NullLogger, SafeLogger
from classifier_lens.runner.logging.loop_progress import show_progress, track_progress
from classifier_lens.runner.logging.progress_bar import (
    ProgressEstimate,
    abbreviate,
    format_duration,
    preparing,
    progress,
)
from classifier_lens.runner.logging.tensorboard_logger import TensorBoardLogger
from classifier_lens.runner.logging.wandb_logger import WANDB_FOLDERS, WandbLogger, is_disabled, mode_from_environment
from classifier_lens.runner.types import UserError
from tests.wandb_file import OfflineRun, read_offline

CONF = Path(__file__).parents[3] / "conf" / "logger"


def offline() -> WandbLogger:
    return WandbLogger(mode="offline", project="classifier-lens", entity=None, timeout=5.0)


def use(logger: Logger, folder: Path) -> None:
    """One attempt of two problems in one batch and a third in another."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "result.png"
    Image.new("RGB", (8, 8), "teal").save(image)
    logger.start(folder, {"seed": 0}, key="c0ffee", task="uvce")
    for names in (("a", "b"), ("c",)):
        for step in range(3):
            for name in names:
                logger.log_step(name, step, {"total": 1.0 / (step + 1), "confidence": 0.3 * step})
        for name in names:
            record: dict[str, Any] = {"name": name, "success": name != "b", "seconds": 2.5, "source": "x"}
            logger.log_result(record, {"result": image, "mask": folder / "absent.png"})
    logger.finish()
    logger.finish()


def test_none_logs_nothing(tmp_path: Path) -> None:
    use(NullLogger(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


def test_finish_before_start() -> None:
    offline().finish()
    NullLogger().finish()


def test_unknown_mode() -> None:
    with pytest.raises(UserError, match="logger.mode=on: allowed are null, offline, online, disabled"):
        WandbLogger(mode="on", project="p", entity=None, timeout=1.0)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, and no account at W&B."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def offline_runs(folder: Path) -> list[OfflineRun]:
    return [read_offline(path) for path in sorted(folder.glob("wandb/offline-run-*"))]


def test_offline_attempts_lie_in_the_run_folder(nobody: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = offline()
    for folder in (nobody / "one", nobody / "one", nobody / "two"):
        use(logger, folder)
    assert {path.name for path in nobody.iterdir()} == {"one", "two"}
    assert capfd.readouterr() == ("", "")
    attempts = [*offline_runs(nobody / "one"), *offline_runs(nobody / "two")]
    assert sorted(run.job_type for run in attempts) == ["attempt-1", "attempt-1", "attempt-2"]
    for run in attempts:
        assert run.name == f"uvce-c0ffee-{run.job_type[-1]}" and run.group == "c0ffee" and run.config["seed"] == 0
        # Two problems share three rows and the third has its own; then a row per result, and one of the table.
        assert [row["_step"] for row in run.rows] == list(range(1, 11)) and run.exit_code == 0
        curve = [(row["c/step"], row["c/total"]) for row in run.rows if "c/step" in row]
        assert curve == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
        assert run.summary["success_rate"] == pytest.approx(2 / 3) and run.rows[-1]["results.nrows"] == 3
        assert [row["images/b.captions"] for row in run.rows if "images/b.count" in row] == [["Counterfactual"]]
    for path in nobody.glob("*/wandb/offline-run-*"):
        assert len(list(path.glob("files/media/images/**/*.png"))) == 3
        (table,) = path.glob("files/media/table/*.json")
        assert [line[0] for line in json.loads(table.read_text())["data"]] == ["a", "b", "c"]


def test_the_first_problems_have_curves_and_images_and_all_are_in_the_table(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_logger, "MAX_PROBLEMS", 2)
    use(offline(), nobody)
    (run,) = offline_runs(nobody)
    keys = {key.partition(".")[0] for row in run.rows for key in row}
    assert {"a/total", "b/total", "images/a", "images/b"} <= keys and not keys & {"c/total", "images/c"}
    assert run.rows[-1]["results.nrows"] == 3 and run.summary["success_rate"] == pytest.approx(2 / 3)
    assert [row["result/seconds"] for row in run.rows if "result/seconds" in row] == [2.5] * 3


def test_places_of_an_attempt_end_with_it(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the home cannot be written, what W&B keeps lies in the run's folder, and the next run's in that one's."""
    (nobody.parent / "home").touch()
    before, logger = dict(os.environ), offline()
    for folder in (nobody / "one", nobody / "two"):
        folder.mkdir()
        logger.start(folder, {}, key="k", task="uvce")
        assert {os.environ[variable] for variable in WANDB_FOLDERS} == {str(folder / "wandb")}
        logger.finish()
        assert {key for key in os.environ if key not in before} <= {"WANDB_ERROR_REPORTING", "WANDB_SERVICE"}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        logger.start(nobody / "three", {}, key="k", task="uvce")
    assert not set(WANDB_FOLDERS) & set(os.environ)


def test_a_broken_logger_gives_back_what_it_holds(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(NullLogger):
        finished = 0

        def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
            raise OSError("disk")

        def finish(self) -> None:
            self.finished += 1

    unfailing = SafeLogger(broken := Broken())
    for step in range(2):
        unfailing.log_step("a", step, {})
    unfailing.finish()
    assert broken.finished == 1 and capfd.readouterr().err == "logger: disk; logging ends, the run goes on\n"


def test_the_editable_region_is_a_mask_of_the_result(nobody: Path) -> None:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    mask.save(nobody / "mask.png")
    Image.new("RGB", (8, 8), "teal").save(nobody / "result.png")
    logger = offline()
    logger.start(nobody, {}, key="k", task="uvce")
    logger.log_result({"name": "a"}, {"result": nobody / "result.png", "mask": nobody / "mask.png"})
    logger.finish()
    (saved,) = nobody.glob("wandb/offline-run-*/files/media/images/mask/**/*.png")
    with Image.open(saved) as file:
        assert np.bincount(np.asarray(file).ravel()).tolist() == [32, 32]
    (run,) = offline_runs(nobody)
    assert any("images/a.all_masks" in key for row in run.rows for key in row)


@pytest.mark.parametrize("trouble", ["no key", "wrong key", "dead network"])
def test_an_attempt_that_cannot_be_online_is_offline(
    trouble: str, nobody: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if trouble != "no key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40 if trouble == "dead network" else "short")
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    use(WandbLogger(mode="online", project="p", entity=None, timeout=2.0), nobody)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("logger.mode=online: ") and line.endswith("logged offline; `wandb sync` sends it later")
    (run,) = offline_runs(nobody)
    assert len(run.rows) == 10


class Broken(NullLogger):
    """A logger whose disk is full from some call on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_logger_in_trouble_is_told_once_and_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    use(SafeLogger(Broken(2)), tmp_path)
    assert capfd.readouterr().err == "logger: [Errno 28] No space left on device; logging ends, the run goes on\n"
    use(SafeLogger(Broken(100)), tmp_path)
    assert capfd.readouterr().err == ""


def test_a_signal_is_no_trouble_of_a_logger(tmp_path: Path) -> None:
    class Signalled(NullLogger):
        def log_step(self, problem: str, step: int, values: Mapping[str, float]) -> None:
            raise RunStopped("SIGTERM")

    with pytest.raises(RunStopped):
        use(SafeLogger(Signalled()), tmp_path)


def test_tensorboard_is_told_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger()
    use(logger, tmp_path)
    use(logger, tmp_path)
    attempts = sorted((tmp_path / "tensorboard").iterdir())
    assert [path.name for path in attempts] == ["attempt-1", "attempt-2"]
    for path in attempts:
        events = EventAccumulator(str(path)).Reload()
        curve = [(event.step, event.value) for event in events.Scalars("c/total")]
        assert curve == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
        assert [event.value for event in events.Scalars("result/success")] == [1.0, 0.0, 1.0]
        assert events.Tags()["images"] == ["a/result", "b/result", "c/result"]
        assert "seed: 0" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="logger=tensorboard: its package is not installed"):
        TensorBoardLogger()


@pytest.mark.parametrize(
    ("option", "kind"), [("wandb", WandbLogger), ("tensorboard", TensorBoardLogger), ("none", NullLogger)]
)
def test_options_build_loggers(option: str, kind: type) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    assert isinstance(config, dict)
    module, name = str(config.pop("_target_")).rsplit(".", 1)
    assert (module, name) == (kind.__module__, kind.__name__)
    kind(**{str(key): value for key, value in config.items()})


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_goes_by_the_last_batches() -> None:
    clock = Clock()
    pace = ProgressEstimate(total=24, done=4, clock=clock)
    clock.now = 1000.0  # what was done before the first batch tells nothing
    pace.start_batch(2)
    pace.step(10, 20)
    assert [pace.completed, pace.eta] == [5, None]
    clock.now += 60
    pace.advance(2)
    assert (pace.done, pace.eta) == (6, "9:00")
    for seconds in (10, 10, 10):  # the first one was slow
        pace.start_batch(2)
        clock.now += seconds
        pace.advance(2)
    assert (pace.done, pace.eta) == (12, "1:00")
    pace.start_batch(2)
    clock.now += 4
    assert pace.eta == "0:56"
    clock.now += 60
    assert pace.eta == "0:50", "all but the present batch, which takes longer than those before"


def test_the_time_left_is_shorter_where_others_help() -> None:
    clock = Clock()
    pace = ProgressEstimate(total=12, done=0, clock=clock)
    pace.start_batch(2)
    clock.now = 10.0
    pace.advance(2)
    pace.advance(4)  # seen when the own batch had ended
    assert (pace.done, pace.eta) == (6, "0:30")
    pace.start_batch(2)
    clock.now = 20.0
    pace.advance(2)
    assert (pace.done, pace.eta) == (8, "0:10")
    pace.advance(4)
    assert pace.eta == "0:00"


def test_long_counts_are_told_now_and_then() -> None:
    clock, messages = Clock(), list[str]()
    with show_progress(messages.append, interval=10.0, clock=clock):
        for i in track_progress(range(0, 640, 64), "images are looked at", 64):
            assert i % 64 == 0
            clock.now += 4.0
    assert messages == [
        "192 of 640 images are looked at",
        "384 of 640 images are looked at",
        "576 of 640 images are looked at",
    ]
    assert list(track_progress([3, 4], "x")) == [3, 4] and len(messages) == 3, "without a context nothing is reported"


def test_a_preparation_is_told_in_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifier_lens.runner.logging.progress_bar.LOG_INTERVAL", 0.0)
    stream = io.StringIO()
    with preparing(Console(file=stream)):
        list(track_progress(range(2), "words are generated"))
    assert stream.getvalue().splitlines() == [f"preparing: {i} of 2 words are generated" for i in range(2)]
    with preparing(Console(file=io.StringIO(), force_terminal=True)):
        list(track_progress(range(2), "words are generated"))


def walk(console: Console) -> None:
    with progress(4, 1, console, Clock()) as shown:
        shown.start_batch(["crab", "shark", "[red]boat"])
        shown.set_phase("preparing")
        shown.message("shark: the mask of '[bold]shark' was empty")
        for k in range(1, 21):
            shown.step(k, 20, loss=2.0 / k, confidence=0.05 * k)
        shown.advance(3)


def test_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    walk(Console(file=stream))
    assert stream.getvalue().splitlines() == [
        "batch of 3: crab, shark and 1 more",
        "  preparing",
        "  shark: the mask of '[bold]shark' was empty",
        "  step 5/20  loss 0.400  confidence 0.25",
        "  step 10/20  loss 0.200  confidence 0.50",
        "  step 15/20  loss 0.133  confidence 0.75",
        "  step 20/20  loss 0.100  confidence 1.00",
        "4 of 4 problems done, ETA 0:00",
    ]


def test_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    walk(Console(file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False))
    last = stream.getvalue().splitlines()[-3:-1]
    lines = [line for line in stream.getvalue().splitlines() if "shark: the mask of '[bold]shark' was empty" in line]
    assert len(lines) == 1, "reported once, without markup of the bar, and not overwritten"
    assert "4/4  ETA 0:00" in last[0]
    assert "step 20/20  loss 0.100  confidence 1.00" in last[1]


def test_words() -> None:
    assert abbreviate(["a"]) == "a"
    assert abbreviate(["a", "b", "c", "d"]) == "a, b and 2 more"
    assert [format_duration(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


# --- what W&B's own variables say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "mode"), [("", "offline"), ("online", "online"), ("Disabled", "disabled"), ("dryrun", "offline")]
)
def test_without_a_mode_of_its_own_the_environments_counts(
    value: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mode_from_environment({"WANDB_MODE": value}) == mode
    monkeypatch.setenv("WANDB_MODE", value)
    assert WandbLogger(mode=None, project="p", entity=None, timeout=1.0).mode == mode
    assert WandbLogger(mode="offline", project="p", entity=None, timeout=1.0).mode == "offline"


def test_an_unknown_mode_of_the_environment_is_refused() -> None:
    with pytest.raises(UserError, match="WANDB_MODE=of: allowed are offline, online, disabled"):
        mode_from_environment({"WANDB_MODE": "of"})


@pytest.mark.parametrize(
    ("value", "off"), [("true", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("", False)]
)
def test_what_switches_logging_off(value: str, off: bool) -> None:
    assert is_disabled({"WANDB_DISABLED": value}) is off
    assert not is_disabled({})


@pytest.mark.parametrize(("mode", "variables"), [("disabled", {}), ("offline", {"WANDB_DISABLED": "true"})])
def test_nothing_is_logged_where_it_is_switched_off(
    mode: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    use(WandbLogger(mode=mode, project="p", entity=None, timeout=1.0), tmp_path)
    assert not list(tmp_path.rglob("*wandb*"))
