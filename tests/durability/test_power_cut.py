"""After a power cut the same command continues: what was reported as done is there."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.durability.test_kill import leavings

WORDS = ("limit=4", "batch=2", "optimizer.steps=8", "checkpoint.every=2")
SHUTDOWN, WITHOUT_FLUSHING = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN and its flag


@dataclass(frozen=True)
class Disk:
    """A file system in a file, which can lose what was not synchronized."""

    image: Path
    place: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True, capture_output=True)

    def unmount(self) -> None:
        for _ in range(50):  # a process that was killed may still hold a file
            if subprocess.run(["umount", self.place], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.place} cannot be unmounted")

    def cut(self) -> None:
        """Nothing that is in memory only reaches the disk any more."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING))
        finally:
            os.close(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk that can be cut off needs root and mkfs.ext4")
    found = Disk(tmp_path / "image", tmp_path / "disk")
    found.place.mkdir()
    with open(found.image, "wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", found.image], check=True)
    try:
        found.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device can be mounted here: {error.stderr.decode().strip()}")
    yield found
    found.unmount()


RESULTS, STATES = "*/*/*/images/*/result.json", "*/*/*/state/*.safetensors"


@pytest.mark.slow
def test_power_cuts_change_nothing(disk: Disk, cli: Cli, tmp_path: Path) -> None:
    log, moment = tmp_path / "log", random.Random(0)
    calm = replace(cli, outputs=tmp_path / "calm")
    assert calm.finish(log, *WORDS) == 0, log.read_text()
    worn = replace(cli, outputs=disk.place / "outputs")
    for files, count in ((RESULTS, 1), (STATES, 1), (RESULTS, 3)):  # at the sight of so many
        shutil.rmtree(worn.outputs, ignore_errors=True)
        os.sync()
        process = worn.launch(log, *WORDS)
        while process.is_alive() and len(list(worn.outputs.glob(files))) < count:
            process.join(0.001)
        process.join(moment.uniform(0.0, 0.05))
        disk.cut()
        process.kill()
        process.join()
        disk.unmount()
        disk.mount()
        empty = [path for path in worn.outputs.rglob("*") if path.is_file() and not path.stat().st_size]
        assert not [path for path in empty if not path.name.startswith(".") and path.name != "results.jsonl"]
        assert worn.finish(log, *WORDS) == 0, log.read_text()
        assert leavings(worn.folder) == leavings(calm.folder)
