"""Commands of run.py on the tiny pipeline: within this process, or in one of its own that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from classifier_lens.data import planted

ROOT = Path(__file__).resolve().parent.parent

# What chooses a consistency model, which inverts without a null text.
CONSISTENCY = {"sampler=lcm", "task=diffexplainer_class", "task=spurious_audit"}

# The steps of an optimization take as long as the environment says: runs of tests of SLURM last without computing.
NETWORK = """
import os
import time

import torch


class Quarters(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 10)
        with torch.no_grad():
            self.linear.weight.copy_(4 * torch.randn(10, 12, generator=torch.Generator().manual_seed(0)))
            self.linear.bias.zero_()

    def forward(self, images):
        if images.requires_grad and "SECONDS_PER_STEP" in os.environ:
            time.sleep(float(os.environ["SECONDS_PER_STEP"]))
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1))


network = Quarters()
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said on the error stream."""
        return self.err.strip().splitlines()


@dataclass(frozen=True)
class Cli:
    """`python run.py` with the tiny generator and a network of the user's own, into one folder of outputs; student: the
    folder with the UNet of a tiny consistency model."""

    pipeline: Path
    student: Path
    network: Path
    labels: Path
    outputs: Path

    @staticmethod
    def at(folder: Path, pipeline: Path, student: Path) -> Cli:
        """Commands whose network, labels and outputs lie in a folder."""
        network, labels = folder / "quarters.py", folder / "names.txt"
        network.write_text(NETWORK)
        labels.write_text("\n".join(planted.CLASSES) + "\n")
        return Cli(pipeline, student, network, labels, folder / "outputs")

    def arguments(self, *overrides: str) -> list[str]:
        """The command's words; later overrides win over the tiny settings."""
        tiny: dict[str, object] = {
            "generator.path": self.pipeline,
            "generator.resolution": 16,
            "generator.steps": 3,
            "generator.attention_maps.resolution": 8,
            "classifier": "callable",
            "classifier.target": f"{self.network}:network",
            "classifier.labels": self.labels,
            "classifier.size": 16,
            "optimizer.steps": 3,
            "augment.crops": 2,
            "logger": "none",
            "threads": 1,
            "outputs": self.outputs,
        }
        if not CONSISTENCY & set(overrides):
            tiny["generator.null_text.inner_steps"] = 2
        given = {override.split("=", 1)[0].lstrip("+~") for override in overrides}
        if "classifier" in given:
            given |= {key for key in tiny if key.startswith("classifier.")}
        return [f"{key}={value}" for key, value in tiny.items() if key not in given] + list(overrides)

    def here(self, capfd: pytest.CaptureFixture[str], *overrides: str) -> Outcome:
        """Run in this process, as `python run.py` would; leaves no trace in it."""
        return self.plain(capfd, *self.arguments(*overrides))

    def plain(self, capfd: pytest.CaptureFixture[str], *words: str) -> Outcome:
        """`python run.py` with these words alone."""
        capfd.readouterr()
        return Outcome(self.code(*words), *capfd.readouterr())

    @staticmethod
    def code(*words: str) -> int:
        """The exit code of `python run.py` with these words alone, in this process."""
        argv = sys.argv
        try:
            sys.argv = [str(ROOT / "run.py"), *words]
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        finally:
            sys.argv = argv
        return 0

    def launch(self, log: Path, *overrides: str) -> ForkServerProcess:
        """Start in a process of its own, whose packages are imported already; its output goes to `log`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
        process = context.Process(target=_command, args=(self.arguments(*overrides), str(log)))
        process.start()
        return process

    def finish(self, log: Path, *overrides: str, timeout: float = 300.0) -> int:
        """Run to the end in a process of its own; returns the exit code."""
        process = self.launch(log, *overrides)
        process.join(timeout)
        assert process.exitcode is not None, f"still running after {timeout} s"
        return process.exitcode

    @property
    def folder(self) -> Path:
        """The one run folder that there is."""
        (status,) = self.outputs.glob("*/*/*/status.json")
        return status.parent


def _command(words: Sequence[str], log: str) -> None:
    """The whole of a launched process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1)
    sys.stderr = open(2, "w", closefd=False, buffering=1)
    sys.argv = [str(ROOT / "run.py"), *words]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
