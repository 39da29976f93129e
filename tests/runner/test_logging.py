"""Loggers leave their traces in the run folder alone; progress reads well with and without a terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from runner.logging import Logger, NoLogger, Pace, WandbLogger, duration, progress, shortened
from runner.types import UserError

CONF = Path(__file__).parents[2] / "conf" / "logger"


def offline() -> WandbLogger:
    return WandbLogger(mode="offline", project="classifier-lens", entity=None, timeout=5.0)


def use(logger: Logger, folder: Path) -> None:
    """One attempt of two problems in one batch and a third in another."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "best.png"
    Image.new("RGB", (8, 8), "teal").save(picture)
    logger.start(folder, {"seed": 0}, key="c0ffee", task="uvce")
    for names in (("a", "b"), ("c",)):
        for step in range(3):
            for name in names:
                logger.log(name, step, {"total": 1.0 / (step + 1), "confidence": 0.3 * step})
        for name in names:
            record: dict[str, Any] = {"name": name, "success": name != "b", "seconds": 2.5, "source": "x"}
            logger.result(record, {"best": picture, "mask": folder / "absent.png"})
    logger.finish()
    logger.finish()


def test_none_logs_nothing(tmp_path: Path) -> None:
    use(NoLogger(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.png"]


def test_finish_before_start() -> None:
    offline().finish()
    NoLogger().finish()


def test_unknown_mode() -> None:
    with pytest.raises(UserError, match="logger.mode=on: allowed are offline, online"):
        WandbLogger(mode="on", project="p", entity=None, timeout=1.0)


def test_offline_attempts_lie_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    logger = offline()
    for folder in (tmp_path / "one", tmp_path / "one", tmp_path / "two"):
        use(logger, folder)
    attempts = {name: sorted((tmp_path / name / "wandb").glob("offline-run-*")) for name in ("one", "two")}
    assert {name: len(paths) for name, paths in attempts.items()} == {"one": 2, "two": 1}
    for paths in attempts.values():
        for path in paths:
            assert next(path.glob("*.wandb")).stat().st_size > 0
            assert len(list(path.glob("files/media/images/**/*.png"))) == 3
    texts = [next(path.glob("*.wandb")).read_bytes() for path in attempts["one"]]
    assert b"attempt-1" in texts[0] + texts[1] and b"attempt-2" in texts[0] + texts[1]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    assert capfd.readouterr() == ("", "")


def test_online_without_a_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logger = WandbLogger(mode="online", project="p", entity=None, timeout=1.0)
    with pytest.raises(UserError) as caught:
        logger.start(tmp_path, {}, key="k", task="uvce")
    assert str(caught.value).startswith("logger.mode=online: No API key configured")
    assert "\n" not in str(caught.value)
    logger.log("a", 0, {"total": 1.0})
    logger.finish()


@pytest.mark.parametrize(("option", "kind"), [("wandb", WandbLogger), ("none", NoLogger)])
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


def test_eta_counts_only_this_attempt() -> None:
    clock = Clock()
    pace = Pace(total=8, done=4, clock=clock)
    assert pace.eta == "?"
    pace.batch(2)
    clock.now = 30.0
    pace.step(10, 20)
    assert pace.progressed == 5
    assert pace.eta == "1:30"
    clock.now = 60.0
    pace.finished(2)
    assert (pace.done, pace.eta) == (6, "1:00")


def walk(console: Console) -> None:
    with progress(4, 1, console, Clock()) as shown:
        shown.batch(["crab", "shark", "[red]boat"])
        shown.phase("preparing")
        shown.say("shark: the mask of '[bold]shark' was empty")
        for k in range(1, 21):
            shown.step(k, 20, loss=2.0 / k, confidence=0.05 * k)
        shown.finished(3)


def test_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    walk(Console(file=stream))
    assert stream.getvalue().splitlines() == [
        "batch of 3: crab, shark and 1 more",
        "  preparing",
        "  shark: the mask of '[bold]shark' was empty",
        "  step 5/20  loss 0.400  confidence 0.25  ETA 0:00",
        "  step 10/20  loss 0.200  confidence 0.50  ETA 0:00",
        "  step 15/20  loss 0.133  confidence 0.75  ETA 0:00",
        "  step 20/20  loss 0.100  confidence 1.00  ETA 0:00",
        "4 of 4 problems done, ETA 0:00",
    ]


def test_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    walk(Console(file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False))
    last = stream.getvalue().splitlines()[-3:-1]
    said = [line for line in stream.getvalue().splitlines() if "shark: the mask of '[bold]shark' was empty" in line]
    assert len(said) == 1, "said once, in words that mean nothing to the bar, and not drawn over"
    assert "4/4  ETA 0:00" in last[0]
    assert "step 20/20  loss 0.100  confidence 1.00" in last[1]


def test_words() -> None:
    assert shortened(["a"]) == "a"
    assert shortened(["a", "b", "c", "d"]) == "a, b and 2 more"
    assert [duration(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
