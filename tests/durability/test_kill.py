"""A run that is killed again and again ends with the files of one that was left alone."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli import Cli

COMMAND = ("limit=2", "batch=1", "optimizer.steps=6", "checkpoint.every=2")


def leavings(folder: Path) -> dict[str, bytes]:
    """All pictures and the results, the seconds aside."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
    text = (folder / "results.jsonl").read_bytes()
    assert text.count(b'"seconds": ') == text.count(b"\n") > 0
    return files | {"results.jsonl": re.sub(rb'"seconds": [0-9.e-]+', b"", text)}


def in_progress(cli: Cli) -> bool:
    """Whether the run has saved the state of a batch that it has not finished."""
    return any(cli.outputs.glob("*/*/*/state/*.safetensors"))


def kill_and_compare(cli: Cli, tmp_path: Path, kills: int) -> None:
    """Kill runs into fresh folders `kills` times, first in the middle of a batch, then at random moments; each command
    continues what the last one left."""
    log = tmp_path / "log"
    calm = replace(cli, outputs=tmp_path / "calm")
    assert calm.finish(log, *COMMAND, "--cfg", "job") == 0, "the process that others are forked from has started"
    began = time.monotonic()
    assert calm.finish(log, *COMMAND) == 0, log.read_text()
    duration = time.monotonic() - began
    expected = leavings(calm.folder)
    assert len(expected) == 2 * 5 + 1

    moment, killed, rounds, in_the_middle = random.Random(0), 0, 0, 0
    while killed < kills:
        assert rounds < 5 * kills, "kills come too late"
        worn = replace(cli, outputs=tmp_path / f"worn-{rounds}")
        rounds += 1
        code = None
        while code != 0:
            began, process = time.monotonic(), worn.launch(log, *COMMAND)
            if code is None and killed < kills:
                while process.is_alive() and not in_progress(worn):
                    process.join(0.001)
            else:
                process.join(moment.uniform(0.1, 1.0) * duration if killed < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                killed += 1
                in_the_middle += in_progress(worn)
            else:  # the machine is faster than it was
                duration = min(duration, time.monotonic() - began)
            code = process.exitcode
            assert code in (0, -9), log.read_text()
        assert leavings(worn.folder) == expected
        assert not list(worn.folder.glob("state/*.safetensors"))
    assert in_the_middle, "at least one kill must have met a batch in progress"


def test_two_kills_change_nothing(cli: Cli, tmp_path: Path) -> None:
    """One in the middle of a batch and one at a random moment."""
    kill_and_compare(cli, tmp_path, 2)


@pytest.mark.slow
def test_twenty_kills_change_nothing(cli: Cli, tmp_path: Path) -> None:
    kill_and_compare(cli, tmp_path, 20)
