"""Grounded SAM: boxes and masks equal those of the library, one image at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from classifier_lens.models.segmenter.grounded_sam import GroundedSam, grounding_dino_prompt, load
from classifier_lens.models.segmenter.sam import load_sam
from classifier_lens.runner.types import UserError
from tests.models.segmenter.from_words import (
    WORDS,
    draw,
    masks_depend_on_image_and_words_alone,
    no_box_gives_an_empty_mask,
    pixels,
)
from tests.models.segmenter.tiny_dino import write_detector
from tests.models.segmenter.tiny_sam import write_sam

OPTIONS = {
    "sam": {"multimask_output": True}, "sam_hq": {"multimask_output": False, "hq_token_only": False},
    "sam2": {"multimask_output": True},
}  # fmt: skip
# The library's own classes for images with their prompts.
PUBLISHED = {
    "sam": (SamModel, SamProcessor, SamImageProcessor), "sam_hq": (SamHQModel, SamHQProcessor, SamImageProcessor),
    "sam2": (Sam2Model, Sam2Processor, Sam2ImageProcessor),
}  # fmt: skip

Make = Callable[..., GroundedSam]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a Segment Anything network in the hub's layout."""
    return cache(lambda kind: write_sam(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture
def make(detector: Path, sam: Callable[[str], Path]) -> Make:
    """The segmenter; keyword arguments replace settings."""

    def made(kind: str = "sam", **changes: Any) -> GroundedSam:
        settings: dict[str, Any] = {
            "detector": str(detector), "detector_revision": None, "box_threshold": 0.2, "text_threshold": 0.0,
            "path": str(sam(kind)), "revision": None, "forward_kwargs": OPTIONS[kind],
        }  # fmt: skip
        return load(**settings | changes)

    return made


def test_words_become_prompts() -> None:
    assert grounding_dino_prompt("Fiddler Crab") == grounding_dino_prompt(" fiddler crab. ") == "fiddler crab."


@pytest.mark.parametrize(
    ("words", "expected"),
    [("St. Bernard", "st bernard."), ("Mt. St. Helens?", "mt st helens."), ("7.5 cm gun", "7 5 cm gun.")],
)
def test_a_name_with_periods_is_one_phrase(words: str, expected: str, detector: Path) -> None:
    """In Grounding DINO, tokens attend within a phrase, which ends with a period or a question mark."""
    assert grounding_dino_prompt(words) == expected
    processor = GroundingDinoProcessor.from_pretrained(detector)
    ids = processor.tokenizer(grounding_dino_prompt(words), add_special_tokens=False).input_ids
    ends = set(processor.tokenizer(". ?", add_special_tokens=False).input_ids)
    assert [i for i, token in enumerate(ids) if token in ends] == [len(ids) - 1]


@pytest.mark.parametrize("words", WORDS)
def test_boxes_are_the_librarys(words: str, make: Make, detector: Path) -> None:
    """The documented call; a token of the words, not the period, has to exceed the second threshold."""
    network = GroundingDinoForObjectDetection.from_pretrained(detector).eval()
    processor = GroundingDinoProcessor.from_pretrained(detector)
    image = draw(1)[0]
    inputs = processor(images=pixels(image), text=f"{words.lower()}.", return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    scores = outputs.logits[0].sigmoid()
    middle = scores.amax(dim=1).median().item()
    for text_threshold in (0.0, scores[:, 1:-2].amax(dim=1).median().item()):
        result = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], middle, text_threshold, target_sizes=[(40, 56)]
        )[0]
        named = [label not in ("", ".") for label in result["text_labels"]]
        boxes = make(box_threshold=middle, text_threshold=text_threshold).detect_boxes(image, words)
        assert torch.equal(boxes, result["boxes"][torch.tensor(named, dtype=torch.bool)])
        if text_threshold == 0:
            assert len(boxes) == 6, "half of the queries"


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_masks_are_the_librarys_best_of_each_box(kind: str, make: Make, sam: Callable[[str], Path]) -> None:
    network_class, processor_class, image_processor_class = PUBLISHED[kind]
    network = network_class.from_pretrained(sam(kind)).eval()
    processor = processor_class(image_processor_class.from_pretrained(sam(kind)))
    segmenter, image = make(kind), draw(1)[0]
    boxes = segmenter.detect_boxes(image, WORDS[0])
    assert len(boxes) > 1
    inputs = processor(images=pixels(image), input_boxes=[boxes.tolist()], return_tensors="pt")
    sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    with torch.no_grad():
        answer = network(**inputs, **OPTIONS[kind])
    every = processor.post_process_masks(answer.pred_masks, *sizes)[0]
    best = answer.iou_scores[0].argmax(dim=1)
    chosen = every[torch.arange(len(boxes)), best].float()
    assert torch.equal(segmenter.sam.masks_in_boxes(image, boxes), chosen)
    assert torch.equal(segmenter.mask(image, WORDS[0])[0], chosen.amax(dim=0))


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_a_boxs_mask_depends_on_it_alone(kind: str, sam: Callable[[str], Path]) -> None:
    """Except for rounding, which changes pixels on an edge only."""
    network, image = load_sam(str(sam(kind)), None, OPTIONS[kind]), draw(1)[0]
    boxes = torch.tensor([[2.0, 3, 20, 30], [10, 12, 50, 38], [30, 1, 33, 5]])
    together = network.masks_in_boxes(image, boxes)
    alone = torch.cat([network.masks_in_boxes(image, box[None]) for box in boxes])
    assert together.shape == (3, 40, 56) and (together != alone).float().mean() < 1e-3


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_every_kind_of_network_accepts_points(kind: str, sam: Callable[[str], Path]) -> None:
    """The documented call, whose points are corners of pixels, with their centers."""
    network_class, processor_class, image_processor_class = PUBLISHED[kind]
    network = network_class.from_pretrained(sam(kind)).eval()
    processor = processor_class(image_processor_class.from_pretrained(sam(kind)))
    image = draw(1, 64, 64)[0]
    inputs = processor(images=pixels(image), input_points=[[[[9, 20], [50, 41]]]], return_tensors="pt")
    sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    with torch.no_grad():
        answer = network(**inputs, **OPTIONS[kind])
    every = processor.post_process_masks(answer.pred_masks, *sizes)[0][0]
    ours = load_sam(str(sam(kind)), None, OPTIONS[kind]).mask_at_points(image, torch.tensor([[20, 9], [41, 50]]))
    assert torch.equal(ours[0], every[answer.iou_scores[0, 0].argmax()].float())


def test_a_mask_depends_on_its_image_and_words_alone(make: Make) -> None:
    segmenter, image = make(), draw(1)[0]
    masks_depend_on_image_and_words_alone(segmenter, WORDS)
    assert not torch.equal(segmenter.detect_boxes(image, WORDS[0]), segmenter.detect_boxes(image, WORDS[1]))


def test_no_box_gives_an_empty_mask(make: Make) -> None:
    no_box_gives_an_empty_mask(make)


def test_the_digest_depends_on_weights_and_settings(make: Make) -> None:
    plain = make().digest
    changes: list[dict[str, Any]] = [
        {"kind": "sam_hq"}, {"box_threshold": 0.3}, {"text_threshold": 0.3},
        {"forward_kwargs": {"multimask_output": False}},
    ]  # fmt: skip
    assert make().digest == plain and len({plain, *(make(**change).digest for change in changes)}) == 5


def test_wrong_weights_and_settings_are_refused_in_one_line(
    make: Make, detector: Path, sam: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(detector, tmp_path / "lacking")
    state = load_file(detector / "model.safetensors")
    state.pop("model.level_embed")
    save_file(state, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(detector, tmp_path / "other")
    config = json.loads((detector / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "detr"}))
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"detector": "nobody/nothing"},
            "segmenter.detector=nobody/nothing: neither a folder nor, .* fetch hub/nobody",
        ),
        ({"detector": str(tmp_path / "lacking")}, "1 weights are missing, such as model.level_embed"),
        ({"detector": str(tmp_path / "other")}, "segmenter.detector=.*cannot be loaded"),
        ({"detector": str(sam("sam"))}, "type sam; allowed are grounding-dino"),
        ({"path": str(detector)}, "segmenter.path=.* type grounding-dino; allowed are sam, sam_hq, sam2"),
        ({"path": str(tmp_path / "nowhere")}, "segmenter.path=.*: neither a folder nor"),
        (
            {"forward_kwargs": {"hq_token_only": True}},
            "segmenter.forward_kwargs=hq_token_only: sam networks have no such argument",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make(**changes)
        assert "\n" not in str(caught.value)
