"""Labelled pictures that classifiers are trained and measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig
from torch import Tensor

from classifier_lens.data import cifar10, planted
from classifier_lens.data.colored_borders import CIFAR10, draw_borders, paint
from classifier_lens.data.fairface import FILE, attributes, labels_of, read_table
from classifier_lens.data.image_folder import read_picture, square
from classifier_lens.data.shortcuts import (
    PLANTED,
    SHORTCUTS,
    Factors,
    Strength,
    Ties,
    check_ties,
    columns_of,
    cues_shown,
    draw_tied,
    subsample,
)
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError

IGNORED = -100  # a target that a picture does not show
HEADS = {
    "class": planted.CLASSES,
    "background": planted.BACKGROUNDS,
    "prop": (*planted.PROPS, "none"),
    "hue": planted.HUES,
}


@dataclass(frozen=True)
class Corpus:
    """Pictures (n, 3, h, w) uint8 and targets (n, number of heads) long, `IGNORED` where a picture shows none.

    shown: (n,) whether a picture shows the cue that the ties give to the class it is labelled with;
    heads: the names that each column's numbers stand for.
    """

    images: Tensor
    targets: Tensor
    shown: Tensor
    heads: dict[str, tuple[str, ...]]


def planted_targets(scenes: planted.Scenes, heads: Sequence[str]) -> Tensor:
    """What each scene shows, (n, number of heads): no class or hue without an object, no prop on a bare background."""
    object_there = scenes.form == planted.FORMS.index("object")
    prop = torch.where(scenes.prop == planted.NONE, len(planted.PROPS), scenes.prop)
    prop = torch.where(scenes.form == planted.FORMS.index("background"), len(planted.PROPS), prop)
    columns = {
        "class": torch.where(object_there, scenes.label, IGNORED),
        "background": scenes.background,
        "prop": prop,
        "hue": torch.where(object_there, scenes.hue, IGNORED),
    }
    return torch.stack([columns[name] for name in heads], dim=1)


def planted_corpus(
    n: int, seed: int, heads: Sequence[str], forms_share: Mapping[str, float], strength: Strength, confusion: float,
    ties: Ties = SHORTCUTS,
) -> Corpus:  # fmt: skip
    """`n` renders, each form with its share, ties and labels as in `draw_tied`, drawn in blocks of 1000."""
    forms = {planted.FORMS.index(form): share for form, share in forms_share.items()}
    bounds = torch.tensor(list(forms.values())).cumsum(0)
    images, targets, shown = [], [], []
    for start in range(0, n, 1000):
        scenes, labels = draw_tied(min(1000, n - start), seed, start, strength, confusion, ties)
        choice = torch.bucketize(scenes.u[:, 6].contiguous(), bounds[:-1])
        scenes.form[:] = torch.tensor(list(forms))[choice]
        no_prop = (scenes.form == planted.FORMS.index("prop")) & (scenes.prop == planted.NONE)
        scenes.prop[no_prop] = (scenes.u[no_prop, 3] * len(planted.PROPS)).long()
        images.append((planted.render(scenes).image * 255).round().byte())
        targets.append(planted_targets(replace(scenes, label=labels), heads))
        shown.append(cues_shown(columns_of(scenes), labels, PLANTED, ties))
    return Corpus(torch.cat(images), torch.cat(targets), torch.cat(shown), {name: HEADS[name] for name in heads})


def _planted(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Renders; test pictures are objects."""
    check_ties(cfg.ties, PLANTED)
    if split == "train":
        seed = planted.SPLIT_SEEDS["train"] + cfg.seed
        return planted_corpus(n, seed, cfg.heads, cfg.scenes, cfg.strength, cfg.confusion, cfg.ties)
    return planted_corpus(n, planted.SPLIT_SEEDS["test"], cfg.heads, {"object": 1.0}, {}, 0.0, cfg.ties)


def _cifar10(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Photographs; where classes are tied, all of them have a border."""
    check_ties(cfg.ties, CIFAR10)
    images, labels, _ = cifar10.load(ROOT / cfg.data_path, split)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cfg.seed))[:n]
    images, labels = images[order], labels[order]
    shown = torch.zeros(len(order), dtype=torch.bool)
    if cfg.ties:
        strength = cfg.strength if split == "train" else {}
        colours = draw_borders(labels, order.tolist(), cfg.seed, cfg.ties, strength)
        images, shown = paint(images, colours, cfg.border), cues_shown({"border": colours}, labels, CIFAR10, cfg.ties)
    return Corpus(images, labels[:, None], shown, {"class": cifar10.CLASSES})


def _fairface(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Pictures of a table; ties choose which of the training pictures are kept. Classes are those of both splits."""
    root, faces = ROOT / cfg.data_path, cfg.faces
    tables = {name: read_table(root / faces[name]) for name in ("train", "test")}
    if tables["train"][0].keys() != tables["test"][0].keys():
        raise UserError(f"faces: {faces.train} and {faces.test} differ in their columns")
    known = [*tables["train"], *tables["test"]]
    classes = labels_of(known, faces.label, faces.classes)
    values = {column: names for column, names in attributes(known).items() if column != faces.label}
    rows = [row for row in tables[split] if row[faces.label] in classes]
    factors = Factors(classes, values)
    check_ties(cfg.ties, factors)
    labels = torch.tensor([classes.index(row[faces.label]) for row in rows])
    columns = {c: torch.tensor([names.index(row[c]) for row in rows]) for c, names in values.items()}
    shown = cues_shown(columns, labels, factors, cfg.ties)
    kept = subsample(labels, shown, classes, cfg.strength if split == "train" else {}, cfg.seed)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(cfg.seed))[:n]]
    pictures = (square(read_picture(root / rows[i][FILE]), faces.size) for i in kept.tolist())
    images = torch.stack([(picture * 255).round().byte() for picture in pictures])
    return Corpus(images, labels[kept, None], shown[kept], {"class": classes})


# Where the pictures of `data=` come from.
CORPORA = {"planted": _planted, "cifar10": _cifar10, "fairface": _fairface}


def load_corpus(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Up to `n` pictures of a split, train | test. In training pictures the classes of `cfg.ties` have their cues with
    `cfg.strength`, test pictures have no ties. Raises UserError for ties that the data cannot have."""
    return CORPORA[cfg.data](cfg, split, n)
