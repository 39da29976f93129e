"""Seconds, memory and operations of calls in this process."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Seconds of a call by part.
PartSeconds = dict[str, float]


def seconds(compute: Callable[[], object]) -> float:
    """The duration of a call, including its work on the GPU."""
    synchronize()
    started = time.perf_counter()
    compute()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_interleaved(calls: Mapping[str, Callable[[], PartSeconds]], repeats: int) -> dict[str, PartSeconds]:
    """Medians by call and part; the calls take turns, so that a slower machine slows all of them."""
    runs: dict[str, list[PartSeconds]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, run in calls.items():
            runs[name].append(run())
    return {name: {part: median(r[part] for r in parts) for part in parts[0]} for name, parts in runs.items()}


def peak_memory(compute: Callable[[], object]) -> int:
    """Peak bytes during a call, of the GPU or of this process, including memory in use before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        compute()
        return torch.cuda.max_memory_allocated()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that was not returned would hide a part
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    compute()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


class _Counter(TorchDispatchMode):
    """Adds up torch's FLOP formulas over all calls. Torch's `FlopCounterMode` also tracks modules, by hooks that fail
    with frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_macs(compute: Callable[[], object]) -> int:
    """Multiply-adds of a call's matrix products, convolutions and attention."""
    with _Counter() as counter:
        compute()
    return counter.flops // 2


def matmul_throughput(device: torch.device, dtype: torch.dtype, side: int | None = None, repeats: int = 5) -> float:
    """Multiply-adds per second of a square matrix product, the fastest of `repeats`. side: None for a size that
    occupies the device."""
    side = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: a @ b) for _ in range(repeats + 1)]
    return side**3 / min(times[1:])


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Intercept and slope of a least-squares line, and its R²."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    intercept = mean_y - slope * mean_x
    unexplained = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return intercept, slope, 1 - unexplained / max(sum((b - mean_y) ** 2 for b in y), 1e-12) if n > 1 else 0.0
