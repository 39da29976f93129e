"""Laws of text-prompted segmenters, and their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from classifier_lens.models.segmenter.segmenter import BoxPromptedSegmenter
from classifier_lens.runner.protocols import Segmenter, TextSegmenter

WORDS = ["Fiddler crab", "viaduct", "flowers"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "fiddler", "crab", "via", "##duct", "flowers"]


def draw(n: int, height: int = 40, width: int = 56) -> Tensor:
    """Images with 8-bit values, neither square nor of the network's size."""
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


def pixels(image: Tensor) -> Any:
    """An image as an 8-bit array (h, w, 3)."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def masks_depend_on_image_and_words_alone(segmenter: Any, words: Sequence[str]) -> None:
    """Masks do not depend on the other images of a batch, on maps and names."""
    by_words: TextSegmenter = segmenter
    by_maps: Segmenter = segmenter
    images = draw(3)
    together = by_words.segment(images, words)
    assert together.shape == (3, 1, 40, 56) and set(together.unique().tolist()) == {0.0, 1.0}
    for i in (2, 0, 1):
        assert torch.equal(by_words.segment(images[i : i + 1], words[i : i + 1])[0], together[i])
    assert torch.equal(by_maps(images, torch.rand(3, 1, 8, 8), words, ["a", "b", "c"]), together)


def no_box_gives_an_empty_mask(make: Callable[..., BoxPromptedSegmenter]) -> None:
    images = draw(2)
    assert make().segment(images, WORDS[:2]).any()
    for name in ("box_threshold", "text_threshold"):
        segmenter = make(**{name: 1 - 1e-9})
        assert len(segmenter.detect_boxes(images[0], WORDS[0])) == 0
        assert torch.equal(segmenter.segment(images, WORDS[:2]), torch.zeros(2, 1, 40, 56))
