"""Devices and floating-point types by name."""

from __future__ import annotations

import pytest
import torch

from classifier_lens.models.devices import parse_device, parse_dtype
from classifier_lens.runner.types import UserError


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize(
    ("gpus", "names"), [(0, ["cpu"]), (1, ["cpu", "cuda", "cuda:0"]), (2, ["cpu", "cuda", "cuda:0", "cuda:1"])],
    indirect=["gpus"],
)  # fmt: skip
def test_available_devices_are_allowed_and_no_others(gpus: int, names: list[str]) -> None:
    assert parse_device("device", "auto") == torch.device("cuda" if gpus else "cpu")
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "mps", "gpu", 0, 1, None, "", "CUDA", "cuda:-1"):
        if name in names:
            assert parse_device("device", name) == torch.device(str(name))
        else:
            with pytest.raises(UserError, match=rf"^device={name}: .* auto, {', '.join(names)} \(.*{gpus} CUDA"):
                parse_device("device", name)


def test_floating_point_types() -> None:
    assert parse_dtype("generator.dtype", "bfloat16") is torch.bfloat16
    for name in ("fp16", "half", "bf16", "float64", "int8", 16, None):
        with pytest.raises(UserError, match=rf"^generator.dtype={name}: allowed are float32, float16, bfloat16$"):
            parse_dtype("generator.dtype", name)
