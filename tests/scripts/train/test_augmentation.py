"""Variation of training pictures."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from classifier_lens.data import planted
from classifier_lens.scripts.train.augmentation import NO_AUGMENTATION, Augment


@pytest.mark.parametrize("kind", ["crop", "blur", "noise", "color_jitter", "jpeg", "erase"])
def test_augmentation_is_seeded_bounded_and_per_sample(kind: str) -> None:
    cfg = OmegaConf.create(NO_AUGMENTATION | {kind: 0.5})
    image = planted.render(planted.sample_scenes(1, 3)).image.expand(4, -1, -1, -1)
    first, second = (Augment(cfg, torch.Generator().manual_seed(1))(image) for _ in range(2))
    assert torch.equal(first, second) and first.shape == image.shape and 0 <= first.min() and first.max() <= 1
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, image)
    plain = Augment(OmegaConf.create(NO_AUGMENTATION), torch.Generator())(image)
    assert torch.equal(plain, image)
