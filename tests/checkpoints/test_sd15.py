"""Folders of Stable Diffusion's exact layouts and component classes, small and random, run end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from classifier_lens.models.generator.noise_schedule import predict_eps, predict_x0
from classifier_lens.models.generator.pipeline.networks import load_networks
from classifier_lens.models.generator.samplers import ddim
from tests.checkpoints.hub import snapshot, write_half, write_velocity_model
from tests.cli import ROOT, Cli
from tests.conftest import SHARED

SAMPLES = SHARED / "imagenet_samples"
SMALL = (
    "generator.resolution=64",
    "generator.steps=2",
    "generator.attention_maps.resolution=8",
    "generator.prompt_to_prompt.cross_replace_steps=[0.5]",
    "generator.prompt_to_prompt.background_blend_steps=[0.5]",
    "generator.mask_postprocess.latents.blur_sigma=3",
    "generator.mask_postprocess.pixels.blur_sigma=3",
    "generator.null_text.inner_steps=1",
    "optimizer.steps=1",
    "augment.crops=1",
    "logger=none",
    "threads=1",
)
CLASSIFIER = ("classifier=timm", "classifier.name=test_vit", "classifier.pretrained=false")


ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def photograph(folder: Path) -> tuple[str, ...]:
    """The words that explain a photograph of noise, by the hub's id of the generator."""
    Image.effect_noise((90, 70), 60).convert("RGB").save(folder / "x.jpg")
    return ("task=uvce", *CLASSIFIER, "data=image", f"data.path={folder / 'x.jpg'}", "data.label=goldfish", *SMALL)


def explain(
    path: Path | str,
    cli: Cli,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    *words: str,
    generator: str = "imagenet_ddim",
) -> None:
    """One photograph towards the strongest wrong class, with sd15's own settings where the size allows them."""
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "x.jpg")
    outcome = cli.plain(
        capfd, "task=uvce", *words, "data=image", f"data.path={tmp_path / 'x.jpg'}", "data.label=goldfish",
        f"generator.path={path}", *SMALL,
        f"outputs={cli.outputs}",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    name = dict(word.split("=", 1) for word in words)["classifier"]
    assert cli.folder.parent.name == f"{generator}-{name}", "chosen by the classifier's domain"
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert line["source"] == "goldfish" and line["target"] != "goldfish"
    assert line["caption"] == "a photograph of a goldfish" and len(line["history"]) == 2
    assert Image.open(cli.folder / line["images"]["result"]).size == (64, 64)


def test_a_pipeline_is_found_in_the_hubs_cache_by_its_id(
    sd15: Path, home: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(sd15, snapshot(home, ID, None), dirs_exist_ok=True)
    explain(ID, cli, capfd, tmp_path, *CLASSIFIER)
    shutil.rmtree(home / "hub")
    outcome = cli.plain(capfd, *photograph(tmp_path), f"outputs={cli.outputs}")
    assert outcome.code == 2 and "`python scripts/fetch_weights.py fetch sd15`" in outcome.lines[0], outcome


def test_stable_diffusion_2_1(cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_velocity_model(tmp_path / "hub" / "stable-diffusion-2-1")
    explain(folder, cli, capfd, tmp_path, *CLASSIFIER, "generator=sd21", generator="sd21")


def test_files_in_half_precision(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They are read where they are asked for, and only there; the CPU computes with bfloat16."""
    half = write_half(tmp_path / "half", sd15)
    assert not list(half.glob("*/*model.safetensors")) and list(half.glob("unet/*.fp16.safetensors"))
    explain(half, cli, capfd, tmp_path, *CLASSIFIER, "generator.variant=fp16", "generator.dtype=bfloat16")
    outcome = cli.plain(capfd, "task=uvce", *CLASSIFIER, "data=image", f"data.path={tmp_path / 'x.jpg'}",
                        "data.label=goldfish", f"generator.path={half}", f"outputs={cli.outputs}")  # fmt: skip
    assert outcome.code == 2 and len(outcome.lines) == 1 and f"generator.path={half}" in outcome.err


def test_a_chain_equals_diffusers_pipeline(tmp_path: Path) -> None:
    """Of what predicts v, guided."""
    folder = write_velocity_model(tmp_path / "sd21")
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    networks = load_networks(str(folder), None, None, None, None, "float32", "cpu", "")
    sampler = ddim(networks, 4, 3.0, None, [0.0, 1.0])
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = pipe("a red crab", num_inference_steps=4, guidance_scale=3.0, latents=latent, output_type="latent").images
    z, embeddings = latent, {"text": networks.embed(["a red crab"]), "null": networks.embed([""])}
    with torch.no_grad():
        for i in range(4):
            z, _ = sampler.advance(z, sampler.predict(networks, z, embeddings, i, None), torch.zeros_like(z), i)
    assert torch.allclose(z, wanted, atol=1e-4), (z - wanted).abs().max()


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.999])
def test_a_velocity_and_its_noise(alpha: float) -> None:
    picture, eps = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    level = torch.tensor(alpha)
    z = level.sqrt() * picture + (1 - level).sqrt() * eps
    v = level.sqrt() * eps - (1 - level).sqrt() * picture
    assert torch.allclose(predict_eps(z, v, level, velocity=True), eps, atol=1e-5)
    assert torch.allclose(predict_x0(z, v, level, velocity=True), picture, atol=1e-5)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is absent")
def test_photographs_of_imagenet_towards_their_nearest_class(
    sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Files called by WordNet ids, one of them chosen by its class, which WordNet knows the nearest of."""
    data = ("data=imagenet", f"data.path={SAMPLES}", "select.classes=[great white shark]", "task.target=nearest")
    outcome = cli.plain(
        capfd, "task=uvce", *CLASSIFIER, *data, f"generator.path={sd15}", *SMALL, f"outputs={cli.outputs}"
    )
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("uvce/imagenet_ddim-timm: 1 of 1 problems")
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert (line["source"], line["target"]) == ("great white shark", "hammerhead shark")
    assert line["caption"] == "a photograph of a great white shark"


@pytest.mark.slow
def test_what_was_fetched_is_found_without_a_network(sd15: Path, cli: Cli, tmp_path: Path) -> None:
    """In processes that are told the hub's cache by the environment."""
    files = snapshot(tmp_path / "home", ID, None)
    shutil.copytree(sd15, files, dirs_exist_ok=True)
    words = photograph(tmp_path)
    outcomes = [
        subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, f"outputs={cli.outputs}"], capture_output=True, text=True,
            env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, timeout=200,
        )
        for home in (tmp_path / "home", tmp_path / "nothing")
    ]  # fmt: skip
    assert outcomes[0].returncode == 0, outcomes[0].stderr
    assert (cli.folder / "results.jsonl").read_text().count("\n") == 1
    (line,) = outcomes[1].stderr.strip().splitlines()
    assert outcomes[1].returncode == 2 and "`python scripts/fetch_weights.py fetch sd15`" in line
