"""Types of the settings that the runner itself reads; those of a part are in the signature of its `_target_`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from classifier_lens.runner.configuration.value_ranges import (
    AnyText,
    BelowOne,
    BlurSigma,
    Count,
    Index,
    LearningRate,
    Names,
    NoiseStd,
    OneOf,
    PixelDistance,
    Pixels,
    PositiveFraction,
    Seconds,
    Section,
    Seed,
    Steps,
)
from classifier_lens.tasks.prompts.target_rules import TargetRule


class Node:
    """A part of a run, built from its `_target_`."""


@dataclass(frozen=True)
class SelectSettings(Section):
    """Described in conf/config.yaml, as are the classes below."""

    classes: Names | None
    indices: Annotated[list[Index], MinLen(1)] | None
    center_crop: PositiveFraction


@dataclass(frozen=True)
class LeaseSettings(Section):
    duration: Seconds
    wait_for_others: bool


@dataclass(frozen=True)
class CheckpointSettings(Section):
    every: Count


@dataclass(frozen=True)
class NoGeneratorSettings(Section):
    resolution: Pixels
    erode_kernel: PixelDistance
    dilate_kernel: PixelDistance
    blur_sigma: BlurSigma
    blur_kernel: Pixels
    lr_scale: LearningRate


@dataclass(frozen=True)
class DomainSettings(Section):
    target: TargetRule
    mask_threshold: BelowOne
    crop_noise_std: NoiseStd
    optimizer_steps: Steps
    pixel_space: NoGeneratorSettings


@dataclass(frozen=True)
class ContextPhrases(Section):
    objects: str | Names
    places: str | Names
    co_occurring: str | Names
    hues: str | Names


@dataclass(frozen=True)
class ReportSettings(Section):
    """Described in conf/experiment/report.yaml."""

    classes: Names | None
    reference: str | None
    num_classes: Count


@dataclass(frozen=True)
class OptionName(Section):
    """A group of which only the name of the option is read."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The top-level keys of a configuration; those with a default may be absent."""

    seed: Seed
    select: SelectSettings
    limit: Count | None
    batch: Annotated[int, Ge(1), Le(4096)] | Annotated[str, OneOf(("auto",))]
    threads: Annotated[int, Ge(1), Le(1024)] | None
    device: str
    outputs: str
    lease: LeaseSettings
    checkpoint: CheckpointSettings
    domain: DomainSettings
    phrases: ContextPhrases | None = None
    sampler: OptionName | None = None
    generator: Node
    classifier: Node
    data: Node
    task: Node
    parametrization: Node
    baseline: Mapping[str, Node]
    optimizer: Node
    augment: Node
    logger: Node
    cache: Node
    safety_checker: Node | None = None
    training: Node | None = None
    clip: Node | None = None
    captioner: Node | None = None
    segmenter: Node | None = None
    text_segmenter: Node | None = None
    rival: Node | None = None
    overlay: Mapping[str, Node] | None = None
    published: Annotated[str, OneOf(("code", "paper"))] | None = None  # in experiments of the papers
    variants: Mapping[str, Mapping[str, object]] | None = None  # settings of these experiments, by `published`
    imagenet_samples: str | None = None  # image folder of experiments of the papers
    report: ReportSettings | None = None  # of experiment=report


@dataclass(frozen=True)
class SubmitSettings:
    """Described in conf/submit.yaml."""

    cluster: Annotated[str, OneOf(("slurm", "local"))]
    workers: Annotated[int, Ge(1), Le(10_000)]
    max_parallel: Annotated[int, Ge(1), Le(10_000)] | None
    minutes: Annotated[int, Ge(1), Le(1_000_000)]
    max_requeues: Annotated[int, Ge(0), Le(100_000)]
    signal: Annotated[int, Ge(1), Le(86_400)]
    mem_gb: Annotated[int, Ge(1), Le(100_000)]
    cpus: Annotated[int, Ge(1), Le(4096)]
    gpus: Annotated[int, Ge(0), Le(64)]
    name: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    setup: list[AnyText]
