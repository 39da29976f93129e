"""Settings of the training scripts, with types and ranges; the comments in conf/train say what each means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classifier_lens.data import planted
from classifier_lens.runner.configuration.command_line import merge_overrides
from classifier_lens.runner.configuration.numeric_names import texts_of_overrides
from classifier_lens.runner.configuration.schema import check_settings
from classifier_lens.runner.configuration.value_ranges import (
    BelowOne,
    ChainSteps,
    Count,
    Fraction,
    Guidance,
    Index,
    Names,
    NonNegative,
    OneOf,
    PixelDistance,
    Pixels,
    Positive,
    PositiveFraction,
    Section,
    Seed,
    Steps,
)
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.scripts.train.labeled_images import DATASET_LOADERS, HEADS

BatchSize = Annotated[int, Ge(1), Le(65_536)]
Width = Annotated[int, Ge(1), Le(65_536)]  # channels of a layer
Depth = Annotated[int, Ge(1), Le(1000)]  # number of layers or heads
LearningRate = Annotated[float, Gt(0), Le(1000)]
Minutes = Annotated[float, Gt(0), Le(1_000_000)]
Seconds = Annotated[float, Gt(0), Le(10_000_000)]  # between checkpoints
DatasetName = Annotated[str, OneOf(("planted", "cifar10"))]


@dataclass(frozen=True)
class Augmentation(Section):
    crop: PositiveFraction
    flip: Fraction
    blur: Annotated[float, Ge(0), Le(100)]
    noise: Fraction
    color_jitter: Fraction
    jpeg: Annotated[float, Ge(0), Le(10)]
    erase: Annotated[float, Ge(0), Le(10)]


@dataclass(frozen=True)
class FaceTable(Section):
    label_column: str
    classes: Names | None
    size: Pixels
    train_table: str
    test_table: str


@dataclass(frozen=True)
class Adversarial(Section):
    epsilon: NonNegative
    step_size: Positive
    steps: Steps


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Settings of the training of a single network."""

    name: str
    out: str
    device: str
    seed: Seed
    images: Count
    steps: Steps
    minutes: Minutes | None
    batch: BatchSize
    lr: LearningRate
    weight_decay: NonNegative
    test_images: Count
    augment: Augmentation


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(NetworkSettings):
    data: Annotated[str, OneOf(tuple(DATASET_LOADERS))]
    data_path: str
    architecture: str
    kwargs: Mapping[str, Any]
    heads: Annotated[Sequence[Annotated[str, OneOf(tuple(HEADS))]], MinLen(1)]
    scenes: Annotated[Mapping[Annotated[str, OneOf(tuple(planted.IMAGE_KINDS))], Fraction], MinLen(1)]
    shortcuts: str | Mapping[str, Mapping[str, str]]
    shortcut_strength: Fraction | Mapping[str, Fraction]
    label_noise: Fraction
    border_width: PixelDistance
    faces: FaceTable
    adversarial: Adversarial


@dataclass(frozen=True)
class CaptionProbabilities(Section):
    only_place: Fraction
    only_prop: Fraction
    hue: Fraction
    place: Fraction
    prop: Fraction
    opening: Fraction


@dataclass(frozen=True)
class VisionTower(Section):
    image_size: Pixels
    layers: Annotated[Sequence[Depth], Len(4, 4)]
    width: Width
    head_width: Width


@dataclass(frozen=True)
class TextTower(Section):
    context_length: Width
    width: Width
    heads: Depth
    layers: Depth
    mlp_ratio: Positive


@dataclass(frozen=True)
class ClipModel(Section):
    embed_dim: Width
    vision_cfg: VisionTower
    text_cfg: TextTower


@dataclass(frozen=True, kw_only=True)
class ClipSettings(NetworkSettings):
    caption_noise: Fraction
    caption_probabilities: CaptionProbabilities
    model: ClipModel


@dataclass(frozen=True)
class Perceptual(Section):
    classifier: str
    layers: Names
    weight: NonNegative


@dataclass(frozen=True)
class GeneratorPart(Section):
    channels: Annotated[Sequence[Width], MinLen(1)]
    batch: BatchSize
    lr: LearningRate


@dataclass(frozen=True)
class Autoencoder(GeneratorPart):
    latent_channels: Width
    kl_weight: NonNegative
    resolution: Pixels
    perceptual: Perceptual | None


@dataclass(frozen=True)
class Unet(GeneratorPart):
    heads: Depth
    caption_dropout: Fraction
    snr_gamma: Positive
    object_weight: NonNegative


@dataclass(frozen=True)
class ResumableSettings:
    """Settings of a training that continues where it stopped."""

    data: DatasetName
    minutes: Minutes
    out: str
    work: str
    device: str
    seed: Seed
    bfloat16: bool
    save_every: Seconds
    ema_decay: BelowOne


@dataclass(frozen=True)
class GeneratorSettings(ResumableSettings):
    part: Annotated[str, OneOf(("vae", "decoder", "unet", "all"))]
    data_path: str | None
    images: Count
    token_dim: Width
    token_length: Width
    num_merges: Annotated[int, Ge(0), Le(65_536)]
    vae: Autoencoder
    unet: Unet


@dataclass(frozen=True)
class StudentUnet(Section):
    slim: bool
    time_cond_proj_dim: Width


@dataclass(frozen=True)
class Lora(Section):
    rank: Width
    target_modules: Names


@dataclass(frozen=True, kw_only=True)
class LcmSettings(ResumableSettings):
    part: Annotated[str, OneOf(("trajectories", "student", "all"))]
    student_type: Annotated[str, OneOf(("full", "lora"))]
    teacher: str
    trajectories: Count
    block_size: Count
    first_block: Index
    guidance_scale_range: Annotated[Sequence[Guidance], Len(2, 2)]
    caption_dropout: Fraction
    original_inference_steps: ChainSteps
    stride: ChainSteps
    student_batch: BatchSize
    lr: LearningRate
    huber_c: NonNegative
    unet: StudentUnet | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class PromptProbabilities(Section):
    own_class: Fraction
    other_class: Fraction


@dataclass(frozen=True)
class TransformerShape(Section):
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Depth


@dataclass(frozen=True)
class VisionTransformerShape(TransformerShape):
    patch_size: Pixels


@dataclass(frozen=True)
class Decoder(Section):
    extract_layers: Annotated[Sequence[Index], MinLen(1)]
    reduce_dim: Width
    decoder_num_attention_heads: Depth
    decoder_intermediate_size: Width
    projection_dim: Width


@dataclass(frozen=True)
class SegmenterSettings(ResumableSettings):
    teacher: str
    images: Count
    token_length: Width
    batch: BatchSize
    lr: LearningRate
    prompt_probabilities: PromptProbabilities
    classification_weight: NonNegative
    vision: VisionTransformerShape
    text: TransformerShape
    decoder: Decoder


RESUMABLE: Mapping[str, type[ResumableSettings]] = {
    "generator": GeneratorSettings, "lcm": LcmSettings, "segmenter": SegmenterSettings,
}  # fmt: skip
STUDENT_SECTION = {"full": "unet", "lora": "lora"}  # student_type -> its section of settings

# Old names of keys, by the settings that have them now.
_NETWORK_KEYS = {"test": "test_images", "augment.colour": "augment.color_jitter"}
RENAMED_KEYS: Mapping[type, Mapping[str, str]] = {
    ClassifierSettings: {
        **_NETWORK_KEYS, "ties": "shortcuts", "strength": "shortcut_strength", "confusion": "label_noise",
        "border": "border_width", "faces.label": "faces.label_column", "faces.train": "faces.train_table",
        "faces.test": "faces.test_table", "adversarial.step": "adversarial.step_size",
    },
    ClipSettings: {**_NETWORK_KEYS, "confusion": "caption_noise", "say": "caption_probabilities"},
    GeneratorSettings: {
        "ema": "ema_decay", "merges": "num_merges", "vae.kl": "vae.kl_weight", "vae.size": "vae.resolution",
        "unet.drop": "unet.caption_dropout", "unet.min_snr": "unet.snr_gamma",
    },
    LcmSettings: {
        "ema": "ema_decay", "form": "student_type", "block": "block_size", "first": "first_block",
        "guidance": "guidance_scale_range", "drop": "caption_dropout", "original_steps": "original_inference_steps",
        "huber": "huber_c", "lora.layers": "lora.target_modules", "unet.guidance_dim": "unet.time_cond_proj_dim",
    },
    SegmenterSettings: {
        "ema": "ema_decay", "asked": "prompt_probabilities", "asked.own": "prompt_probabilities.own_class",
        "asked.other": "prompt_probabilities.other_class", "naming": "classification_weight",
    },
}  # fmt: skip


def apply_overrides(settings_type: type, base: DictConfig, words: Sequence[str] = ()) -> DictConfig:
    """Defaults with a command's words over them. Raises UserError, in one line, for a word that is no `key=value`, an
    unknown or renamed key and a value of the wrong type or out of its range."""
    try:
        values: Any = OmegaConf.to_container(merge_overrides(base, words), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    renamed = RENAMED_KEYS.get(settings_type, {})
    return DictConfig(check_settings(settings_type, values, "", texts_of_overrides(words), renamed))


def check_student(cfg: DictConfig) -> None:
    """Raise UserError if the section of settings of a student's type is missing."""
    section = STUDENT_SECTION[cfg.student_type]
    if cfg.get(section) is None:
        raise UserError(f"student_type={cfg.student_type}: needs the settings `{section}`, which these defaults lack")
