"""ImageNet as it is published: folders, or files, that are called by WordNet ids."""

from __future__ import annotations

import re
from pathlib import Path

from classifier_lens.data import imagenet_hierarchy
from classifier_lens.data.image_folder import LabeledFiles, check_folder, find_images
from classifier_lens.data.imagenet_hierarchy import class_names
from classifier_lens.runner.configuration.value_ranges import Seed
from classifier_lens.runner.types import UserError

_WANTED = "<n01440764 or class>/<picture> or n01440764_<picture>"
_ID = re.compile(r"n\d{8}")


def class_name_of_wnid(name: str) -> str:
    """The class that a WordNet id stands for; any other name is a class's already.

    Raises UserError for an id that is none of the 1000 classes'.
    """
    if not _ID.fullmatch(name):
        return name
    if name not in class_names():
        raise UserError(f"data.path: {name} is no id of ImageNet's 1000 classes, see data/imagenet_hierarchy.csv")
    return class_names()[name]


class ImageNet(LabeledFiles):
    """Pictures of ImageNet's classes; labels are those that are present, in the order of their numbers.

    path: a folder such as train/ or val/ with a folder for each class, called by its WordNet id or by its name, or a
    folder of pictures that begin with the id. Raises UserError if it is missing or holds no such picture, and for an id
    that ImageNet does not have.
    """

    def __init__(self, path: str | Path | None, seed: Seed) -> None:
        folder = check_folder(path, _WANTED)
        found = find_images(folder, _WANTED, "[!.]*/[!.]*", f"n{'[0-9]' * 8}_*")
        said = [file.stem.split("_")[0] if file.parent == folder else file.parent.name for file in found]
        names = {name: class_name_of_wnid(name) for name in dict.fromkeys(said)}
        files = [(file, names[name]) for file, name in zip(found, said, strict=True)]
        present = set(names.values())
        known = [name for name in class_names().values() if name in present]
        super().__init__(files, known + sorted(present.difference(known)), seed, ["imagenet", [c for _, c in files]])

    def nearest_class(self, label: str) -> str | None:
        """The nearest class in WordNet, see `imagenet_hierarchy.nearest`; None for a label that is not in ImageNet."""
        return imagenet_hierarchy.nearest(label)

    def similar_classes(self, label: str) -> list[str]:
        """The classes of the same kind in WordNet, see `imagenet_hierarchy.cluster`."""
        return imagenet_hierarchy.cluster(label)
