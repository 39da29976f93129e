"""The planted world as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from classifier_lens.data.digests import hash_values
from classifier_lens.data.image_selection import check_choice, check_count, check_index, check_seed
from classifier_lens.data.planted.captions import caption
from classifier_lens.data.planted.cues import PLANTED_FACTORS, PLANTED_SHORTCUTS, add_cues, remove_cues
from classifier_lens.data.planted.factors import CLASSES, PAIRS, SceneFactors
from classifier_lens.data.planted.rendering import Rendering, render
from classifier_lens.data.planted.scenes import sample_scenes
from classifier_lens.data.shortcuts import Shortcuts, check_shortcuts
from classifier_lens.data.similar_classes import PairedClasses
from classifier_lens.runner.configuration.value_ranges import Count, OneOf, Seed
from classifier_lens.runner.types import Example

SPLIT_SEEDS = {"train": 1_000, "validation": 2_000, "test": 3_000}
SPLIT_SIZES = {"train": 100_000, "validation": 2_000, "test": 10_000}
CUE_MODES = ("independent", "present", "absent")

# The images depend on the code of this folder.
SOURCE_TEXTS = [file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))]


def split_seed(split: str, seed: int) -> int:
    """The seed of the scenes of a split: run seed 0 gives the split itself, other seeds give new scenes.

    No two splits and run seeds have the same one. Raises UserError for an unknown split or a negative seed.
    """
    return SPLIT_SEEDS[check_choice("data.split", split, SPLIT_SEEDS)] + 10_000 * check_seed(seed)


class PlantedDataset(PairedClasses):
    """Rendered images with known ground truth, a `runner.types.Dataset`.

    An image is rendered when it is accessed; image `i` depends on `(split, seed, i)` alone.

    Args:
        split: train | validation | test.
        count: number of images, the first of the split; None for all.
        seed: of the run; other seeds give other images of the same distribution.
        cues: one of `CUE_MODES`: all images of the classes with a shortcut show the cue (`present`) or none does
            (`absent`, the factor gets the next value), or all factors are independent (`independent`).
        shortcuts: the cues, None for those in `PLANTED_SHORTCUTS`.
    """

    labels: tuple[str, ...] = CLASSES
    pairs = PAIRS

    def __init__(
        self,
        split: Annotated[str, OneOf(tuple(SPLIT_SEEDS))],
        count: Count | None,
        seed: Seed,
        cues: Annotated[str, OneOf(CUE_MODES)],
        shortcuts: Shortcuts | None,
    ) -> None:
        scene_seed = split_seed(split, seed)
        check_choice("data.cues", cues, CUE_MODES)
        cue_of_class = PLANTED_SHORTCUTS if shortcuts is None else shortcuts
        check_shortcuts(cue_of_class, PLANTED_FACTORS)
        self.split = split
        self.digest = hash_values("planted", SOURCE_TEXTS, scene_seed, count, cues, shortcuts)
        scenes = sample_scenes(check_count(count, SPLIT_SIZES[split]), scene_seed)
        if cues == "present":
            scenes = add_cues(scenes, cue_of_class)
        elif cues == "absent":
            scenes = remove_cues(scenes, cue_of_class)
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> Example:
        """Image `i`, (3, 64, 64) in multiples of 1/255 as in a saved file, with its full caption."""
        scenes = self._scene(i)
        name, origin = f"{self.split}-{i:05d}", f"{self.digest} {i}"  # not the pixels, which machines round differently
        return Example(
            name, lambda: (render(scenes).image[0] * 255).round() / 255, CLASSES[int(scenes.label)],
            caption(scenes, 0), origin,
        )  # fmt: skip

    def ground_truth(self, i: int) -> tuple[SceneFactors, Rendering]:
        """The factors of image `i` and its rendering, not rounded to 8 bits, with masks; both are batches of one."""
        scenes = self._scene(i)
        return scenes, render(scenes)

    def _scene(self, i: int) -> SceneFactors:
        position = check_index(i, len(self))
        return self.scenes[position : position + 1]

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class."""
        return [i for i, k in enumerate(self.scenes.label.tolist()) if CLASSES[k] == label.lower()]
