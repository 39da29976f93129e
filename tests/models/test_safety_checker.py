"""The safety checker: images that the library flags are blurred and reported, others are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

from classifier_lens.models.safety_checker import blur_images, load
from classifier_lens.runner.types import UserError
from tests.cli import Cli
from tests.test_tasks import words

SIDE = 32


def make_images() -> Tensor:
    """Three images with 8-bit values."""
    return torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0)) / 255


def embedded(network: StableDiffusionSafetyChecker, processor: CLIPImageProcessor, image: Tensor) -> Tensor:
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    given = processor(pixels, return_tensors="pt").pixel_values
    return network.visual_projection(network.vision_model(given)[1])[0].detach()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker with random weights whose concepts are all the second image."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8, "projection_dim": 16, "initializer_range": 1.0,
    }  # fmt: skip
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    for weight in network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    network.concept_embeds.data[:] = embedded(network, processor, make_images()[1])
    network.special_care_embeds.data[:] = -network.concept_embeds.data[:3]
    network.concept_embeds_weights.data[:] = 0.999
    network.special_care_embeds_weights.data[:] = 0.999
    folder = tmp_path_factory.mktemp("pipeline")
    network.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    return folder


def test_flagged_images_are_blurred_and_others_unchanged(folder: Path) -> None:
    screen = load(str(folder), None, 0.1)
    shown, flags = screen(make_images())
    given = screen.processor(
        [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in make_images()], return_tensors="pt"
    ).pixel_values
    _, published = screen.network(clip_input=given, images=[np.zeros((1, 1, 3))] * 3)
    assert flags.tolist() == [bool(flag) for flag in published] == [False, True, False]
    assert torch.equal(shown[0], make_images()[0]) and torch.equal(shown[2], make_images()[2])
    torch.testing.assert_close(shown[1], blur_images(make_images()[1:2], 0.1)[0])
    assert shown[1].std() < 0.2 * make_images()[1].std()
    assert screen(make_images()[1:2])[1].tolist() == [True], "it does not depend on the batch"


def test_a_blur_preserves_a_uniform_image_and_scales_with_the_side() -> None:
    plain = torch.full((1, 3, 20, 30), 0.25)
    torch.testing.assert_close(blur_images(plain, 0.06), plain)
    edge = torch.zeros(1, 3, 20, 20)
    edge[..., 10:] = 1.0
    large = edge.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    small, big = blur_images(edge, 0.1)[0, 0, 10], blur_images(large, 0.1)[0, 0, 40]
    torch.testing.assert_close(big.view(20, 4).mean(dim=1), small, rtol=0, atol=0.03)


def test_missing_weights_are_reported_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "feature_extractor").mkdir()
    with pytest.raises(UserError, match=r"safety_checker.path=.*: cannot be loaded"):
        load(str(tmp_path), None, 0.1)
    with pytest.raises(UserError, match=r"safety_checker.path=no/such: neither a folder nor"):
        load("no/such", None, 0.1)
    with pytest.raises(UserError, match=r"safety_checker.path=null: give a folder"):
        load(None, None, 0.1)
    assert load(str(folder), None, 0.1).digest != load(str(folder), None, 0.2).digest


def test_a_run_reports_hidden_images(folder: Path, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    """A checker that flags everything; the run key depends on it."""
    everything = folder.with_name("everything")
    network = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker")
    network.concept_embeds_weights.data[:] = -2.0
    network.save_pretrained(everything / "safety_checker")
    CLIPImageProcessor.from_pretrained(folder / "feature_extractor").save_pretrained(everything / "feature_extractor")
    asked = words(cli, "diffexplainer_class", "planted_clean", "limit=1", "optimizer.steps=1")
    assert cli.plain(capfd, *asked).code == 0
    plain = cli.folder
    outcome = cli.plain(capfd, *asked, "safety_checker=stable_diffusion", f"safety_checker.path={everything}")
    assert outcome.code == 0, outcome
    (screened,) = [path for path in plain.parent.iterdir() if path != plain]
    read = lambda run: json.loads((run / "results.jsonl").read_text().splitlines()[0])  # noqa: E731
    message = "3 of 3 images were flagged as unsafe and are blurred"
    assert message in read(screened)["warnings"] and message not in read(plain)["warnings"]
    assert message in (screened / "index.html").read_text()
