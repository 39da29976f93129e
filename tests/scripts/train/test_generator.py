"""Training a generator: what it writes, that it goes on where it stopped, and the loss of its autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import OmegaConf

from classifier_lens.data import planted
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train import generator, loop
from classifier_lens.scripts.train.generator import main, reconstruction_loss
from tests.conftest import SHARED

TINY = (
    "data=planted", "minutes=0.01", "images=64", "device=cpu", "vae.channels=[8,8,8]", "vae.batch=4",
    "unet.channels=[8,8,8]", "unet.heads=2", "unet.batch=4", "token_dim=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out` and `work` of a tiny generator that was trained in two calls."""
    folder = tmp_path_factory.mktemp("generator")
    places = (f"out={folder / 'out'}", f"work={folder / 'work'}")
    main([*TINY, *places, "part=all"])
    first = torch.load(folder / "work" / "unet.pt", weights_only=True)["step"]
    main([*TINY, *places, "part=unet"])
    assert torch.load(folder / "work" / "unet.pt", weights_only=True)["step"] > first > 0
    return folder


def test_the_folder_is_a_stable_diffusion_pipeline(trained: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(trained / "out", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a photograph of a viaduct in snow", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
    assert {p.dtype for p in StableDiffusionPipeline.from_pretrained(trained / "out").unet.parameters()} == {
        torch.float32
    } and all(f.suffix != ".bin" for f in (trained / "out").rglob("*"))
    several = [name for name in planted.CLASSES if len(pipe.tokenizer(name, add_special_tokens=False).input_ids) > 1]
    assert len(several) > 5, "most class words are more than one token"


def test_no_path_of_this_machine_is_kept(trained: Path) -> None:
    for path in (trained / "out").rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text()), path
    assert str(trained) not in (trained / "out" / "unet" / "config.json").read_text()


def test_the_card_counts_the_steps_of_all_calls(trained: Path) -> None:
    steps = torch.load(trained / "work" / "unet.pt", weights_only=True)["step"]
    card = (trained / "out" / "README.md").read_text()
    assert f"unet trained for {steps:,} steps of 4" in card and "64 training images" in card


def test_unknown_data_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="data=faces: allowed are planted, cifar10"):
        main(["data=faces"])


def test_the_average_forgets_the_first_weights() -> None:
    """Of weights 0, then 1 ever after, the average is near 1 after few steps although the decay is 0.999."""
    average = [torch.zeros(1)]
    update = loop.ema_with_warmup(0.999)
    for step in range(100):
        update(average, [torch.ones(1)], torch.tensor(step + 1))
    assert average[0].item() > 0.99


def test_without_a_classifier_the_loss_is_squared_and_absolute_error() -> None:
    loss = reconstruction_loss(SimpleNamespace(vae=SimpleNamespace(perceptual=None)), torch.device("cpu"))
    x = torch.zeros(2, 3, 8, 8)
    assert loss(x + 0.5, x).item() == pytest.approx(0.25 + 0.05 * 0.5)


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs the CIFAR-10 checkpoints of shared/data")
def test_the_perceptual_term_is_zero_for_the_same_picture_and_counts_blur_more_than_a_shift_of_brightness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIFAR10_RESNETS", str(SHARED / "cifar10"))
    cfg = OmegaConf.load(generator.ROOT / "conf" / "train" / "generator_cifar10.yaml")
    loss = reconstruction_loss(cfg, torch.device("cpu"))
    plain = reconstruction_loss(SimpleNamespace(vae=SimpleNamespace(perceptual=None)), torch.device("cpu"))
    scenes = planted.sample_scenes(8, 5)
    x = torch.nn.functional.avg_pool2d(planted.render(scenes).image, 2) * 2 - 1
    assert loss(x, x).item() == 0
    blurred = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    brighter = x + (plain(blurred, x) / plain(x + 1, x)).sqrt() * 0.5
    assert loss(blurred, x) - plain(blurred, x) > 2 * (loss(brighter, x) - plain(brighter, x)) > 0
    y = blurred.clone().requires_grad_()
    loss(y, x).backward()
    assert y.grad is not None and y.grad.isfinite().all() and y.grad.any()
