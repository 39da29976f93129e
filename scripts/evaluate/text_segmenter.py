"""Rows of the shipped segmenter that goes by words, on renders and on sampled pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from classifier_lens.data import planted
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.consistency_model import lcm_generator
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Setting, domain_parts
from classifier_lens.scripts.evaluate.oracles import CLASSIFIER, contains_object, load_text_segmenter
from classifier_lens.scripts.evaluate.planted_world import held_out_images, images_from_captions


def segmenter_iou(setting: Setting, n: int) -> Estimate:
    """Intersection over union of what the class's name finds in held-out renders with the true object, cut at 0.5; the
    note has how often the name of the pair's other class finds anything."""
    images, _, scenes = held_out_images(setting, n)
    device = domain_parts(setting, CLASSIFIER).generator.device
    names = [planted.CLASSES[i] for i in scenes.label.tolist()]
    masks = load_text_segmenter().segment(images.to(device), names)[:, 0].cpu() > 0.5
    truth = torch.cat([planted.render(part).object_mask for part in (scenes[i : i + 64] for i in range(0, n, 64))])
    truth = F.interpolate(truth[:, None], size=images.shape[-2:], mode="area")[:, 0] > 0.5
    both, either = (masks & truth).flatten(1).sum(dim=1), (masks | truth).flatten(1).sum(dim=1)
    wrong = contains_object(setting, images, [paired_class(name) for name in names])
    note = f"the pair's other name finds something in {100 * sum(wrong) / n:.1f} %"
    return estimates.mean((both / either.clamp(min=1)).tolist(), note)


def segmenter_generated_accuracy(setting: Setting, n: int) -> Estimate:
    """How often a picture that the consistency model samples from a full caption holds something for the name of its
    class and nothing for that of the pair's other class."""
    images, scenes = images_from_captions(setting, n, lcm_generator(setting))
    names = [planted.CLASSES[i] for i in scenes.label.tolist()]
    own, wrong = (
        contains_object(setting, images, names),
        contains_object(setting, images, [paired_class(name) for name in names]),
    )
    note = f"own name {100 * sum(own) / n:.1f} %, the other's {100 * sum(wrong) / n:.1f} %"
    return estimates.proportion([a and not b for a, b in zip(own, wrong, strict=True)], note)


def paired_class(name: str) -> str:
    """The other class of a pair."""
    return next(b if name == a else a for a, b in planted.PAIRS if name in (a, b))


ROWS = (
    Metric("planted.segmenter_iou", segmenter_iou, 256, "", 0.80),
    Metric("planted.segmenter_sampled", segmenter_generated_accuracy, 256, "%"),
)
