"""A folder of Stable Diffusion 1.5's exact layout and component classes, small and random, runs end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from data import planted
from scripts.tokenizer import train_tokenizer
from tests.cli import Cli

# The published files of these components, apart from widths and depths.
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: 4 blocks in UNet and autoencoder, 77 tokens; without the safety checker and its extractor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "stable-diffusion-v1-5"
    captions = planted.draw_captioned(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 100, 77, tmp_path_factory.mktemp("tokenizer"))
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, in_channels=3, out_channels=3, latent_channels=4,
            layers_per_block=2, norm_num_groups=32, act_fn="silu", sample_size=512,
        ),
        unet=UNet2DConditionModel(
            block_out_channels=(32, 32, 64, 64), attention_head_dim=8, cross_attention_dim=32, layers_per_block=2,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), norm_num_groups=32, norm_eps=1e-5,
            in_channels=4, out_channels=4, sample_size=64, center_input_sample=False, flip_sin_to_cos=True,
            freq_shift=0, mid_block_scale_factor=1, downsample_padding=1, act_fn="silu",
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=32,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer, scheduler=PNDMScheduler.from_config(SCHEDULER), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2))
    assert not (folder / "safety_checker").exists() and not (folder / "feature_extractor").exists()
    return folder


def explain(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path, *classifier: str) -> None:
    """One photograph towards the strongest wrong class, with sd15's own settings where the size allows them."""
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "x.jpg")
    outcome = cli.plain(
        capfd, "task=uvce", *classifier, "data=image", f"data.path={tmp_path / 'x.jpg'}", "data.label=goldfish",
        f"generator.path={sd15}", "generator.resolution=64", "generator.steps=4", "generator.maps.side=8",
        "generator.schedules.inject=[0.5]", "generator.schedules.blend=[0.5]", "generator.softening.latents.blur=3",
        "generator.softening.pixels.blur=3",
        "generator.null_text.inner_steps=2", "optimizer.steps=1", "augment.crops=1", "logger=none", "threads=1",
        f"outputs={cli.outputs}",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    name = dict(word.split("=", 1) for word in classifier)["classifier"]
    assert cli.folder.parent.name == f"imagenet_ddim-{name}", "chosen by the classifier's domain"
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert line["source"] == "goldfish" and line["target"] != "goldfish"
    assert line["caption"] == "a photograph of a goldfish" and len(line["history"]) == 2
    assert Image.open(cli.folder / line["images"]["best"]).size == (64, 64)


def test_a_small_classifier(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    explain(sd15, cli, capfd, tmp_path, "classifier=timm", "classifier.name=test_vit", "classifier.pretrained=false")


@pytest.mark.slow
def test_vit_b(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    explain(sd15, cli, capfd, tmp_path, "classifier=vit_b", "classifier.pretrained=false")
