"""The planted world: a seeded renderer of 64 x 64 images with known class, background, prop, hue, masks and caption.
Ten classes in five similar pairs, eight backgrounds, four props and six hues vary independently."""

from classifier_lens.data.planted.captions import CAPTION_PREFIXES, caption
from classifier_lens.data.planted.dataset import CUE_MODES, SPLIT_SEEDS, SPLIT_SIZES, PlantedDataset, split_seed
from classifier_lens.data.planted.factors import (
    ABSENT,
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CLASSES,
    HUES,
    IMAGE_KINDS,
    PAIRS,
    PROP_PHRASES,
    PROPS,
    SHORTCUTS,
    SceneFactors,
)
from classifier_lens.data.planted.rendering import Rendering, render
from classifier_lens.data.planted.scenes import sample_captioned_scenes, sample_scenes
from classifier_lens.data.planted.shapes import IMAGE_SIZE

__all__ = [
    "ABSENT", "BACKGROUNDS", "BACKGROUND_PHRASES", "CAPTION_PREFIXES", "CLASSES", "CUE_MODES", "HUES", "IMAGE_KINDS",
    "IMAGE_SIZE", "PAIRS", "PROPS", "PROP_PHRASES", "SHORTCUTS", "SPLIT_SEEDS", "SPLIT_SIZES", "PlantedDataset",
    "Rendering", "SceneFactors", "caption", "render", "sample_captioned_scenes", "sample_scenes", "split_seed",
]  # fmt: skip
