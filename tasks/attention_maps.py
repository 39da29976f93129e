"""Where an inverted picture attends to each word of its caption (DiG-IN, Fig. 12). Nothing is optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import DistanceWeights, OneOf
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset, TaskInputs, TextToImage
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    Example,
    Images,
    Objective,
    Problem,
    Reference,
    UserError,
)
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, mean_by_key, object_region, share_inside
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.problems.image_problems import (
    measure_confidences,
    problem_seed,
    problems_of_images,
    slug,
    unedited_image_fields,
)
from classifier_lens.tasks.prompts.target_rules import resolve_class_name


@dataclass(frozen=True, kw_only=True)
class AttentionMapProblem(Problem):
    """generator: whose attention is shown; label: index of the picture's class."""

    generator: TextToImage
    label: int


class AttentionMaps:
    """preserve: one of `cam_share.PRESERVE_WITH_OBJECT_MASK`; mask: a picture, white where the object is, None for the
    segmenter's; weights: of the two distances between picture and reconstruction, which are all there is to an answer's
    value.

    The maps are those of the generator's own window (`generator.attention_maps`: resolution and part of the chain), so
    that what is shown is what masks are made from; for Stable Diffusion it is the paper's, 16 x 16 and the first
    half."""

    baseline = "none"

    def __init__(
        self,
        preserve: Annotated[str, OneOf(PRESERVE_WITH_OBJECT_MASK)],
        mask: str | None,
        weights: DistanceWeights,
        captioner: Captioner,
    ) -> None:
        self.preserve, self.mask, self.weights, self.captioner = preserve, mask, weights, captioner
        self.dependencies = ()
        # the reconstruction is the inversion's alone
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        """Nothing is asked for by name."""

    def problems(self, world: TaskInputs) -> tuple[list[AttentionMapProblem], int]:
        """One problem per picture. Raises UserError where nothing attends to words."""
        if not world.generator.can_generate:
            raise UserError("generator=none: task=attention_maps shows where a generator attends, and there is none")
        count = len(world.dataset)
        found = problems_of_images(world.dataset, range(count), partial(self._image_problems, world))
        return list(islice(found, world.limit)), count

    def _image_problems(self, world: TaskInputs, i: int, example: Example) -> list[AttentionMapProblem]:
        """What is asked of one image."""
        side, labels = world.generator.resolution, world.classifier.labels
        label = labels.index(resolve_class_name("data.label", example.label, labels))
        fields = unedited_image_fields(world.dataset, i, example, self.captioner, side, self.preserve, self.mask)
        return [AttentionMapProblem(
            name=example.name, seed=problem_seed(world.seed, i), generator=world.generator,
            label=label, label_index=label, **fields,
        )]  # fmt: skip

    def objective(
        self, problems: Sequence[AttentionMapProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """The two distances: how well the inversion keeps what is to be kept."""
        return distances(reference, self.weights)

    def illustrate(self, problem: AttentionMapProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        """A map per word, named by `word_map_names`, and that of the class's words together, `class`; bilinear at the
        picture's size, each divided by its own maximum."""
        image = problem.image
        assert image is not None
        words, own = problem.generator.word_attention_maps(
            image, problem.edit.source, problem.edit.source_words, problem.seed
        )
        maps = torch.cat([words, own[None]])[:, None]
        large = F.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)
        large = large / large.amax(dim=(2, 3), keepdim=True)
        return dict(zip([*word_map_names(problem.edit.source), "class"], large, strict=True))

    def measure(self, problem: AttentionMapProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """Which share of each map's mass lies on the object, beside the object's share of the image (`area`), which an
        even map would have, and the mean of the caption's words. Where the mask is made from the class's own map, that
        has more than an even one almost by construction."""
        region = object_region(pictures, problem.preserve)
        within = {name: share_inside(pictures[name][0], region) for name in word_map_names(problem.edit.source)}
        own, words, area = share_inside(pictures["class"][0], region), fmean(within.values()), region.mean().item()
        error = (pictures["best"] - pictures["before"]).square().mean().clamp(min=1e-10)
        return {
            "source": classifier.labels[problem.label], "words": problem.edit.source.split(), "within": within,
            "within_class": own, "within_words": words, "area": area,
            "psnr": -10 * error.log10().item(),  # dB, of the reconstruction; 100 where it is perfect
            **measure_confidences(classifier, pictures, [problem.label]),
        }  # fmt: skip

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over the images."""
        kept = ("within_class", "within_words", "area", "psnr")
        return {"answers": len(records)} | mean_by_key([{key: r[key] for key in kept} for r in records])


def word_map_names(caption: str) -> list[str]:
    """What the pictures of a caption's words are called: "a crab" -> word-00-a, word-01-crab."""
    named = [f"-{slug(word)}" if any(map(str.isalnum, word)) else "" for word in caption.split()]
    return [f"word-{i:02d}{name}" for i, name in enumerate(named)]
