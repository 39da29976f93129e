"""Types of configuration values with their ranges, checked by `schema.py`.

Every range has an upper bound, beyond which no run makes sense and some would crash without a message: memory, threads
and random seeds are finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen

from classifier_lens.runner.types import PRESERVE_OPTIONS


@dataclass(frozen=True)
class OneOf:
    """Metadata of a text: its allowed values."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Keys:
    """Metadata of a mapping: its keys, all of which are required."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Base of dataclasses of settings that do not build a part."""


# Counts and positions.
Count = Annotated[int, Ge(1), Le(1_000_000)]  # of images, problems, optimization steps
PerProblemCount = Annotated[int, Ge(1), Le(10_000)]  # of items per problem
Steps = Annotated[int, Ge(0), Le(100_000)]  # of an optimization; 0: no optimization
ChainSteps = Annotated[int, Ge(1), Le(1000)]  # of a sampler
ChainIndex = Annotated[int, Ge(0), Le(1000)]  # of a latent in a chain; 0 is the start latent
Pixels = Annotated[int, Ge(1), Le(8192)]  # side of an image, width of a kernel
PixelDistance = Annotated[int, Ge(0), Le(8192)]  # px; 0: no effect
Index = Annotated[int, Ge(0), Le(1_000_000_000)]  # a position
IndexRange = Annotated[Sequence[Index], Len(2, 2)]  # [first, end)
Seed = Annotated[int, Ge(0), Le(1_000_000_000)]  # derived seeds stay below torch's limit of 2^64

# Measures.
Positive = Annotated[float, Gt(0), Le(1_000_000)]
NonNegative = Annotated[float, Ge(0), Le(1_000_000)]
LearningRate = Annotated[float, Ge(0), Le(1000)]  # 0 leaves a parameter unchanged
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
NoiseStd = Annotated[float, Ge(0), Le(10)]  # standard deviation, images in [0, 1]
BlurSigma = Annotated[float, Ge(0), Le(8192)]  # standard deviation, px
Guidance = Annotated[float, Ge(0), Le(1000)]
Exponent = Annotated[float, Gt(0), Le(100)]
Threshold = Annotated[float, Ge(-1_000_000), Le(1_000_000)]
Percent = Annotated[float, Ge(0), Le(100)]
Seconds = Annotated[float, Gt(0), Le(10_000_000)]
Normalization = Annotated[Sequence[Annotated[float, Ge(-1000), Le(1000)]], Len(3, 3)]  # per RGB channel

# Texts. A plain `str` must not be empty; a number in its place is taken as its digits.
AnyText = Annotated[str, MinLen(0)]
Names = Annotated[Sequence[str], MinLen(1)]
Preserve = Annotated[str, OneOf(PRESERVE_OPTIONS)]
Dtype = Annotated[str, OneOf(("float32", "float16", "bfloat16"))]
Directions = Annotated[Sequence[Annotated[str, OneOf(("max", "min"))]], MinLen(1)]
UnitAddresses = str | Index | Annotated[list[str | Index], MinLen(1)]  # see tasks/units/addressing.py

# Lists and mappings.
Fractions = Annotated[Sequence[Fraction], MinLen(1)]
Color = Annotated[Sequence[Fraction], Len(3, 3)]  # RGB
LearningRates = Mapping[
    Annotated[str, OneOf(("latent", "text", "null", "pixels", "classifier_guidance", "tokens", "logits"))], LearningRate
]
PromptToPromptSteps = Annotated[Mapping[str, Fractions], Keys(("cross_replace_steps", "background_blend_steps"))]
TermWeights = Mapping[str, NonNegative]  # weight by the name of a loss term
EditWeights = Annotated[TermWeights, Keys(("class_log_prob", "latent_distance", "pixel_distance"))]
PromptWeights = Annotated[TermWeights, Keys(("class_log_prob", "unit_activation"))]
DistanceWeights = Annotated[TermWeights, Keys(("latent_distance", "pixel_distance"))]
UnitWeights = Annotated[TermWeights, Keys(("unit_activation", "latent_distance", "pixel_distance"))]
ComponentWeights = Annotated[TermWeights, Keys(("npca_contribution", "latent_distance", "pixel_distance"))]
