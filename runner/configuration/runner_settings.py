"""What the runner itself reads of a configuration, beside the signatures of what its nodes name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from classifier_lens.runner.configuration.value_ranges import (
    AnyText,
    BelowOne,
    Blur,
    Count,
    Index,
    Names,
    Noise,
    OneOf,
    Pixels,
    Rate,
    Reach,
    Seconds,
    Section,
    Seed,
    Share,
    Steps,
)
from classifier_lens.tasks.prompts.target_rules import Rule


class Node:
    """A part of a run, which a `_target_` makes."""


@dataclass(frozen=True)
class Select(Section):
    """conf/config.yaml says what each means, here as below."""

    classes: Names | None
    indices: Annotated[list[Index], MinLen(1)] | None
    center: Share


@dataclass(frozen=True)
class Lease(Section):
    lease: Seconds
    wait: bool


@dataclass(frozen=True)
class Checkpoint(Section):
    every: Count


@dataclass(frozen=True)
class Images(Section):
    side: Pixels
    erode: Reach
    dilate: Reach
    blur: Blur
    blur_kernel: Pixels
    rate: Rate


@dataclass(frozen=True)
class Domain(Section):
    target: Rule
    mask_threshold: BelowOne
    noise: Noise
    steps: Steps
    images: Images


@dataclass(frozen=True)
class Phrases(Section):
    objects: str | Names
    phrases: str | Names
    things: str | Names


@dataclass(frozen=True)
class Choice(Section):
    """A group whose option's name alone is read."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keys at the top of a configuration; those of None may be absent."""

    seed: Seed
    select: Select
    limit: Count | None
    batch: Annotated[int, Ge(1), Le(4096)] | Annotated[str, OneOf(("auto",))]
    threads: Annotated[int, Ge(1), Le(1024)] | None
    device: str
    outputs: str
    claim: Lease
    checkpoint: Checkpoint
    domain: Domain
    words: Phrases | None = None
    sampler: Choice | None = None
    generator: Node
    classifier: Node
    data: Node
    task: Node
    controls: Node
    baseline: Mapping[str, Node]
    optimizer: Node
    augment: Node
    logger: Node
    cache: Node
    safety: Node | None = None
    training: Node | None = None
    clip: Node | None = None
    captioner: Node | None = None
    segmenter: Node | None = None
    text_segmenter: Node | None = None
    rival: Node | None = None
    published: Annotated[str, OneOf(("code", "paper"))] | None = None  # of experiments of the papers
    variants: Mapping[str, Mapping[str, object]] | None = None  # settings that these refer to, by `published`
    samples: str | None = None  # a folder that experiments of the papers take images from


@dataclass(frozen=True)
class SubmitSettings:
    """conf/submit.yaml says what each means."""

    cluster: Annotated[str, OneOf(("slurm", "local"))]
    workers: Annotated[int, Ge(1), Le(10_000)]
    parallel: Annotated[int, Ge(1), Le(10_000)] | None
    minutes: Annotated[int, Ge(1), Le(1_000_000)]
    requeues: Annotated[int, Ge(0), Le(100_000)]
    signal: Annotated[int, Ge(1), Le(86_400)]
    gb: Annotated[int, Ge(1), Le(100_000)]
    cpus: Annotated[int, Ge(1), Le(4096)]
    gpus: Annotated[int, Ge(0), Le(64)]
    name: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    setup: list[AnyText]
