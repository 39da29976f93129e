"""What the training scripts read of conf/train, with the types and ranges; the comments there say what each means."""

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
Width = Annotated[int, Ge(1), Le(65_536)]  # of a layer
Depth = Annotated[int, Ge(1), Le(1000)]  # how many of them
LearningRate = Annotated[float, Gt(0), Le(1000)]  # of learning
Minutes = Annotated[float, Gt(0), Le(1_000_000)]
Seconds = Annotated[float, Gt(0), Le(10_000_000)]  # between saved states
DatasetName = Annotated[str, OneOf(("planted", "cifar10"))]


@dataclass(frozen=True)
class Augmentation(Section):
    crop: PositiveFraction
    flip: Fraction
    blur: Annotated[float, Ge(0), Le(100)]
    noise: Fraction
    colour: Fraction
    jpeg: Annotated[float, Ge(0), Le(10)]
    erase: Annotated[float, Ge(0), Le(10)]


@dataclass(frozen=True)
class FaceTable(Section):
    label: str
    classes: Names | None
    size: Pixels
    train: str
    test: str


@dataclass(frozen=True)
class Adversarial(Section):
    epsilon: NonNegative
    step: Positive
    steps: Steps


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What trainings of a single network have in common."""

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
    test: Count
    confusion: Fraction
    augment: Augmentation


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(NetworkSettings):
    data: Annotated[str, OneOf(tuple(DATASET_LOADERS))]
    data_path: str
    architecture: str
    kwargs: Mapping[str, Any]
    heads: Annotated[Sequence[Annotated[str, OneOf(tuple(HEADS))]], MinLen(1)]
    scenes: Annotated[Mapping[Annotated[str, OneOf(tuple(planted.IMAGE_KINDS))], Fraction], MinLen(1)]
    ties: str | Mapping[str, Mapping[str, str]]
    strength: Fraction | Mapping[str, Fraction]
    border: PixelDistance
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
    say: CaptionProbabilities
    model: ClipModel


@dataclass(frozen=True)
class Perceptual(Section):
    classifier: str
    layers: Names
    weight: NonNegative


@dataclass(frozen=True)
class Autoencoder(Section):
    channels: Annotated[Sequence[Width], MinLen(1)]
    latent_channels: Width
    batch: BatchSize
    lr: LearningRate
    kl: NonNegative
    size: Pixels
    perceptual: Perceptual | None


@dataclass(frozen=True)
class Unet(Section):
    channels: Annotated[Sequence[Width], MinLen(1)]
    heads: Depth
    batch: BatchSize
    lr: LearningRate
    drop: Fraction
    min_snr: Positive
    object_weight: NonNegative


@dataclass(frozen=True)
class ResumableSettings:
    """Trainings that go on where they stopped."""

    data: DatasetName
    minutes: Minutes
    out: str
    work: str
    device: str
    seed: Seed
    bfloat16: bool
    save_every: Seconds
    ema: BelowOne


@dataclass(frozen=True)
class GeneratorSettings(ResumableSettings):
    part: Annotated[str, OneOf(("vae", "decoder", "unet", "all"))]
    data_path: str | None
    images: Count
    token_dim: Width
    token_length: Width
    merges: Annotated[int, Ge(0), Le(65_536)]
    vae: Autoencoder
    unet: Unet


@dataclass(frozen=True)
class StudentUnet(Section):
    slim: bool
    guidance_dim: Width


@dataclass(frozen=True)
class Lora(Section):
    rank: Width
    layers: Names


@dataclass(frozen=True, kw_only=True)
class LcmSettings(ResumableSettings):
    part: Annotated[str, OneOf(("trajectories", "student", "all"))]
    form: Annotated[str, OneOf(("full", "lora"))]
    teacher: str
    trajectories: Count
    block: Count
    first: Index
    guidance: Annotated[Sequence[Guidance], Len(2, 2)]
    drop: Fraction
    original_steps: ChainSteps
    stride: ChainSteps
    student_batch: BatchSize
    lr: LearningRate
    huber: NonNegative
    unet: StudentUnet | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class PromptShares(Section):
    own: Fraction
    other: Fraction


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
    asked: PromptShares
    naming: NonNegative
    vision: VisionTransformerShape
    text: TransformerShape
    decoder: Decoder


RESUMABLE: Mapping[str, type[ResumableSettings]] = {
    "generator": GeneratorSettings, "lcm": LcmSettings, "segmenter": SegmenterSettings,
}  # fmt: skip
STUDENT_SECTION = {"full": "unet", "lora": "lora"}  # of a student's form, the settings that it needs


def apply_overrides(kind: type, base: DictConfig, words: Sequence[str] = ()) -> DictConfig:
    """Defaults with a command's words over them. Raises UserError, in one line, for a word that is no `key=value`, an
    unknown key and a value of the wrong type or out of its range."""
    try:
        given: Any = OmegaConf.to_container(merge_overrides(base, words), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    return DictConfig(check_settings(kind, given, "", texts_of_overrides(words)))


def check_student(cfg: DictConfig) -> None:
    """Raise UserError where a student has no settings of its form."""
    part = STUDENT_SECTION[cfg.form]
    if cfg.get(part) is None:
        raise UserError(f"form={cfg.form}: needs settings {part}, which these defaults have not")
