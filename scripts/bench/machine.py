"""Names of the machine of a measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine_name() -> str:
    """The GPU's name, or the processor's and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """The processor's name if the system has it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
