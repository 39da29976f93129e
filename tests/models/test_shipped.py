"""Shipped weights: sizes, cards, and tokenizers that fit every caption."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from classifier_lens.data import cifar10, planted
from classifier_lens.scripts.train.captioned_images import cifar10_caption
from tests.conftest import ROOT

SHIPPED = ROOT / "models" / "pretrained"
WEIGHTS = sorted(SHIPPED.rglob("*.safetensors"))
GENERATORS = sorted(path.parent for path in SHIPPED.glob("*/model_index.json"))
PLANTED = [
    f"{opening} a {hue} {name} {place} with {prop}"
    for opening, hue, name, place, prop in product(
        planted.CAPTION_PREFIXES,
        planted.HUES,
        planted.CLASSES,
        planted.BACKGROUND_PHRASES.values(),
        planted.PROP_PHRASES.values(),
    )
]
CAPTIONS = {"planted": PLANTED, "cifar10": [cifar10_caption(i) for i in range(len(cifar10.CLASSES))]}


def test_the_weights_are_small_and_in_half_precision() -> None:
    assert len(WEIGHTS) >= 7
    assert sum(path.stat().st_size for path in WEIGHTS) <= 40e6
    for path in WEIGHTS:
        with safe_open(path, "pt") as file:
            types = {file.get_tensor(key).dtype for key in file.keys()}
        assert types <= {torch.float16, torch.int64}, path


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: str(path.relative_to(SHIPPED).parent))
def test_every_network_has_a_card(path: Path) -> None:
    cards = [folder / "README.md" for folder in (path.parent, path.parent.parent)]
    assert any(card.is_file() and "Data:" in card.read_text() for card in cards)


def test_pipelines_of_diffusers_load_the_consistency_models() -> None:
    """The student in the place of its teacher's UNet; the adapter on top of it, with guidance 1."""
    own = {"safety_checker": None, "requires_safety_checker": False}
    unet = UNet2DConditionModel.from_pretrained(SHIPPED / "planted_lcm" / "unet")
    student = LatentConsistencyModelPipeline.from_pretrained(SHIPPED / "planted", unet=unet, **own)
    student.scheduler = LCMScheduler.from_config(student.scheduler.config)
    adapted = StableDiffusionPipeline.from_pretrained(SHIPPED / "cifar10", **own)
    adapted.scheduler = LCMScheduler.from_config(adapted.scheduler.config)
    adapted.load_lora_weights(SHIPPED / "cifar10_lcm")
    for pipe, scale, prompt in ((student, 3.0, "planted"), (adapted, 1.0, "cifar10")):
        pipe.set_progress_bar_config(disable=True)
        shown = pipe(CAPTIONS[prompt][0], num_inference_steps=4, guidance_scale=scale, output_type="np").images[0]
        assert shown.std() > 0.05


@pytest.mark.parametrize("folder", GENERATORS, ids=lambda folder: folder.name)
def test_the_pipeline_of_stable_diffusion_loads_it_unchanged(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(CAPTIONS[folder.name][0], num_inference_steps=2, output_type="np").images[0]
    assert image.shape[0] in (32, 64) and image.std() > 0.02
    kinds = (*pipe.unet.config.down_block_types, *pipe.unet.config.up_block_types)
    assert sum("CrossAttn" in kind for kind in kinds) == 6, "cross-attention at three resolutions"


@pytest.mark.parametrize("folder", GENERATORS, ids=lambda folder: folder.name)
def test_every_caption_fits_the_tokenizer(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    longest = max(len(ids) for ids in pipe.tokenizer(CAPTIONS[folder.name]).input_ids)
    assert longest <= pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings
