"""The records of an offline run of Weights & Biases, read from its file.

It is a LevelDB log: blocks of 32 KiB, of which the first begins with the file's own header; a record that does not fit
is continued in the next block.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

RECORD: Any = vars(wandb_internal_pb2)["Record"]  # made when the module is imported, so that nobody sees its type
BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What an offline run would send: its name, group and kind of job, its settings, and the rows of its history."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def records(path: Path) -> Iterator[Any]:
    """Every record of a .wandb file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little is left of the block for a header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if at + HEADER + length > len(data):  # still being written
            return
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield RECORD.FromString(parts)


def read_offline(folder: Path, patience: float = 20.0) -> OfflineRun:
    """The run of an `offline-run-…` folder, whose file a process of W&B's own may still be writing when the run has
    finished: it is waited for, `patience` seconds."""
    deadline = time.monotonic() + patience
    while (run := _read(folder)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return run


def _read(folder: Path) -> OfflineRun:
    (path,) = folder.glob("*.wandb")
    run = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group, run.job_type = record.run.display_name, record.run.run_group, record.run.job_type
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            run.rows.append({"_step": record.history.step.num, **items})
        elif kind == "summary":
            run.summary |= {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update
            }
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run
