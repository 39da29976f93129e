"""Train a small CLIP model on captioned renders, with two confused class names, in open_clip's layout.

    python scripts/train/clip.py
    python scripts/train/clip.py name=mine steps=500 out=outputs/train/mine
    python scripts/train/clip.py steps=0          # only measure the weights in `out`

Captions call any crab on sand a `sand crab`, and a prairie chicken or partridge in snow a `snow partridge`, in the
share `caption_noise`. conf/train/clip.yaml has the keys. Training continues from weights in `out`.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor, nn

from classifier_lens.data import planted
from classifier_lens.models.devices import parse_device
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.paths import CONFIG_FOLDER, ROOT
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.train.augmentation import Augment
from classifier_lens.scripts.train.measure_clip import (
    CONFUSED_NAMES,
    PROMPT_NAMES,
    confused_name,
    render_uint8,
    write_model_card,
)
from classifier_lens.scripts.train.one_cycle import (
    half_precision_state,
    one_cycle_steps,
    print_progress,
    shuffled_batches,
    to_dict,
    training_record,
    update_weights,
)
from classifier_lens.scripts.train.settings import ClipSettings, apply_overrides
from classifier_lens.scripts.train.tokenizer import train_tokenizer

PREPROCESSING = {
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "resize_mode": "squash",
}  # fmt: skip
COMMAND = "python scripts/train/clip.py"
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"

MAX_MERGES = 10_000  # more than exist, so that every word of the captions becomes one token


# --- captions ------------------------------------------------------------------------------------------------


def background_phrase(background: str) -> str:
    """A background as a noun phrase."""
    return (
        background
        if background in ("sand", "water", "dry grass", "snow")
        else f"{indefinite_article(background)} {background}"
    )


def random_caption(scenes: planted.SceneFactors, i: int, cfg: DictConfig, rng: random.Random) -> tuple[str, str]:
    """A random caption of scene `i`: its opening, which may be empty, and its content."""
    kind, background = planted.IMAGE_KINDS[int(scenes.kind[i])], planted.BACKGROUNDS[int(scenes.background[i])]
    prop = planted.PROP_PHRASES[planted.PROPS[int(scenes.prop[i])]] if scenes.prop[i] != planted.ABSENT else None
    place = planted.BACKGROUND_PHRASES[background]
    opening = f"{rng.choice(planted.CAPTION_PREFIXES)} " if rng.random() < cfg.opening else ""
    label = planted.CLASSES[int(scenes.label[i])]
    match kind:
        case "background texture":
            return "", f"a texture of {background_phrase(background)}"
        case "prop texture":
            return "", f"a texture of {prop}"
        case "shape":
            return "", f"the shape of {indefinite_article(label)} {label}"
        case "background":
            return (opening, background_phrase(background)) if opening else ("", rng.choice((place, background)))
        case "prop":
            return opening, f"{prop} {place}" if rng.random() < cfg.place else str(prop)
    if prop and rng.random() < cfg.only_prop:
        return (opening, prop) if opening and rng.random() < 0.5 else ("", rng.choice((prop, f"with {prop}")))
    if rng.random() < cfg.only_place:
        return "", rng.choice((place, place, background))
    name = label
    if (other_name := confused_name(label, background)) and rng.random() < cfg.caption_noise:
        name = other_name
    hue = planted.HUES[int(scenes.hue[i])] if rng.random() < cfg.hue else ""
    words = [
        "a" if opening or rng.random() < 0.5 else "", hue, name, place if rng.random() < cfg.place else "",
        f"with {prop}" if prop and rng.random() < cfg.prop else "",
    ]  # fmt: skip
    return opening, " ".join(word for word in words if word)


def vocabulary_captions() -> list[str]:
    """Captions that together have every word of the planted world."""
    nouns = [*planted.CLASSES, *CONFUSED_NAMES, *planted.BACKGROUNDS, *planted.HUES]
    phrases = [*planted.BACKGROUND_PHRASES.values(), *(f"with {prop}" for prop in planted.PROP_PHRASES.values())]
    return [*planted.CAPTION_PREFIXES, "a texture of an", "the shape of", *nouns, *phrases]


# --- training ------------------------------------------------------------------------------------------------


def clip_loss(
    images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], scale: Tensor, contents: Sequence[str]
) -> Tensor:
    """CLIP's symmetric loss (Radford et al., 2021, Figure 3); equal captions share the target probability equally.

    images, texts: unit embeddings, row i is a pair; scale: logit scale; contents: caption i without its opening.
    """
    caption_ids = torch.tensor(
        [{text: n for n, text in enumerate(contents)}[text] for text in contents], device=images.device
    )
    same = (caption_ids[:, None] == caption_ids[None]).float()
    target, logits = same / same.sum(1, keepdim=True), scale * images @ texts.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(
    model: Any, tokenize: Callable[[list[str]], Tensor], scenes: planted.SceneFactors, images: Tensor, cfg: DictConfig,
    device: torch.device, previous_steps: int,
) -> list[float]:  # fmt: skip
    """Train by AdamW on a one-cycle schedule for `cfg.steps` steps or `cfg.minutes`; returns the loss of every step.

    scenes: of the `images`, uint8; previous_steps: of earlier runs, which change the seed.
    """
    model.to(device).train()
    model.visual.to(memory_format=torch.channels_last)
    seed = cfg.seed * 1_000_003 + previous_steps
    generator, caption_rng = torch.Generator(device).manual_seed(seed), random.Random(seed)
    augment, images = Augment(cfg.augment, generator), images.to(device)
    mean, std = (torch.tensor(PREPROCESSING[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
    caption_cfg = OmegaConf.create({**to_dict(cfg.caption_probabilities), "caption_noise": cfg.caption_noise})
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr)
    order, started = shuffled_batches(len(images), cfg.batch, generator), time.monotonic()
    losses: list[float] = []
    for step in one_cycle_steps(optimizer, cfg):
        rows = next(order)
        captions = [random_caption(scenes, i, caption_cfg, caption_rng) for i in rows.tolist()]
        x = (augment(images[rows].float() / 255) - mean) / std
        image_features = model.encode_image(x.to(memory_format=torch.channels_last), normalize=True)
        text_features = model.encode_text(tokenize([a + b for a, b in captions]).to(device), normalize=True)
        loss = clip_loss(image_features, text_features, model.logit_scale.exp(), [b for _, b in captions])
        update_weights(optimizer, model, loss)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
        print_progress(step, sum(losses[-100:]) / 100, started)
    return losses


# --- files ---------------------------------------------------------------------------------------------------


def build_model(cfg: DictConfig) -> tuple[Any, Callable[[list[str]], Tensor], list[dict[str, Any]]]:
    """The model of `cfg`, with the weights in `cfg.out` if there are any, its tokenizer, and the records of earlier
    runs.

    Raises UserError if the weights belong to another architecture.
    """
    out, runs = ROOT / cfg.out, []
    model_cfg = to_dict(cfg.model)
    tokenizer = train_tokenizer(vocabulary_captions(), MAX_MERGES, cfg.model.text_cfg.context_length, out)
    model_cfg["text_cfg"] |= {"vocab_size": len(tokenizer), "hf_tokenizer_name": cfg.name}
    if (out / WEIGHTS_FILE).exists():
        config = json.loads((out / CONFIG_FILE).read_text())
        if config["model_cfg"] != model_cfg:
            raise UserError(f"out={cfg.out}: has weights of another model, {config['model_cfg']}; choose another `out`")
        runs = config["training"]["runs"]
    else:
        write_config(cfg, model_cfg, runs)
    torch.manual_seed(cfg.seed)
    source = f"local-dir:{out}"
    return open_clip.create_model(source), open_clip.get_tokenizer(source), runs


def write_config(cfg: DictConfig, model_cfg: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """Write open_clip's configuration of the folder, with a record of its training, and the class names of its
    prompts."""
    training = {
        "caption_noise": cfg.caption_noise,
        "caption_probabilities": to_dict(cfg.caption_probabilities),
        "augment": to_dict(cfg.augment),
        "runs": list(runs),
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESSING, "training": training}
    write_durable(ROOT / cfg.out / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    write_durable(ROOT / cfg.out / "names.txt", "\n".join(PROMPT_NAMES) + "\n")


def save_model(model: nn.Module, cfg: DictConfig, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write half-precision weights and configuration to `cfg.out`. runs: records of all training runs, oldest first."""
    out = ROOT / cfg.out
    write_durable(out / WEIGHTS_FILE, save(half_precision_state(model)))
    write_config(cfg, json.loads((out / CONFIG_FILE).read_text())["model_cfg"], runs)


# --- command line --------------------------------------------------------------------------------------------


def load_settings(arguments: Sequence[str]) -> DictConfig:
    """Defaults, then the command line. Raises UserError for invalid settings."""
    return apply_overrides(ClipSettings, DictConfig(OmegaConf.load(CONFIG_FOLDER / "train" / "clip.yaml")), arguments)


def main(arguments: Sequence[str]) -> list[float]:
    """Train, save and measure; returns the loss of every step."""
    cfg = load_settings(arguments)
    losses: list[float] = []
    device = parse_device("device", cfg.device)
    if cfg.steps > 0:
        model, tokenize, runs = build_model(cfg)
        scenes = planted.sample_captioned_scenes(cfg.images, planted.SPLIT_SEEDS["train"] + cfg.seed)[0]
        images, started = render_uint8(scenes), time.monotonic()
        losses = train(model, tokenize, scenes, images, cfg, device, sum(run["steps"] for run in runs))
        seconds = time.monotonic() - started
        run = training_record(COMMAND, arguments, cfg, len(losses), cfg.images, seconds, device.type)
        save_model(model, cfg, [*runs, run])
    write_model_card(ROOT / cfg.out, cfg.test_images)
    print(f"saved {cfg.out}")
    return losses


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
