"""What folders hold: pipelines of other kinds are refused in one line, before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from classifier_lens.models.generator.pipeline import networks
from classifier_lens.models.generator.pipeline.folder import WEIGHT_FILE, check_pipeline, find_variants
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.runner.types import UserError

Change = Callable[[Path], None]


def edited(file: str, **changes: Any) -> Change:
    """Other values in a file of settings; None takes one away."""

    def change(folder: Path) -> None:
        old = json.loads((folder / file).read_text())
        new = {name: value for name, value in {**old, **changes}.items() if value is not None or name in old}
        (folder / file).write_text(json.dumps(new))

    return change


def without(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def broken(file: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_text("{")

    return change


def alone(kind: str) -> Change:
    """A folder of one network."""

    def change(folder: Path) -> None:
        (folder / "model_index.json").unlink()
        (folder / "config.json").write_text(json.dumps({"_class_name": kind}))

    return change


@pytest.fixture
def pipeline(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "pipeline"))


def load(path: Path | str, variant: str | None = None, unet: str | None = None, dtype: str = "float32") -> Networks:
    return networks.load_networks(str(path), unet, None, None, variant, dtype, "cpu", "get them")


INDEX, UNET = "model_index.json", "unet/config.json"
OTHERS: dict[str, tuple[Change, str]] = {
    "SDXL": (
        edited(INDEX, _class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "CLIPTextModel"]),
        "holds a StableDiffusionXLPipeline, with text_encoder_2",
    ),
    "SD3": (
        edited(INDEX, _class_name="StableDiffusion3Pipeline", transformer=["diffusers", "SD3Transformer2DModel"]),
        "holds a StableDiffusion3Pipeline, with transformer",
    ),
    "ControlNet": (edited(INDEX, controlnet=["diffusers", "ControlNetModel"]), "with controlnet"),
    "TAESD": (edited(INDEX, vae=["diffusers", "AutoencoderTiny"]), "whose vae is AutoencoderTiny"),
    "projection": (
        edited(INDEX, text_encoder=["transformers", "CLIPTextModelWithProjection"]), "whose text_encoder is CLIPText",
    ),
    "T5": (edited(INDEX, tokenizer=["transformers", "T5Tokenizer"]), "whose tokenizer is T5Tokenizer"),
    "own code": (edited(INDEX, _class_name=["pipeline", "Mine"], unet=["my", "UNet"]), "whose unet is UNet"),
    "inpainting": (edited(UNET, in_channels=9), "UNet has in_channels=9 for latents of 4 channels"),
    "instructions": (edited(UNET, in_channels=8), "UNet has in_channels=8"),
    "learned variance": (edited(UNET, out_channels=8), "UNet has out_channels=8"),
    "upscaler": (edited(UNET, num_class_embeds=1000), r"UNet has further inputs \(num_class_embeds=1000\)"),
    "more told": (edited(UNET, addition_embed_type="text_time"), "further inputs .addition_embed_type=text_time"),
    "other texts": (edited(UNET, cross_attention_dim=768), r"texts of width 768 .* gives 16"),
    "shifted latents": (edited("vae/config.json", shift_factor=0.1), "vae shifts its latents .shift_factor"),
    "no VAE": (without("vae"), "vae missing in this StableDiffusionPipeline"),
    "no settings": (without(UNET), "unet/config.json cannot be read .No such file"),
    "broken settings": (broken(UNET), "config.json cannot be read .no JSON"),
    "no index": (without(INDEX), "holds scheduler/, .*, but no model_index.json"),
    "one network": (alone("ControlNetModel"), "holds a ControlNetModel alone, no pipeline"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines_are_refused_in_one_line(name: str, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = OTHERS[name]
    change(pipeline)
    monkeypatch.setattr(networks, "_read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=said) as caught:
        load(pipeline)
    assert str(caught.value).startswith(f"generator.path={pipeline}: ") and "\n" not in str(caught.value)


def test_a_single_file_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "sd15.safetensors").touch()
    with pytest.raises(UserError, match=r"sd15.safetensors: is a single file; .*from_single_file"):
        load(tmp_path / "sd15.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: is empty, but no model_index.json"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^generator.path=\S+nowhere: no weights \(neither a folder .*; get them; "):
        load(tmp_path / "nowhere")


def test_other_pipelines_of_the_same_parts_are_allowed(pipeline: Path) -> None:
    for kind in ("LatentConsistencyModelPipeline", "StableDiffusionImg2ImgPipeline"):
        edited(INDEX, _class_name=kind, image_encoder=[None, None])(pipeline)
        check_pipeline("x", pipeline)


def test_another_unet_has_to_fit(pipeline: Path, tiny_folder: Path) -> None:
    assert load(tiny_folder, unet=str(pipeline)).unet.config.in_channels == 4
    edited(UNET, in_channels=9)(pipeline)
    with pytest.raises(UserError, match=r"^generator.unet=\S+pipeline: holds a UNet, whose UNet has in_channels=9"):
        load(tiny_folder, unet=str(pipeline))


def test_weights_that_a_file_leaves_out_are_missed(pipeline: Path) -> None:
    """Where the library would draw them at random."""
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "conv_out" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"generator.path=\S+: .*vae.*missing.*conv_out|cannot be loaded") as caught:
        load(pipeline)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"generator.path=\S+: cannot be loaded"):
        load(pipeline)


# --- variants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", None), ("diffusion_pytorch_model.bin", None), ("pytorch_model-00001-of-00002.bin", None),
        ("model.fp16.safetensors", "fp16"), ("diffusion_pytorch_model.non_ema.safetensors", "non_ema"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
    ],
)  # fmt: skip
def test_variants_by_their_files(name: str, variant: str | None, tmp_path: Path) -> None:
    for other in ("config.json", "model.onnx", "model.safetensors.index.json", name):
        (tmp_path / other).touch()
    assert find_variants(tmp_path) == {variant} and WEIGHT_FILE.fullmatch(name)


def renamed(folder: Path, variant: str, *parts: str) -> None:
    """Weights of that variant alone."""
    for part in parts:
        for file in (folder / part).glob("*model.safetensors"):
            file.rename(file.with_name(file.name.replace("model.", f"model.{variant}.")))


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_files_of_one_variant_name_it(variant: str, pipeline: Path) -> None:
    renamed(pipeline, variant, "unet", "vae", "text_encoder")
    for other in (None, "fp32"):
        with pytest.raises(UserError, match=rf"generator.variant={other or 'null'}; .* generator.variant={variant}$"):
            load(pipeline, other)
    assert load(pipeline, variant).unet.dtype == torch.float32
    assert load(pipeline, variant, dtype="bfloat16").unet.dtype == torch.bfloat16


def test_parts_without_the_variant_are_read_plain(pipeline: Path, tiny_folder: Path) -> None:
    renamed(pipeline, "non_ema", "unet")
    assert load(pipeline, "non_ema").digest == load(tiny_folder).digest
    with pytest.raises(UserError, match=r"its unet has weights of non_ema, .* generator.variant=non_ema$"):
        load(pipeline)
    with pytest.raises(UserError, match=r"generator.variant=fp16; allowed are generator.variant=null$"):
        load(tiny_folder, "fp16")
    renamed(pipeline, "fp16", "vae")
    with pytest.raises(UserError, match="allowed are none, since its parts have no variant in common"):
        load(pipeline, "fp16")
    without("vae/diffusion_pytorch_model.fp16.safetensors")(pipeline)
    with pytest.raises(UserError, match=r"no weights in its vae; get them"):
        load(pipeline, "fp16")


# --- words -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_length_has_the_text_encoders(pipeline: Path, tiny_folder: Path) -> None:
    edited("tokenizer/tokenizer_config.json", model_max_length=None)(pipeline)
    file = pipeline / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("model_max_length", None)
    file.write_text(json.dumps(settings))
    own, other = load(tiny_folder), load(pipeline)
    assert own.tokenizer.model_max_length == other.tokenizer.model_max_length == 40
    assert torch.equal(own.embed(["a red crab"]), other.embed(["a red crab"]))


def test_a_learned_word_needs_its_row(tiny_pipe: StableDiffusionPipeline, tmp_path: Path, pipeline: Path) -> None:
    own = StableDiffusionPipeline.from_pretrained(
        pipeline, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    own.tokenizer.add_tokens("<my-sand>")
    own.save_pretrained(tmp_path / "no row")
    with pytest.raises(UserError, match=r"knows 1 words that its text encoder has no embedding of, such as <my-sand>"):
        load(tmp_path / "no row")
    own.text_encoder.resize_token_embeddings(len(own.tokenizer))
    own.save_pretrained(tmp_path / "row")
    found = load(tmp_path / "row")
    ids = found.tokenize(["sand <my-sand>"])[0].tolist()
    assert len(own.tokenizer) - 1 in ids and found.embed(["sand <my-sand>"]).isfinite().all()
