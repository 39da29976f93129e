"""Consistency models in the hub's exact layouts, small and random: prompts and counterfactuals run end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from classifier_lens.models.generator.pipeline.networks import fuse_lora
from tests.checkpoints.hub import write_consistency_model, write_lcm_lora, write_stable_diffusion, write_turbo
from tests.cli import Cli

SMALL = (
    "classifier=timm", "classifier.name=test_vit", "classifier.pretrained=false", "generator.resolution=64",
    "generator.attention_maps.resolution=8", "optimizer.steps=1", "logger=none", "threads=1",
)  # fmt: skip
PROMPTS = (
    "task=diffexplainer_class",
    "task.classes=[goldfish]",
    "task.num_seeds=1",
    "task.images_per_prompt=2",
    "parametrization.num_initializations=2",
    "parametrization.images_per_step=1",
    "parametrization.validation_images=2",
    "parametrization.images_per_result=2",
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    write_consistency_model(folder / "lcm_dreamshaper")
    write_stable_diffusion(folder / "sd15")
    write_lcm_lora(folder / "lcm-lora", folder / "sd15")
    write_turbo(folder / "sd_turbo")
    return folder


def places(hub: Path, generator: str) -> tuple[str, ...]:
    """The overrides that name a generator's folders."""
    if generator == "sd15_lcm_lora":
        return f"generator={generator}", f"generator.path={hub / 'sd15'}", f"generator.lora={hub / 'lcm-lora'}"
    return f"generator={generator}", f"generator.path={hub / generator}"


def photograph(folder: Path) -> Path:
    """A folder of training images with one of noise."""
    place = folder / "train" / "goldfish"
    place.mkdir(parents=True)
    Image.effect_noise((90, 70), 60).convert("RGB").save(place / "x.png")
    return place / "x.png"


GENERATORS = ("lcm_dreamshaper", "sd15_lcm_lora", "sd_turbo")


@pytest.mark.parametrize(
    "generator",
    [pytest.param(name, marks=() if name == "sd_turbo" else pytest.mark.slow) for name in GENERATORS],
)
def test_a_prompt(generator: str, hub: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the generator's own steps, guidance and sampler."""
    training = photograph(tmp_path).parent.parent
    outcome = cli.plain(
        capfd, *PROMPTS, *places(hub, generator), *SMALL, f"training.path={training}", f"outputs={cli.outputs}"
    )
    assert outcome.code == 0, outcome
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert line["target"] == "goldfish" and line["activation_score"] in (0.0, 0.5, 1.0)
    assert line["prompt"].startswith("a picture of ")
    assert Image.open(cli.folder / line["images"]["result"]).size == (64, 64)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_counterfactual(
    generator: str, hub: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the generator's own steps, guidance and sampler."""
    soft = (
        "generator.mask_postprocess.latents.blur_sigma=3",
        "generator.mask_postprocess.pixels.blur_sigma=3",
        "augment.crops=1",
    )
    outcome = cli.plain(
        capfd, "task=uvce", "data=image", f"data.path={photograph(tmp_path)}", "data.label=goldfish", *soft,
        *places(hub, generator), *SMALL, f"outputs={cli.outputs}",
    )  # fmt: skip
    assert outcome.code == 0, outcome


def test_an_adapter_changes_every_layer_by_the_product_of_its_factors(hub: Path) -> None:
    """Kohya's names are understood: W + (alpha / rank) up · down, in every layer that the file has."""
    pipe = StableDiffusionPipeline.from_pretrained(hub / "sd15", safety_checker=None, feature_extractor=None,
                                                   requires_safety_checker=False)  # fmt: skip
    fuse_lora(pipe, str(hub / "lcm-lora"))
    factors = load_file(hub / "lcm-lora" / "pytorch_lora_weights.safetensors")
    before = UNet2DConditionModel.from_pretrained(hub / "sd15" / "unet").state_dict()
    after = pipe.unet.state_dict()
    changed = 0
    for name, value in before.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if name.endswith(".weight") and f"{key}.alpha" in factors:
            up, down = (factors[f"{key}.lora_{part}.weight"].float() for part in ("up", "down"))
            product = torch.einsum("or,r...->o...", up.flatten(1), down)
            torch.testing.assert_close(after[name], value + product.view_as(value), rtol=0, atol=1e-4)
            changed += 1
        else:
            assert torch.equal(after[name], value), name
    assert changed == sum(name.endswith(".alpha") for name in factors) > 100
