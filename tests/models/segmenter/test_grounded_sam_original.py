"""Grounded SAM by its authors' packages: boxes and masks are theirs. They live in an environment of their own, where
`make test-groundingdino` runs this file; elsewhere most of it skips."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from classifier_lens.models.segmenter import grounded_sam_original
from classifier_lens.models.segmenter.grounded_sam_original import OriginalGroundedSam, load
from classifier_lens.runner.types import UserError
from tests.models.segmenter.from_words import (
    VOCABULARY,
    WORDS,
    draw,
    masks_depend_on_image_and_words_alone,
    no_box_gives_an_empty_mask,
    pixels,
)

PRESENT = all(importlib.util.find_spec(name) for name in ("groundingdino", "segment_anything"))
packages = pytest.mark.skipif(not PRESENT, reason="needs the extra `groundingdino`: make test-groundingdino")
# What replaces settings of the package's smallest detector.
SMALLER = {"enc_layers": 1, "dec_layers": 1, "dim_feedforward": 64, "num_queries": 12}

Make = Callable[..., OriginalGroundedSam]


def save_text_encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = folder / "words.txt"
    words.write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab_file=str(words)).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, **shape)).save_pretrained(folder)


def small_sam() -> Any:
    """A network of the package for images of 64 px."""
    from segment_anything import modeling

    encoder = modeling.ImageEncoderViT(64, 8, embed_dim=16, depth=1, num_heads=2, out_chans=32)
    prompts = modeling.PromptEncoder(32, (8, 8), (64, 64), mask_in_chans=4)
    transformer = modeling.TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32)
    return modeling.Sam(encoder, prompts, modeling.MaskDecoder(transformer_dim=32, transformer=transformer))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of small networks with random weights, as the authors publish theirs; settings that name them."""
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig
    from segment_anything import sam_model_registry

    folder = tmp_path_factory.mktemp("published")
    save_text_encoder(folder)
    source = Path(groundingdino.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"
    changes = "\n".join(f"{name} = {value}" for name, value in SMALLER.items())
    (folder / "smaller.py").write_text(f"{source.read_text()}\n{changes}\n")
    torch.manual_seed(0)
    settings = SLConfig.fromfile(str(folder / "smaller.py"))
    settings.device, settings.text_encoder_type = "cpu", str(folder)
    detector = build_model(settings)
    sam_model_registry["small"] = small_sam
    segment_anything = sam_model_registry["small"]()
    for network, std in ((detector, 0.08), (segment_anything, 0.3)):
        for weight in network.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=std)
    torch.save({"model": detector.state_dict()}, folder / "detector.pth")
    torch.save(segment_anything.state_dict(), folder / "sam.pth")
    return {
        "detector_config": str(folder / "smaller.py"), "detector_weights": str(folder / "detector.pth"),
        "text_encoder": str(folder), "sam_model_type": "small", "sam_weights": str(folder / "sam.pth"),
    }  # fmt: skip


@pytest.fixture
def make(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Make:
    """The segmenter with a detector input of 96 px; keyword arguments replace settings."""
    monkeypatch.setattr(grounded_sam_original, "MIN_SIDE", 96)

    def made(**changes: Any) -> OriginalGroundedSam:
        settings = {"text_encoder_revision": None, "box_threshold": 0.2, "text_threshold": 0.0, **files, **changes}
        return load(**settings)

    return made


@packages
@pytest.mark.parametrize("words", WORDS)
def test_boxes_and_masks_are_the_packages_own(
    words: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of the package's demonstration for an image in a file."""
    from groundingdino.util import box_ops, inference

    segmenter, image = make(), draw(1)[0]
    resize = inference.T.RandomResize
    monkeypatch.setattr(inference.T, "RandomResize", lambda sizes, max_size: resize([96], max_size))
    Image.fromarray(pixels(image)).save(tmp_path / "picture.png")
    array, inputs = inference.load_image(str(tmp_path / "picture.png"))
    everything, scores, _ = inference.predict(segmenter.detector, inputs, words, 0.0, 0.0, device="cpu")
    assert len(everything) == 12
    middle = scores.median().item()
    relative_boxes, _, phrases = inference.predict(segmenter.detector, inputs, words, middle, 0.0, device="cpu")
    expected = box_ops.box_cxcywh_to_xyxy(relative_boxes) * torch.tensor([56.0, 40, 56, 40])
    assert 1 < len(expected) < 12 and all(phrases)
    segmenter = make(box_threshold=middle)
    boxes = segmenter.detect_boxes(image, words)
    torch.testing.assert_close(boxes, expected)
    predictor = segmenter.predictor
    predictor.set_image(array)
    places = predictor.transform.apply_boxes_torch(boxes, array.shape[:2])
    masks = predictor.predict_torch(None, None, boxes=places, multimask_output=False)[0]
    union = masks.any(dim=0)
    assert torch.equal(segmenter.mask(image, words), union.float())
    assert 0 < union.float().mean() < 1


@packages
def test_a_mask_depends_on_its_image_and_words_alone(make: Make) -> None:
    segmenter, image = make(), draw(1)[0]
    masks_depend_on_image_and_words_alone(segmenter, WORDS)
    assert not torch.equal(segmenter.detect_boxes(image, WORDS[0]), segmenter.detect_boxes(image, WORDS[1]))


@packages
def test_no_box_gives_an_empty_mask(make: Make) -> None:
    no_box_gives_an_empty_mask(make)


@packages
def test_the_digest_depends_on_weights_and_settings(make: Make) -> None:
    plain = make().digest
    assert make().digest == plain != make(box_threshold=0.3).digest


@packages
def test_wrong_weights_and_settings_are_refused_in_one_line(make: Make, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pth")
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"detector_config": "GroundingDINO_SwinL"},
            "segmenter.detector_config=.*those of the package, GroundingDINO_SwinB_cfg, G",
        ),
        (
            {"sam_model_type": "vit_x"},
            "segmenter.sam_model_type=vit_x: allowed are default, small, vit_b, vit_h, vit_l",
        ),
        ({"detector_weights": str(tmp_path / "none.pth")}, "segmenter.detector_weights=.*none.pth: cannot be loaded"),
        (
            {"detector_weights": str(tmp_path / "broken.pth")},
            "segmenter.detector_weights=.*broken.pth: cannot be loaded",
        ),
        ({"detector_weights": str(tmp_path / "code.pth")}, "segmenter.detector_weights=.*code.pth: cannot be loaded"),
        ({"detector_weights": files["sam_weights"]}, r"segmenter.detector_weights=.*: \d+ weights are missing"),
        ({"sam_weights": files["weights"]}, r"segmenter.sam_weights=.*: \d+ weights are missing"),
        ({"text_encoder": "nobody/nothing"}, "segmenter.text_encoder=nobody/nothing: neither a folder nor"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make(**changes)
        assert "\n" not in str(caught.value)


def test_the_extra_is_named_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("groundingdino", "segment_anything"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="extra `groundingdino`.*make test-groundingdino") as caught:
        load("GroundingDINO_SwinT_OGC", "a.pth", "bert", None, 0.25, 0.25, "vit_b", "b.pth")
    assert "\n" not in str(caught.value)
