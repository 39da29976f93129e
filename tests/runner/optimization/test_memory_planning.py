"""Predicted memory, and the batch and recomputation that follow from it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.optimization import memory_planning
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.memory_planning import (
    GIB,
    MemoryFootprint,
    free_memory,
    measure_footprint,
    plan_memory,
    saved_tensor_bytes,
)
from tests.conftest import TinyClassifier

Make = Callable[..., LatentDiffusion]
AUGMENT = RandomCrops(crops=4, noise_std=0.05, power=0.3, min_crop_fraction=0.75, new_crops_per_prediction=False)


def test_what_autograd_keeps_is_counted_once_and_without_the_weights() -> None:
    layer = torch.nn.Linear(10, 20)
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    x = torch.zeros(5, 10, requires_grad=True)
    assert (
        saved_tensor_bytes(lambda: layer(x).relu(), weights) == (5 * 10 + 5 * 20) * 4
    )  # the input, and what relu gives
    y = torch.zeros(7, requires_grad=True)
    assert saved_tensor_bytes(lambda: y * y, set()) == 7 * 4
    assert saved_tensor_bytes(lambda: layer(x.detach()) @ torch.zeros(20, 3), weights) <= (20 * 3 + 5 * 10) * 4


def test_a_footprint_is_that_of_the_graph(make_either: Make, tiny_classifier: TinyClassifier) -> None:
    """Of one image: four steps keep four times what one does; blocks that are computed again keep less."""
    generator = make_either()
    own = measure_footprint(generator, [tiny_classifier], AUGMENT)
    assert generator.gradient_checkpointing == "none" and not generator.networks.unet.is_gradient_checkpointing
    assert 0 < own.step_recomputed < own.step < own.step_with_injection and own.decoding > 0 and own.attention_maps > 0
    course = generator.sampler.sample_inputs(generator.networks, [0], generator.latent_size)
    base = generator.step_embeddings(generator.networks.embed([""]), course)
    embeddings = {name: values.clone().requires_grad_() for name, values in base.items()}
    weights = {p.untyped_storage().data_ptr() for p in generator.networks.unet.parameters()}
    whole = saved_tensor_bytes(lambda: generator.denoise(course["latent"], embeddings, course["noise"]), weights)
    assert whole == pytest.approx(len(generator) * own.step, rel=0.1)


def test_recomputation_keeps_the_graph_from_growing_with_the_steps() -> None:
    own = MemoryFootprint(step=100, step_with_injection=150, step_recomputed=10, decoding=20, attention_maps=5)
    assert own.peak_bytes("none", 20, 4, 10) == 4 * 150 + 16 * 100 + 20 + 14 * 5
    assert own.peak_bytes("step", 20, 0, 0) == own.peak_bytes("step", 50, 0, 0) == 170
    assert own.peak_bytes("block", 20, 0, 0) == 200 + 75 + 20


@pytest.mark.parametrize(
    ("free", "batch", "problems", "wanted"),
    [
        (1000.0, None, 100, (8, "none")),  # no more than are of use
        (1000.0, None, 3, (3, "none")),
        (7.0, None, 100, (5, "none")),
        (4.0, None, 100, (8, "step")),  # few without recomputation are slower than many with it
        (1.0, None, 100, (4, "block")),
        (0.1, None, 100, (1, "block")),  # nothing fits: the least, and it is said
        (4.0, 4, 100, (4, "step")),
        (7.0, 4, 100, (4, "none")),
    ],
)
def test_the_fastest_that_fits(
    free: float, batch: int | None, problems: int, wanted: tuple[int, str], make_generator: Make,
    tiny_classifier: TinyClassifier, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Four fifths of the free memory, in units of an image's graph without recomputation; `step` takes a quarter."""
    unit = 1000
    monkeypatch.setattr(memory_planning, "free_memory", lambda device: int(free * unit))
    monkeypatch.setattr(
        MemoryFootprint,
        "peak_bytes",
        lambda self, mode, *_: {"none": unit, "step": unit // 4, "block": unit // 5}[mode],
    )
    generator = make_generator(gradient_checkpointing="auto")
    chosen = plan_memory(generator, [tiny_classifier], AUGMENT, generator.prompt_to_prompt, 1, batch, problems)
    assert (chosen.batch_size, chosen.gradient_checkpointing) == wanted
    assert ("may not be enough" in str(chosen)) == (chosen.predicted_bytes > chosen.free_bytes)


@pytest.mark.parametrize(
    ("shares", "injected", "recorded"),
    [({}, 2, 2), ({"cross_replace_steps": [0.0]}, 0, 2), ({"cross_replace_steps": [0.8]}, 4, 4)],
)
def test_the_tasks_shares_take_the_place_of_the_generators(
    shares: dict[str, list[float]], injected: int, recorded: int, make_generator: Make,
    tiny_classifier: TinyClassifier, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of Prompt-to-Prompt: the maps of so many of four steps are injected, and recorded for these or the mask."""
    asked: list[tuple[int, ...]] = []

    def graph(self: MemoryFootprint, mode: str, *counts: int) -> int:
        asked.append(counts)
        return 1000

    monkeypatch.setattr(MemoryFootprint, "peak_bytes", graph)
    generator = make_generator(gradient_checkpointing="none")
    assert max(generator.prompt_to_prompt.cross_replace_steps) == 0.5
    plan_memory(generator, [tiny_classifier], AUGMENT, generator.prompt_to_prompt.with_overrides(shares), 1, None, 5)
    assert asked == [(4, injected, recorded)]


def test_a_recomputation_that_is_asked_for_stays(
    make_generator: Make, tiny_classifier: TinyClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_planning, "free_memory", lambda device: 100 * GIB)
    generator = make_generator(gradient_checkpointing="block")
    plan = plan_memory(generator, [tiny_classifier], AUGMENT, generator.prompt_to_prompt, 1, None, 50)
    assert plan.gradient_checkpointing == "block"


def test_the_limits_of_control_groups_and_of_ulimit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, limit, used in ((new / "a", "max", 5), (new / "a/b", "100", 30), (new, "90", 60)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    (new / "a/b/memory.stat").write_text("anon 3\ninactive_file 10\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert sorted(memory_planning._control_groups(new, tmp_path / "own")) == [30, 80]
    (old / "memory/job").mkdir(parents=True)
    (old / "memory/job/memory.limit_in_bytes").write_text("70\n")
    (old / "memory/job/memory.usage_in_bytes").write_text("50\n")
    (old / "memory/job/memory.stat").write_text("total_inactive_file 5\n")
    (tmp_path / "own").write_text("5:cpu:/job\n4:memory:/job\n")
    assert memory_planning._control_groups(old, tmp_path / "own") == [25]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (GIB, resource.RLIM_INFINITY))
    assert 0 <= free_memory(torch.device("cpu")) < GIB
