"""ImageNet in its published layout, with folders or files that are named by WordNet ids."""

from __future__ import annotations

import re
from pathlib import Path

from classifier_lens.data import imagenet_hierarchy
from classifier_lens.data.image_folder import LabeledFiles, check_folder, find_images
from classifier_lens.data.imagenet_hierarchy import class_names
from classifier_lens.runner.configuration.value_ranges import Seed
from classifier_lens.runner.types import UserError

_LAYOUT = "<n01440764 or class>/<image> or n01440764_<image>"
_WNID = re.compile(r"n\d{8}")


def class_name_of_wnid(name: str) -> str:
    """The class name of a WordNet id; other names are returned unchanged.

    Raises UserError for an id that does not belong to the 1000 classes.
    """
    if not _WNID.fullmatch(name):
        return name
    if name not in class_names():
        raise UserError(f"data.path: {name} is not an id of ImageNet's 1000 classes, see data/imagenet_hierarchy.csv")
    return class_names()[name]


class ImageNet(LabeledFiles):
    """Images of ImageNet; the labels are the classes that occur, in the order of their numbers.

    path: a folder such as train/ or val/ with a folder per class, named by its WordNet id or class name, or a folder of
    images whose names begin with the id. Raises UserError if it is missing, has no such image, or for an unknown id.
    """

    def __init__(self, path: str | Path | None, seed: Seed) -> None:
        folder = check_folder(path, _LAYOUT)
        images = find_images(folder, _LAYOUT, "[!.]*/[!.]*", f"n{'[0-9]' * 8}_*")
        ids = [file.stem.split("_")[0] if file.parent == folder else file.parent.name for file in images]
        names = {wnid: class_name_of_wnid(wnid) for wnid in dict.fromkeys(ids)}
        files = [(file, names[wnid]) for file, wnid in zip(images, ids, strict=True)]
        present = set(names.values())
        imagenet_names = [name for name in class_names().values() if name in present]
        labels = imagenet_names + sorted(present.difference(imagenet_names))
        super().__init__(files, labels, seed, ["imagenet", [label for _, label in files]])

    def nearest_class(self, label: str) -> str | None:
        """The nearest class in WordNet, see `imagenet_hierarchy.nearest`; None for a class that is not in ImageNet."""
        return imagenet_hierarchy.nearest(label)

    def similar_classes(self, label: str) -> list[str]:
        """The similar classes in WordNet, see `imagenet_hierarchy.cluster`."""
        return imagenet_hierarchy.cluster(label)
