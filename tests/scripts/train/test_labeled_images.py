"""What the pictures of a corpus are labelled with."""

from __future__ import annotations

from classifier_lens.data import planted
from classifier_lens.scripts.train.labeled_images import IGNORE_INDEX, planted_targets


def test_targets_of_pictures_without_an_object() -> None:
    heads = ("class", "background", "prop", "hue")
    background = planted_targets(planted.sample_scenes(8, 1, kind="background"), heads)
    assert (
        (background[:, [0, 3]] == IGNORE_INDEX).all()
        and (background[:, 2] == 4).all()
        and (background[:, 1] >= 0).all()
    )
