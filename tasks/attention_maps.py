"""Cross-attention maps (DiG-IN, Fig. 12): where an inverted image attends to each word of its caption. Nothing is
optimized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import DistanceWeights, OneOf
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset, TaskInputs, TextToImage
from classifier_lens.runner.result_schema import (
    MASK,
    ORIGINAL,
    RESULT,
    START,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    StageFields,
)
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, Example, Objective, Problem, Reference, UserError
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, mean_by_key, object_region, share_inside
from classifier_lens.tasks.analysis.predictions import measure_confidences
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.problems.image_problems import problems_of_images, unedited_image_fields
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.target_rules import resolve_class_name

CLASS_NAME_MAP = ImageField("attention_class_name", "Attention to the class name", overlaid_on=(ORIGINAL.key,))


@dataclass(frozen=True, kw_only=True)
class AttentionMapProblem(Problem):
    """generator: whose attention maps are read; label: index of the image's class."""

    generator: TextToImage
    label: int


class AttentionMapRecord(StageFields):
    """words: of the caption; share_on_object: share of each word's map on the object, by the key of the map's image."""

    source: Annotated[str, Label("Source class")]
    words: list[str]
    share_on_object: Annotated[dict[str, float], Label("Share on the object")]
    share_on_object_class: Annotated[float, Label("Share on the object, class name")]
    share_on_object_words: Annotated[float, Label("Share on the object, mean of all words")]
    object_area: Annotated[float, Label("Share of the image that the object covers")]
    psnr: Annotated[float, Label("PSNR of the reconstruction in dB")]


SUMMARY_KEYS = ("share_on_object_class", "share_on_object_words", "object_area", "psnr")


def word_maps(words: Sequence[str]) -> list[ImageField]:
    """The images of the maps of a caption's words: "a crab" has the keys attention_00_a and attention_01_crab."""
    suffixes = [f"_{slug(word)}" if any(map(str.isalnum, word)) else "" for word in words]
    return [
        ImageField(f"attention_{i:02d}{suffix}", f"Attention to “{word}”", overlaid_on=(ORIGINAL.key,))
        for i, (word, suffix) in enumerate(zip(words, suffixes, strict=True))
    ]


RESULT_SCHEMA = ResultSchema(
    "Cross-attention maps",
    AttentionMapRecord,
    images=[
        ImageField(RESULT.key, "Reconstruction"),
        ImageField(START.key, "Reconstruction"),
        ImageField(MASK.key, "Mask of the object"),
        CLASS_NAME_MAP,
    ],
    images_by_record=lambda record: word_maps(record["words"]),
)


@dataclass
class AttentionMaps:
    """preserve: one of `cam_share.PRESERVE_WITH_OBJECT_MASK`; mask: a gray image, white where the object is, None for
    the segmenter's; weights: of the distances between image and reconstruction, which are the only terms.

    The maps are those from which masks are made, of the resolution and the part of the chain of
    `generator.attention_maps`; for Stable Diffusion as in the paper, 16 x 16 and the first half."""

    preserve: Annotated[str, OneOf(PRESERVE_WITH_OBJECT_MASK)]
    mask: str | None
    weights: DistanceWeights
    captioner: Captioner

    baseline = "none"
    dependencies = ()
    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT  # shows the inversion alone

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        """No setting names a class."""

    def problems(self, inputs: TaskInputs) -> tuple[list[AttentionMapProblem], int]:
        """One problem per image. Raises UserError without a generator."""
        if not inputs.generator.can_generate:
            raise UserError("generator=none: task=attention_maps needs a generator, whose attention it shows")
        count = len(inputs.dataset)
        problems = problems_of_images(inputs.dataset, range(count), partial(self._image_problems, inputs))
        return list(islice(problems, inputs.limit)), count

    def _image_problems(self, inputs: TaskInputs, i: int, example: Example) -> list[AttentionMapProblem]:
        """The problem of one image."""
        side, labels = inputs.generator.resolution, inputs.classifier.labels
        label = labels.index(resolve_class_name("data.label", example.label, labels))
        fields = unedited_image_fields(inputs.dataset, i, example, self.captioner, side, self.preserve, self.mask)
        return [AttentionMapProblem(
            name=example.name, seed=problem_seed(inputs.seed, i), generator=inputs.generator,
            label=label, label_index=label, **fields,
        )]  # fmt: skip

    def objective(
        self, problems: Sequence[AttentionMapProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """The two distances, which measure how well the inversion preserves the image."""
        return distances(reference, self.weights)

    def illustrate(
        self, problem: AttentionMapProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """A map per word and one of the class name, resized bilinearly to the image, each divided by its maximum."""
        image = problem.image
        assert image is not None
        maps, class_name_map = problem.generator.word_attention_maps(
            image, problem.edit.source, problem.edit.source_words, problem.seed
        )
        stack = torch.cat([maps, class_name_map[None]])[:, None]
        large = F.interpolate(stack, size=image.shape[-2:], mode="bilinear", align_corners=False)
        large = large / large.amax(dim=(2, 3), keepdim=True)
        return dict(zip([*word_maps(problem.edit.source.split()), CLASS_NAME_MAP], large, strict=True))

    def measure(self, problem: AttentionMapProblem, images: ResultImages, classifier: Classifier) -> AttentionMapRecord:
        """The share of each map on the object, and the object's share of the image, which is the share of a constant
        map. If the mask is made from the map of the class name, this map has a larger share almost by construction."""
        region, words = object_region(images, problem.preserve), problem.edit.source.split()
        shares = {field.key: share_inside(images.task_images[field][0], region) for field in word_maps(words)}
        mean_square_error = (images.result - images.before).square().mean().clamp(min=1e-10)
        return {
            "source": classifier.labels[problem.label], "words": words, "share_on_object": shares,
            "share_on_object_class": share_inside(images.task_images[CLASS_NAME_MAP][0], region),
            "share_on_object_words": fmean(shares.values()),
            "object_area": region.mean().item(),
            "psnr": -10 * mean_square_error.log10().item(),  # dB; 100 for a perfect reconstruction
            **measure_confidences(classifier, images, [problem.label]),
        }  # fmt: skip

    def summarize(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Means over the images."""
        return {"results": len(records), **mean_by_key([{key: r[key] for key in SUMMARY_KEYS} for r in records])}
