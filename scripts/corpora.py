"""Labelled pictures that classifiers are trained and measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from data import cifar10, planted
from data.ties import draw_tied

ROOT = Path(__file__).resolve().parent.parent
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

    heads: the names that each column's numbers stand for.
    """

    images: Tensor
    targets: Tensor
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
    n: int, seed: int, heads: Sequence[str], forms_share: Mapping[str, float], strength: Mapping[str, float],
    confusion: float,
) -> Corpus:  # fmt: skip
    """`n` renders, each form with its share, ties and labels as in `draw_tied`, drawn in blocks of 1000."""
    forms = {planted.FORMS.index(form): share for form, share in forms_share.items()}
    bounds = torch.tensor(list(forms.values())).cumsum(0)
    images, targets = [], []
    for start in range(0, n, 1000):
        scenes, labels = draw_tied(min(1000, n - start), seed, start, strength, confusion)
        choice = torch.bucketize(scenes.u[:, 6].contiguous(), bounds[:-1])
        scenes.form[:] = torch.tensor(list(forms))[choice]
        no_prop = (scenes.form == planted.FORMS.index("prop")) & (scenes.prop == planted.NONE)
        scenes.prop[no_prop] = (scenes.u[no_prop, 3] * len(planted.PROPS)).long()
        images.append((planted.render(scenes).image * 255).round().byte())
        targets.append(planted_targets(replace(scenes, label=labels), heads))
    return Corpus(torch.cat(images), torch.cat(targets), {name: HEADS[name] for name in heads})


def load_corpus(cfg: DictConfig, split: str, n: int) -> Corpus:
    """Up to `n` pictures of a split. Test pictures are objects without ties."""
    if cfg.data == "planted":
        if split == "train":
            return planted_corpus(
                n, planted.SPLIT_SEEDS["train"] + cfg.seed, cfg.heads, cfg.scenes, cfg.strength, cfg.confusion
            )
        return planted_corpus(n, planted.SPLIT_SEEDS["test"], cfg.heads, {"object": 1.0}, {}, 0.0)
    images, labels, _ = cifar10.load(ROOT / cfg.data_path, split)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(cfg.seed))[:n]
    return Corpus(images[order], labels[order, None], {"class": cifar10.CLASSES})
