"""Labeled images for the training and measurement of classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig
from torch import Tensor

from classifier_lens.data import cifar10, planted
from classifier_lens.data.colored_borders import CIFAR10_FACTORS, paint_borders, sample_border_colors
from classifier_lens.data.fairface import FILE_COLUMN, attributes, read_table, select_labels
from classifier_lens.data.images import center_crop_resize, read_image
from classifier_lens.data.planted.cues import (
    PLANTED_FACTORS,
    PLANTED_SHORTCUTS,
    factor_columns,
    sample_shortcut_scenes,
)
from classifier_lens.data.shortcuts import (
    FactorValues,
    Shortcuts,
    ShortcutStrength,
    check_shortcuts,
    has_cue,
    subsample_to_strength,
)
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError

IGNORE_INDEX = -100  # target of a factor that an image does not show
HEADS = {
    "class": planted.CLASSES,
    "background": planted.BACKGROUNDS,
    "prop": (*planted.PROPS, "none"),
    "hue": planted.HUES,
}


@dataclass(frozen=True)
class LabeledImages:
    """Images (n, 3, h, w) uint8 and targets (n, number of heads) long, `IGNORE_INDEX` where an image shows no value.

    has_cue: (n,) whether an image shows the cue of the class that it is labeled with; heads: per column of the targets
    the names of its classes.
    """

    images: Tensor
    targets: Tensor
    has_cue: Tensor
    heads: dict[str, tuple[str, ...]]


def planted_targets(scenes: planted.SceneFactors, heads: Sequence[str]) -> Tensor:
    """The targets of scenes, (n, number of heads): no class or hue without an object, no prop on a bare background."""
    has_object = scenes.kind == planted.IMAGE_KINDS.index("object")
    prop = torch.where(scenes.prop == planted.ABSENT, len(planted.PROPS), scenes.prop)
    prop = torch.where(scenes.kind == planted.IMAGE_KINDS.index("background"), len(planted.PROPS), prop)
    columns = {
        "class": torch.where(has_object, scenes.label, IGNORE_INDEX),
        "background": scenes.background,
        "prop": prop,
        "hue": torch.where(has_object, scenes.hue, IGNORE_INDEX),
    }
    return torch.stack([columns[name] for name in heads], dim=1)


def render_8bit(scenes: planted.SceneFactors) -> Tensor:
    """The images of scenes, (n, 3, 64, 64) uint8."""
    return (planted.render(scenes).image * 255).round().byte()


def render_labeled_images(
    n: int,
    seed: int,
    heads: Sequence[str],
    kind_shares: Mapping[str, float],
    strength: ShortcutStrength,
    label_noise: float,
    shortcuts: Shortcuts = PLANTED_SHORTCUTS,
) -> LabeledImages:
    """`n` renders, each kind of image with its share, shortcuts and labels as in `sample_shortcut_scenes`. They are
    rendered in blocks of 1000."""
    kinds = {planted.IMAGE_KINDS.index(form): share for form, share in kind_shares.items()}
    bounds = torch.tensor(list(kinds.values())).cumsum(0)
    images, targets, cue_flags = [], [], []
    for start in range(0, n, 1000):
        scenes, labels = sample_shortcut_scenes(min(1000, n - start), seed, start, strength, label_noise, shortcuts)
        choice = torch.bucketize(scenes.u[:, 6].contiguous(), bounds[:-1])
        scenes.kind[:] = torch.tensor(list(kinds))[choice]
        no_prop = (scenes.kind == planted.IMAGE_KINDS.index("prop")) & (scenes.prop == planted.ABSENT)
        scenes.prop[no_prop] = (scenes.u[no_prop, 3] * len(planted.PROPS)).long()
        images.append(render_8bit(scenes))
        targets.append(planted_targets(replace(scenes, label=labels), heads))
        cue_flags.append(has_cue(factor_columns(scenes), labels, PLANTED_FACTORS, shortcuts))
    return LabeledImages(
        torch.cat(images), torch.cat(targets), torch.cat(cue_flags), {name: HEADS[name] for name in heads}
    )


def _planted(cfg: DictConfig, split: str, n: int) -> LabeledImages:
    """Renders; test images show objects."""
    check_shortcuts(cfg.shortcuts, PLANTED_FACTORS)
    if split == "train":
        seed = planted.SPLIT_SEEDS["train"] + cfg.seed
        return render_labeled_images(
            n, seed, cfg.heads, cfg.scenes, cfg.shortcut_strength, cfg.label_noise, cfg.shortcuts
        )
    return render_labeled_images(n, planted.SPLIT_SEEDS["test"], cfg.heads, {"object": 1.0}, {}, 0.0, cfg.shortcuts)


def _cifar10(cfg: DictConfig, split: str, n: int) -> LabeledImages:
    """Photographs; if a class has a shortcut, all images have a border."""
    check_shortcuts(cfg.shortcuts, CIFAR10_FACTORS)
    images, labels, _ = cifar10.read_split(ROOT / cfg.data_path, split)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cfg.seed))[:n]
    images, labels = images[order], labels[order]
    cue_flags = torch.zeros(len(order), dtype=torch.bool)
    if cfg.shortcuts:
        strength = cfg.shortcut_strength if split == "train" else {}
        colors = sample_border_colors(labels, order.tolist(), cfg.seed, cfg.shortcuts, strength)
        images, cue_flags = (
            paint_borders(images, colors, cfg.border_width),
            has_cue({"border": colors}, labels, CIFAR10_FACTORS, cfg.shortcuts),
        )
    return LabeledImages(images, labels[:, None], cue_flags, {"class": cifar10.CLASSES})


def _fairface(cfg: DictConfig, split: str, n: int) -> LabeledImages:
    """Images of a table; shortcuts leave out training images. The classes are those of both splits."""
    root, faces = ROOT / cfg.data_path, cfg.faces
    tables = {name: read_table(root / faces[f"{name}_table"]) for name in ("train", "test")}
    if tables["train"][0].keys() != tables["test"][0].keys():
        raise UserError(
            f"faces: {faces.train_table} and {faces.test_table} differ in their columns; give tables with equal columns"
        )
    all_rows = [*tables["train"], *tables["test"]]
    classes = select_labels(all_rows, faces.label_column, faces.classes)
    values = {column: names for column, names in attributes(all_rows).items() if column != faces.label_column}
    rows = [row for row in tables[split] if row[faces.label_column] in classes]
    factors = FactorValues(classes, values)
    check_shortcuts(cfg.shortcuts, factors)
    labels = torch.tensor([classes.index(row[faces.label_column]) for row in rows])
    columns = {c: torch.tensor([names.index(row[c]) for row in rows]) for c, names in values.items()}
    cue_flags = has_cue(columns, labels, factors, cfg.shortcuts)
    indices = subsample_to_strength(
        labels, cue_flags, classes, cfg.shortcut_strength if split == "train" else {}, cfg.seed
    )
    indices = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(cfg.seed))[:n]]
    resized_images = (center_crop_resize(read_image(root / rows[i][FILE_COLUMN]), faces.size) for i in indices.tolist())
    images = torch.stack([(image * 255).round().byte() for image in resized_images])
    return LabeledImages(images, labels[indices, None], cue_flags[indices], {"class": classes})


# Functions that load the images of each `data=`.
DATASET_LOADERS = {"planted": _planted, "cifar10": _cifar10, "fairface": _fairface}


def load_labeled_images(cfg: DictConfig, split: str, n: int) -> LabeledImages:
    """Up to `n` images of a split, train | test. In training images the classes of `cfg.shortcuts` have their cues with
    `cfg.shortcut_strength`; test images have no shortcuts. Raises UserError for shortcuts that the data cannot have."""
    return DATASET_LOADERS[cfg.data](cfg, split, n)
