"""What the training scripts read of conf/train, with the types and ranges; the comments there say what each means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from classifier_lens.data import planted
from classifier_lens.runner.configuration.command_line import merged
from classifier_lens.runner.configuration.numeric_names import of_words
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
    Pixels,
    Positive,
    Reach,
    Section,
    Seed,
    Share,
    Steps,
)
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.scripts.train.labeled_images import CORPORA, HEADS

Batch = Annotated[int, Ge(1), Le(65_536)]
Width = Annotated[int, Ge(1), Le(65_536)]  # of a layer
Depth = Annotated[int, Ge(1), Le(1000)]  # how many of them
Rate = Annotated[float, Gt(0), Le(1000)]  # of learning
Minutes = Annotated[float, Gt(0), Le(1_000_000)]
Seconds = Annotated[float, Gt(0), Le(10_000_000)]  # between saved states
Data = Annotated[str, OneOf(("planted", "cifar10"))]


@dataclass(frozen=True)
class Augmentation(Section):
    crop: Share
    flip: Fraction
    blur: Annotated[float, Ge(0), Le(100)]
    noise: Fraction
    colour: Fraction
    jpeg: Annotated[float, Ge(0), Le(10)]
    erase: Annotated[float, Ge(0), Le(10)]


@dataclass(frozen=True)
class Faces(Section):
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
class Network:
    """What trainings of a single network have in common."""

    name: str
    out: str
    device: str
    seed: Seed
    images: Count
    steps: Steps
    minutes: Minutes | None
    batch: Batch
    lr: Rate
    weight_decay: NonNegative
    test: Count
    confusion: Fraction
    augment: Augmentation


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(Network):
    data: Annotated[str, OneOf(tuple(CORPORA))]
    data_path: str
    architecture: str
    kwargs: Mapping[str, Any]
    heads: Annotated[Sequence[Annotated[str, OneOf(tuple(HEADS))]], MinLen(1)]
    scenes: Annotated[Mapping[Annotated[str, OneOf(tuple(planted.FORMS))], Fraction], MinLen(1)]
    ties: str | Mapping[str, Mapping[str, str]]
    strength: Fraction | Mapping[str, Fraction]
    border: Reach
    faces: Faces
    adversarial: Adversarial


@dataclass(frozen=True)
class Say(Section):
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
class Towers(Section):
    embed_dim: Width
    vision_cfg: VisionTower
    text_cfg: TextTower


@dataclass(frozen=True, kw_only=True)
class ClipSettings(Network):
    say: Say
    model: Towers


@dataclass(frozen=True)
class Perceptual(Section):
    classifier: str
    layers: Names
    weight: NonNegative


@dataclass(frozen=True)
class Autoencoder(Section):
    channels: Annotated[Sequence[Width], MinLen(1)]
    latent_channels: Width
    batch: Batch
    lr: Rate
    kl: NonNegative
    size: Pixels
    perceptual: Perceptual | None


@dataclass(frozen=True)
class Unet(Section):
    channels: Annotated[Sequence[Width], MinLen(1)]
    heads: Depth
    batch: Batch
    lr: Rate
    drop: Fraction
    min_snr: Positive
    object_weight: NonNegative


@dataclass(frozen=True)
class Long:
    """Trainings that go on where they stopped."""

    data: Data
    minutes: Minutes
    out: str
    work: str
    device: str
    seed: Seed
    bfloat16: bool
    save_every: Seconds
    ema: BelowOne


@dataclass(frozen=True)
class GeneratorSettings(Long):
    part: Annotated[str, OneOf(("vae", "decoder", "unet", "all"))]
    data_path: str | None
    images: Count
    token_dim: Width
    token_length: Width
    merges: Annotated[int, Ge(0), Le(65_536)]
    vae: Autoencoder
    unet: Unet


@dataclass(frozen=True)
class Slim(Section):
    slim: bool
    guidance_dim: Width


@dataclass(frozen=True)
class Lora(Section):
    rank: Width
    layers: Names


@dataclass(frozen=True, kw_only=True)
class LcmSettings(Long):
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
    student_batch: Batch
    lr: Rate
    huber: NonNegative
    unet: Slim | None = None
    lora: Lora | None = None


@dataclass(frozen=True)
class Asked(Section):
    own: Fraction
    other: Fraction


@dataclass(frozen=True)
class Tower(Section):
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Depth


@dataclass(frozen=True)
class Patches(Tower):
    patch_size: Pixels


@dataclass(frozen=True)
class Decoder(Section):
    extract_layers: Annotated[Sequence[Index], MinLen(1)]
    reduce_dim: Width
    decoder_num_attention_heads: Depth
    decoder_intermediate_size: Width
    projection_dim: Width


@dataclass(frozen=True)
class SegmenterSettings(Long):
    teacher: str
    images: Count
    token_length: Width
    batch: Batch
    lr: Rate
    asked: Asked
    naming: NonNegative
    vision: Patches
    text: Tower
    decoder: Decoder


LONG: Mapping[str, type[Long]] = {
    "generator": GeneratorSettings, "lcm": LcmSettings, "segmenter": SegmenterSettings,
}  # fmt: skip
PARTS = {"full": "unet", "lora": "lora"}  # of a student's form, the settings that it needs


def checked(kind: type, base: DictConfig, words: Sequence[str] = ()) -> DictConfig:
    """Defaults with a command's words over them. Raises UserError, in one line, for a word that is no `key=value`, an
    unknown key and a value of the wrong type or out of its range."""
    try:
        given: Any = OmegaConf.to_container(merged(base, words), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    return DictConfig(check_settings(kind, given, "", of_words(words)))


def check_form(cfg: DictConfig) -> None:
    """Raise UserError where a student has no settings of its form."""
    part = PARTS[cfg.form]
    if cfg.get(part) is None:
        raise UserError(f"form={cfg.form}: needs settings {part}, which these defaults have not")
