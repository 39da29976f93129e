"""Distilling a consistency model: the trajectories, both forms of the student, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from classifier_lens.models.generator.noise_schedule import predict_x0
from classifier_lens.models.generator.pipeline.networks import load_networks
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train import distill_lcm
from classifier_lens.scripts.train.distill_lcm import (
    ROOT,
    ConsistencyFunction,
    full_student,
    load_trajectory_points,
    lora_student,
    main,
    solve_trajectory,
)

SETTINGS: dict[str, Any] = {
    "revision": None,
    "variant": None,
    "dtype": "float32",
    "device": "cpu",
    "download_hint": "get them",
}
SMALL = (
    "minutes=0.03",
    "device=cpu",
    "trajectories=8",
    "block_size=4",
    "student_batch=4",
    "original_inference_steps=10",
    "stride=2",
)


def distilled(teacher: Path, folder: Path, data: str, *more: str) -> Path:
    places = (f"teacher={teacher}", f"out={folder / 'out'}", f"work={folder / 'work'}")
    main([f"data={data}", *SMALL, *places, *more])
    return folder


@pytest.fixture(scope="module")
def student(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilled(tiny_folder, tmp_path_factory.mktemp("full"), "planted", "unet.time_cond_proj_dim=8")


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilled(tiny_folder, tmp_path_factory.mktemp("lora"), "cifar10", "lora.rank=2")


def test_a_trajectory_of_a_perfect_teacher_ends_where_its_noise_came_from() -> None:
    """Noise that follows from the latent and a fixed end: every point then lies on the straight line to it."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", final_sigmas_type="zero"
    )
    end, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    alphas = scheduler.alphas_cumprod

    def predict(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        a = alphas[int(t)]
        return (z - a.sqrt() * end.repeat(2, 1, 1, 1)) / (1 - a).sqrt()

    times = [999, 799, 599, 399, 199]
    start = alphas[999].sqrt() * end + (1 - alphas[999]).sqrt() * noise
    text = torch.zeros(3, 1, 1)
    points, found = solve_trajectory(predict, start, text, text, torch.tensor([1.0, 3.0, 6.0]), times, scheduler)
    torch.testing.assert_close(found, end, rtol=0, atol=1e-4)
    for i, t in enumerate(times):
        torch.testing.assert_close(predict_x0(points[:, i], noise, alphas[t]), end, rtol=0, atol=2e-2)


def test_the_guidance_of_a_trajectory_is_its_own() -> None:
    scheduler = DPMSolverMultistepScheduler(final_sigmas_type="zero")
    z, text = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1), 2.0)

    def predict(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return text.mean(dim=(1, 2))[:, None, None, None] * torch.ones_like(z)

    together = solve_trajectory(
        predict, z, text, torch.zeros_like(text), torch.tensor([1.0, 4.0]), [900, 500, 100], scheduler
    )[1]
    for i, w in enumerate((1.0, 4.0)):
        alone = solve_trajectory(
            predict, z[:1], text[:1] * w, text[:1] * w, torch.tensor([1.0]), [900, 500, 100], scheduler
        )[1]
        torch.testing.assert_close(together[i : i + 1], alone)


def test_blocks_are_drawn_once_and_pairs_belong_together(
    student: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = student / "work" / "trajectories"
    files = sorted(folder.glob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in files]
    distilled(tiny_folder, student, "planted", "part=trajectories")
    assert len(files) == 2 and [path.stat().st_mtime_ns for path in files] == before
    pairs, blocks = load_trajectory_points(folder), [load_file(path) for path in files]
    assert len(pairs.ends) == len(pairs.guidance_scale) == len(pairs.tokens) == 16, "8 from noise, 8 from a noised end"
    block = blocks[0]
    n = len(block["times"])
    assert torch.equal(pairs.points[: 4 * n], block["points"].flatten(0, 1))
    assert torch.equal(pairs.times[:n], block["times"]) and pairs.trajectory_index[: 4 * n].tolist() == [
        i for i in range(4) for _ in range(n)
    ]
    later = pairs.trajectory_index == 4  # the first that starts from a noised end
    assert torch.equal(pairs.points[later], block["later_points"][0]) and torch.equal(
        pairs.ends[4], block["later_ends"][0]
    )
    assert torch.equal(pairs.guidance_scale[:4], pairs.guidance_scale[4:8]) and torch.equal(
        pairs.tokens[:4], pairs.tokens[4:8]
    )
    assert (
        (pairs.guidance_scale >= 1).all()
        and (pairs.guidance_scale <= 6).all()
        and set(pairs.times.tolist()) <= set(range(99, 1000, 100))
    )
    assert not torch.equal(blocks[0]["points"], blocks[1]["points"])


def test_a_student_begins_as_its_teacher_whatever_scale_it_is_told(tiny_pipe: StableDiffusionPipeline) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "train" / "lcm_planted.yaml")
    cfg.unet.slim = False
    unet = tiny_pipe.unet.eval()
    z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 40, 16)
    t, alphas = torch.tensor([500, 20]), tiny_pipe.scheduler.alphas_cumprod
    with torch.no_grad():
        known = unet(z, t, text).sample
        own = ConsistencyFunction(full_student(unet, cfg).eval(), alphas)
        found = [own(z, t, text, torch.full((2,), w)) for w in (1.0, 5.0)]
    assert torch.equal(*found)
    a = alphas[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(found[0], predict_x0(z, known, a), rtol=1e-3, atol=1e-3)


def test_a_slim_student_has_the_teachers_weights_where_it_has_any(tiny_pipe: StableDiffusionPipeline) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "train" / "lcm_planted.yaml")
    slim, teacher = full_student(tiny_pipe.unet, cfg), tiny_pipe.unet.state_dict()
    state = slim.state_dict()
    new = {name for name in state if name not in teacher}
    assert new == {"time_embedding.cond_proj.weight"} and len(state) < len(teacher)
    assert all(torch.equal(value, teacher[name]) for name, value in state.items() if name not in new)
    assert slim.config.mid_block_type is None and not any(
        "attentions" in name for name in state if "up_blocks.0" in name
    )


def test_an_adapter_begins_without_effect_and_is_all_that_learns(tiny_pipe: StableDiffusionPipeline) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "train" / "lcm_cifar10.yaml")
    unet = lora_student(tiny_pipe.unet, cfg).eval()
    assert {name.split(".")[-2] for name, p in unet.named_parameters() if p.requires_grad} == {"default"}
    z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 40, 16)
    with torch.no_grad():
        torch.testing.assert_close(unet(z, 500, text).sample, tiny_pipe.unet.eval()(z, 500, text).sample)
    assert not any("lora" in name for name in tiny_pipe.unet.state_dict()), "the teacher is as it was"


def test_the_student_takes_the_place_of_the_teachers_unet(student: Path, tiny_folder: Path) -> None:
    networks = load_networks(str(tiny_folder), str(student / "out"), None, **SETTINGS)
    assert networks.has_guidance_embedding and networks.unet.config.mid_block_type is None
    assert sorted(p.name for p in (student / "out").iterdir()) == ["README.md", "unet"]
    for path in (student / "out").rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text()), path
    steps = torch.load(student / "work" / "student.pt", weights_only=True)["step"]
    card = (student / "out" / "README.md").read_text()
    assert f"trained for {steps:,} steps of 4" in card and "guidance 1 … 6" in card


def test_an_adapter_is_fused_with_the_unet(adapter: Path, tiny_folder: Path) -> None:
    """The fused weights are the teacher's and the product of the adapter's factors, in every layer that it has."""
    own, fused = (load_networks(str(tiny_folder), None, lora, **SETTINGS) for lora in (None, str(adapter / "out")))
    assert not fused.has_guidance_embedding and own.digest != fused.digest
    before, after = own.unet.state_dict(), fused.unet.state_dict()
    assert set(before) == set(after), "no trace of the adapter's own parameters"
    factors = load_file(adapter / "out" / "pytorch_lora_weights.safetensors")
    layers = {name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in factors}
    for layer in layers:
        down, up = (factors[f"unet.{layer}.lora_{kind}.weight"].float() for kind in ("A", "B"))
        product = (up.flatten(1) @ down.flatten(1)).view_as(before[f"{layer}.weight"])
        assert product.abs().sum() > 0, layer
        torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + product, rtol=1e-3, atol=1e-5)
    same = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert len(after) - len(same) == len(layers) > 40


def test_an_adapter_of_another_unet_is_refused(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    factors = load_file(adapter / "out" / "pytorch_lora_weights.safetensors")
    still = {name: torch.zeros_like(value) for name, value in factors.items()}
    save_file(still, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match=r"generator.lora=\S+: all of its \d+ changes are 0"):
        load_networks(str(tiny_folder), None, str(tmp_path), **SETTINGS)
    with pytest.raises(UserError, match=r"generator.lora=\S+nowhere: no weights .*get them"):
        load_networks(str(tiny_folder), None, str(tmp_path / "nowhere"), **SETTINGS)


def test_bad_input_is_one_line(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(UserError, match="data=faces: allowed are planted, cifar10"):
        main(["data=faces"])
    with pytest.raises(UserError, match="no trajectories"):
        distilled(tiny_folder, tmp_path, "planted", "part=student")


def test_captions_are_those_of_the_training_pictures() -> None:
    assert distill_lcm.training_captions("planted", 3, 0, 5) == distill_lcm.training_captions("planted", 8, 0, 0)[5:]
    assert distill_lcm.training_captions("cifar10", 2, 0, 9) == [
        "a photograph of a truck",
        "a photograph of an airplane",
    ]
