"""Metrics of the shipped text-prompted segmenter, on renders and on generated images."""

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
    """Mean intersection over union of the mask for the class name and the true object in held-out renders, at threshold
    0.5; the note has how often the name of the other class of the pair finds anything."""
    images, _, scenes = held_out_images(setting, n)
    device = domain_parts(setting, CLASSIFIER).generator.device
    names = [planted.CLASSES[i] for i in scenes.label.tolist()]
    masks = load_text_segmenter().segment(images.to(device), names)[:, 0].cpu() > 0.5
    true_masks = torch.cat([planted.render(part).object_mask for part in (scenes[i : i + 64] for i in range(0, n, 64))])
    true_masks = F.interpolate(true_masks[:, None], size=images.shape[-2:], mode="area")[:, 0] > 0.5
    finds_other_class = contains_object(setting, images, [paired_class(name) for name in names])
    note = f"the other class of the pair finds something in {100 * sum(finds_other_class) / n:.1f} %"
    return estimates.mean(estimates.iou(masks, true_masks).tolist(), note)


def segmenter_generated_accuracy(setting: Setting, n: int) -> Estimate:
    """How often, in an image that the consistency model generates from a full caption, the name of its class finds
    something and that of the other class of the pair finds nothing."""
    images, scenes = images_from_captions(setting, n, lcm_generator(setting))
    names = [planted.CLASSES[i] for i in scenes.label.tolist()]
    finds_class, finds_other_class = (
        contains_object(setting, images, names),
        contains_object(setting, images, [paired_class(name) for name in names]),
    )
    class_share, other_class_share = (100 * sum(finds) / n for finds in (finds_class, finds_other_class))
    note = f"class name {class_share:.1f} %, other class of the pair {other_class_share:.1f} %"
    return estimates.proportion([a and not b for a, b in zip(finds_class, finds_other_class, strict=True)], note)


def paired_class(name: str) -> str:
    """The other class of a pair."""
    return next(b if name == a else a for a, b in planted.PAIRS if name in (a, b))


METRICS = (
    Metric("planted.segmenter_iou", segmenter_iou, 256, "", 0.80),
    Metric("planted.segmenter_generated", segmenter_generated_accuracy, 256, "%"),
)
