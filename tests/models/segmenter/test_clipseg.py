"""CLIPSeg: masks equal those of the library, one image at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from classifier_lens.data import planted
from classifier_lens.models.segmenter.clipseg import ClipSegSegmenter, fill_text_template, load
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train.segmenter import PROMPTS
from tests.models.segmenter.from_words import WORDS, draw, masks_depend_on_image_and_words_alone, pixels
from tests.models.segmenter.tiny_clipseg import write_clipseg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clipseg(tmp_path_factory.mktemp("clipseg"))


def loaded(path: Path | str, **changes: Any) -> ClipSegSegmenter:
    return load(str(path), None, **{"threshold": 0.5, "template": "{words}", **changes})


def test_masks_are_the_librarys_probabilities_above_the_threshold(folder: Path) -> None:
    """The documented call for all images at once and with padded texts."""
    images = draw(3)
    network = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPSegProcessor.from_pretrained(folder)
    inputs = processor(text=WORDS, images=[*map(pixels, images)], padding=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = network(**inputs).logits.sigmoid()[:, None]
    large = F.interpolate(probabilities, size=images.shape[-2:], mode="bilinear", align_corners=False)
    middle = large.median().item()
    masks = loaded(folder, threshold=middle).segment(images, WORDS)
    assert masks.shape == (3, 1, 40, 56) and masks.dtype == images.dtype
    clear = (large - middle).abs() > 1e-4
    assert clear.float().mean() > 0.95 and torch.equal(masks[clear], (large > middle).float()[clear])
    assert 0.3 < masks.mean() < 0.7


def test_a_mask_depends_on_its_image_and_words_alone(folder: Path) -> None:
    segmenter, image = loaded(folder), draw(1)
    masks_depend_on_image_and_words_alone(segmenter, WORDS)
    assert not torch.equal(segmenter.segment(image, WORDS[:1]), segmenter.segment(image, WORDS[1:2]))


def test_a_higher_threshold_gives_a_smaller_mask(folder: Path) -> None:
    images = draw(1)
    low, high = (loaded(folder, threshold=share).segment(images, WORDS[:1]) for share in (0.4, 0.6))
    assert (high <= low).all() and high.sum() < low.sum()
    assert not loaded(folder, threshold=1 - 1e-9).segment(images, WORDS[:1]).any()


def test_the_template_is_the_text_prompt(folder: Path) -> None:
    images, plain = draw(2), loaded(folder)
    with_article = loaded(folder, template="{article} {words}").segment(images, ["crab", "anchor"])
    assert torch.equal(with_article, plain.segment(images, ["a crab", "an anchor"]))
    assert not torch.equal(with_article, plain.segment(images, ["crab", "anchor"]))


def test_an_article_is_added_where_one_is_missing() -> None:
    """What the shipped network is with_article is what it was with_article in training, with an article or without."""
    template = str(compose_config(["segmenter=planted"])["segmenter"]["template"])
    assert (
        fill_text_template(template, "compass") == "a compass"
        and fill_text_template(template, "the crab") == "the crab"
    )
    assert tuple(fill_text_template(template, name) for name in (*planted.CLASSES, *planted.PROPS)) == PROMPTS
    assert tuple(fill_text_template(template, text) for text in PROMPTS) == PROMPTS


def test_the_digest_depends_on_weights_and_settings(folder: Path, tmp_path: Path) -> None:
    plain = loaded(folder).digest
    assert loaded(folder).digest == plain
    shutil.copytree(folder, tmp_path / "other")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"decoder.film_mul.bias": state["decoder.film_mul.bias"] + 1}, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip # noqa: E501
    others = [loaded(tmp_path / "other"), loaded(folder, threshold=0.4), loaded(folder, template="a {words}")]
    assert len({plain, *(other.digest for other in others)}) == 4


def test_wrong_weights_and_settings_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    for name in ("incomplete", "other", "empty"):
        shutil.copytree(folder, tmp_path / name)
    state = load_file(folder / "model.safetensors")
    state.pop("decoder.film_add.weight")
    save_file(state, tmp_path / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    (tmp_path / "empty" / "model.safetensors").unlink()
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "nowhere", {}, "segmenter.path=.*nowhere: neither a folder nor"),
        (tmp_path / "incomplete", {}, "1 weights are missing, such as decoder.film_add.weight"),
        (tmp_path / "other", {}, "contains a network of type clip; allowed are clipseg"),
        (tmp_path / "empty", {}, "cannot be loaded"),
        (
            folder,
            {"template": "a crab"},
            "segmenter.template=a crab: the placeholder {words} for the object is missing",
        ),
        (folder, {"template": "{words} {label}"}, "has other placeholders than the allowed {words}, {article}"),
    ]
    for path, changes, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            loaded(path, **changes)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="tokens; the network reads 20"):
        loaded(folder).segment(draw(1), ["crab " * 30])
