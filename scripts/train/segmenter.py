"""Train a small CLIPSeg, a text-prompted segmenter, for the planted world.

    python scripts/train/segmenter.py minutes=30

Both towers are trained here; a published CLIPSeg takes them from CLIP. Each call starts from the optimizer's state in
`work` and writes half-precision weights to `out`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
)  # fmt: skip

from classifier_lens.data import planted
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import indefinite_article
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.train.loop import fit, load_settings
from classifier_lens.scripts.train.pipeline_folder import encode_images, remove_local_paths

PROMPTS = (*(f"{indefinite_article(name)} {name}" for name in planted.CLASSES), *planted.PROP_PHRASES.values())
MEAN = STD = 0.5


@dataclass(frozen=True)
class SegmentationData:
    """Images (n, 3, h, w) uint8, masks of their object and their prop (n, h, w) uint8, and the indices of both (n,), -1
    for none."""

    images: Tensor
    object_masks: Tensor
    prop_masks: Tensor
    label: Tensor
    prop: Tensor


def render_segmentation_data(vae: AutoencoderKL, cfg: Any) -> SegmentationData:
    """Renders of objects, every fourth of a background or prop alone, followed by their autoencoder reconstructions."""
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, cfg.images, 1000):
        scenes = planted.sample_scenes(min(1000, cfg.images - start), planted.SPLIT_SEEDS["train"] + cfg.seed, start)
        replacement_kind = torch.where(
            scenes.prop == planted.ABSENT, planted.IMAGE_KINDS.index("background"), planted.IMAGE_KINDS.index("prop")
        )
        scenes.kind[::4] = replacement_kind[::4]
        rendered = planted.render(scenes)
        has_object = scenes.kind == planted.IMAGE_KINDS.index("object")
        parts.append((
            (rendered.image * 255).round().byte(), (rendered.object_mask * 255).round().byte(),
            (rendered.prop_mask * 255).round().byte(), torch.where(has_object, scenes.label, -1),
            torch.where(scenes.kind == planted.IMAGE_KINDS.index("background"), -1, scenes.prop),
        ))  # fmt: skip
    images, *rest = (torch.cat(column) for column in zip(*parts, strict=True))
    images = torch.cat([images, reconstruct(vae, images)])
    objects, props, label, prop = (torch.cat([values, values]) for values in rest)
    return SegmentationData(images, objects, props, label, prop)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Int[Tensor, "n 3 h w"]) -> Int[Tensor, "n 3 h w"]:
    """Reconstructions of uint8 images by the generator's autoencoder."""
    reconstructed = []
    for part in images.split(100):
        decoded = vae.decode(encode_images(vae, part.to(vae.device))).sample / 2 + 0.5
        reconstructed.append((decoded.clamp(0, 1) * 255).round().byte().cpu())
    return torch.cat(reconstructed)


class TrainableClipSeg(nn.Module):
    """A CLIPSeg whose towers are trained as well: the forward pass of the model itself excludes them from the
    gradient."""

    def __init__(self, model: CLIPSegForImageSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Float[Tensor, "b 3 h w"], tokens: Int[Tensor, "b l"], names: Int[Tensor, "k l"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b k"]]:
        """Mask logits of the prompts `tokens`, and CLIP's logits of the class `names` for the whole images."""
        clip = self.model.clip
        vision_output = clip.vision_model(pixel_values=images, output_hidden_states=True)
        text_features = clip.get_text_features(input_ids=torch.cat([tokens, names])).pooler_output
        layers = [vision_output.hidden_states[i + 1] for i in self.model.extract_layers]
        logits: Tensor = self.model.decoder(layers, text_features[: len(tokens)]).logits
        image_features = F.normalize(clip.visual_projection(vision_output.pooler_output), dim=-1)
        return logits, clip.logit_scale.exp() * image_features @ F.normalize(text_features[len(tokens) :], dim=-1).T


def build_clipseg(tokenizer: PreTrainedTokenizerBase, side: int, cfg: Any) -> CLIPSegForImageSegmentation:
    """A network with random weights of the configured shape."""
    torch.manual_seed(cfg.seed)
    special_tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(cfg.text) | special_tokens | {
        "vocab_size": len(tokenizer), "max_position_embeddings": cfg.token_length,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    decoder = OmegaConf.to_container(cfg.decoder)
    assert isinstance(decoder, dict)
    shape = {str(key): value for key, value in decoder.items()}
    return CLIPSegForImageSegmentation(
        CLIPSegConfig(text_config=text, vision_config=dict(cfg.vision) | {"image_size": side}, **shape)
    )


def main(arguments: Sequence[str]) -> None:
    cfg, device = load_settings("segmenter", arguments)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / cfg.teacher / "tokenizer", model_max_length=cfg.token_length)
    tokenizer.init_kwargs.pop("max_length", None)  # the teacher's, which would be saved beside ours
    vae = AutoencoderKL.from_pretrained(ROOT / cfg.teacher / "vae", torch_dtype=torch.float32).to(device)
    cache = ROOT / cfg.work / "scenes.pt"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(render_segmentation_data(vae, cfg)), cache)
    scenes = SegmentationData(**torch.load(cache, weights_only=True))
    tokens = tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt").input_ids
    classes, props = len(planted.CLASSES), len(planted.PROPS)
    probabilities = cfg.prompt_probabilities
    own_class_share, class_share = probabilities.own_class, probabilities.own_class + probabilities.other_class

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        draw = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator, device=device)))
        rows = torch.randint(len(scenes.images), (cfg.batch,), generator=draw)
        kind, any_class = torch.rand(cfg.batch, generator=draw), torch.randint(classes, (cfg.batch,), generator=draw)
        any_prop = torch.randint(props, (cfg.batch,), generator=draw)
        label, prop = scenes.label[rows], scenes.prop[rows]
        prompt_class = torch.where((kind < own_class_share) & (label >= 0), label, any_class)
        prompt_prop = torch.where((kind < (1 + class_share) / 2) & (prop >= 0), prop, any_prop)
        names_class = kind < class_share
        target_masks = torch.where(
            names_class[:, None, None], scenes.object_masks[rows] * (prompt_class == label)[:, None, None],
            scenes.prop_masks[rows] * (prompt_prop == prop)[:, None, None],
        ).to(device).float() / 255  # fmt: skip
        prompt_tokens = tokens[torch.where(names_class, prompt_class, classes + prompt_prop)].to(device)
        images = (scenes.images[rows].to(device).float() / 255 - MEAN) / STD
        logits, class_logits = (x.float() for x in model(images, prompt_tokens, tokens[:classes].to(device)))
        p = logits.sigmoid()
        overlap = 1 - (2 * (p * target_masks).sum(dim=(1, 2)) + 1) / ((p + target_masks).sum(dim=(1, 2)) + 1)
        # Without this loss the towers learn slowly to distinguish classes, and any class name segments every object.
        classification_loss = F.cross_entropy(class_logits, label.to(device), ignore_index=-1)
        return (
            F.binary_cross_entropy_with_logits(logits, target_masks)
            + overlap.mean()
            + cfg.classification_weight * classification_loss
        )

    side = scenes.images.shape[-1]
    trained = fit(
        "segmenter", TrainableClipSeg(build_clipseg(tokenizer, side, cfg)).to(device), loss_of, cfg, cfg.lr
    ).model
    out = ROOT / cfg.out
    trained.half().save_pretrained(out)
    resized = {"height": side, "width": side}
    images = ViTImageProcessor(size=resized, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    CLIPSegProcessor(images, tokenizer).save_pretrained(out)
    remove_local_paths(out)
    state = torch.load(ROOT / cfg.work / "segmenter.pt", weights_only=True, map_location="cpu")
    lines = [
        f"# {out.name}", "",
        "A CLIPSeg that segments what a text names in images of the planted world, half precision.", "",
        f"- {sum(p.numel() for p in trained.parameters()):,} parameters",
        f"- Data: {cfg.images:,} renders, unchanged and reconstructed by the autoencoder of `{cfg.teacher}`, "
        f"seed {cfg.seed}",
        f"- trained for {state['step']:,} steps of {cfg.batch}",
        f"- Command of the last run: `python scripts/train/segmenter.py {' '.join(arguments)}`",
        "", "Measured quality: `docs/results/`. License: Apache-2.0, as this repository.", "",
    ]  # fmt: skip
    (out / "README.md").write_text("\n".join(lines))
    print(f"saved {cfg.out}")


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
