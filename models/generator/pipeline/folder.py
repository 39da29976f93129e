"""Checks of a folder in diffusers' layout by its small files, before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifier_lens.models.hub import local_folder, missing_weights_error
from classifier_lens.runner.types import UserError

WANTED = "expected a folder in diffusers' layout"
# The networks of a pipeline of Stable Diffusion 1 or 2, by the parts of its folder and their classes.
COMPONENTS = {
    "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}  # fmt: skip
# Components that are read in another way, or not at all.
OPTIONAL_COMPONENTS = ("scheduler", "safety_checker", "feature_extractor", "image_encoder")
SUPPORTED_PIPELINES = (
    "supported are text-to-image pipelines in the layout of Stable Diffusion 1 and 2: one CLIPTextModel, an "
    "AutoencoderKL, and a UNet2DConditionModel that sees latents, time and text alone"
)
# Required values in a UNet's config.json, if they are there: with others it has more inputs than latents, time, text.
REQUIRED_UNET_CONFIG = {
    "addition_embed_type": None, "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "attention_type": "default",
}  # fmt: skip
WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:-\d{5}-of-\d{5})?(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)


def pipeline_folder(key: str, path: str, revision: str | None, needs: str) -> Path:
    """The folder that `path` names, see `models.hub.local_folder`. Raises UserError for a single file."""
    if Path(path).expanduser().is_file():
        raise UserError(
            f"{key}: is a single file; {WANTED}, as diffusers' `StableDiffusionPipeline.from_single_file(file)"
            f".save_pretrained(folder)` writes it; {SUPPORTED_PIPELINES}"
        )
    return local_folder(key, path, revision, needs)


def check_pipeline(key: str, folder: Path) -> None:
    """Raise UserError, which begins with `key` and describes the content, unless the folder holds a pipeline in the
    layout of Stable Diffusion whose components fit each other; see `SUPPORTED_PIPELINES`."""
    index = _index(key, folder)
    parts = {name: part for name, part in index.items() if isinstance(part, list) and not name.startswith("_")}
    kinds = {name: str(part[-1]) for name, part in parts.items() if part and part[-1] is not None}
    kind = index.get("_class_name")
    name = kind if isinstance(kind, str) else "pipeline with its own code"
    if unsupported := [part for part in kinds if part not in (*COMPONENTS, *OPTIONAL_COMPONENTS)]:
        raise UserError(f"{key}: holds a {name}, with {', '.join(unsupported)}; {SUPPORTED_PIPELINES}")
    for part, allowed in COMPONENTS.items():
        if kinds.get(part) not in allowed:
            raise UserError(
                f"{key}: holds a {name}, whose {part} is {kinds.get(part, 'missing')}; {SUPPORTED_PIPELINES}"
            )
    if missing := [part for part in (*COMPONENTS, "scheduler") if not (folder / part).is_dir()]:
        raise UserError(f"{key}: {', '.join(missing)} missing in this {name}; {WANTED}")
    vae = _json(key, folder / "vae" / "config.json")
    if shifted := [setting for setting in ("shift_factor", "latents_mean", "latents_std") if vae.get(setting)]:
        raise UserError(
            f"{key}: holds a {name}, whose vae shifts its latents ({', '.join(shifted)}); {SUPPORTED_PIPELINES}"
        )
    check_unet(key, name, folder / "unet", folder)


def check_unet(key: str, name: str, unet: Path, pipeline: Path) -> None:
    """Raise UserError unless the UNet of a folder maps latents of a pipeline's autoencoder to latents, with no inputs
    but the time and texts of its encoder. name: of the pipeline, for errors."""
    config, vae, text = (
        _json(key, part / "config.json") for part in (unet, pipeline / "vae", pipeline / "text_encoder")
    )
    if inputs := [setting for setting, value in REQUIRED_UNET_CONFIG.items() if config.get(setting, value) != value]:
        settings = ", ".join(f"{setting}={config[setting]}" for setting in inputs)
        raise UserError(f"{key}: holds a {name}, whose UNet has further inputs ({settings}); {SUPPORTED_PIPELINES}")
    latents = vae.get("latent_channels", 4)
    sides = {side: config.get(side, 4) for side in ("in_channels", "out_channels")}
    if other := [f"{side}={channels}" for side, channels in sides.items() if channels != latents]:
        raise UserError(
            f"{key}: holds a {name}, whose UNet has {', '.join(other)} for latents of {latents} channels, as UNets of "
            f"inpainting, instructions, depth or upscaling have; {SUPPORTED_PIPELINES}"
        )
    width, expected = text.get("hidden_size", 512), config.get("cross_attention_dim", 1280)
    if width != expected:
        raise UserError(
            f"{key}: holds a {name}, whose UNet reads texts of width {expected} (cross_attention_dim), and whose text "
            f"encoder gives {width} (hidden_size); {SUPPORTED_PIPELINES}"
        )


def _index(key: str, folder: Path) -> dict[str, Any]:
    """The content of model_index.json. Raises UserError, which describes the folder, if it has none."""
    if (folder / "model_index.json").is_file():
        return _json(key, folder / "model_index.json")
    if (folder / "config.json").is_file():
        kind = _json(key, folder / "config.json").get("_class_name", "network of another library")
        raise UserError(
            f"{key}: holds a {kind} alone, no pipeline; {WANTED}, with model_index.json; {SUPPORTED_PIPELINES}"
        )
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    content = f"holds {', '.join(names[:5])}{' …' * (len(names) > 5)}" if names else "is empty"
    raise UserError(f"{key}: {content}, but no model_index.json; {WANTED}; {SUPPORTED_PIPELINES}")


def _json(key: str, file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it is missing or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise UserError(f"{key}: {file} cannot be read ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{key}: {file} holds no object of settings")
    return content


def find_variants(folder: Path) -> set[str | None]:
    """The variants of a network's weight files, such as fp16; None for files without a variant."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {match["variant"] for name in names if (match := WEIGHT_FILE.fullmatch(name))}


def choose_variants(
    keys: Mapping[str, str], parts: Mapping[str, Path], variant: str | None, needs: str
) -> dict[str, str | None]:
    """The variant of each network's files: `variant`, and None for a network that has no files of it.

    keys: configuration key of each network, for errors; needs: see `models.hub.missing_weights_error`. Raises
    UserError, which names the available variants, if a network has neither, or no network has the variant."""
    available = {name: find_variants(folder) for name, folder in parts.items()}
    for name, variants in available.items():
        if not variants:
            raise missing_weights_error(keys[name], f"no weights in its {name}", needs)
    names = {None, *(known for variants in available.values() for known in variants)}
    usable = [known for known in names if all(variants & {known, None} for variants in available.values())]
    if None in usable and any(None not in variants for variants in available.values()):
        usable.remove(None)
    if variant in usable:
        return {name: variant if variant in variants else None for name, variants in available.items()}
    allowed = ", ".join(sorted(f"generator.variant={known or 'null'}" for known in usable))
    lacking = next(
        name for name, variants in available.items() if not variants & {variant, None} or variant not in names
    )
    present = ", ".join(sorted(known or "no variant" for known in available[lacking]))
    raise UserError(
        f"{keys[lacking]}: its {lacking} has weights of {present}, not of generator.variant={variant or 'null'}; "
        f"allowed are {allowed or 'none, since its parts have no variant in common'}"
    )
