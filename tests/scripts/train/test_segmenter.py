"""Training the small CLIPSeg: its scenes, that both towers learn, and that the library reads what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor, CLIPTokenizer

from classifier_lens.data import planted
from classifier_lens.scripts.train.segmenter import (
    MEAN,
    PROMPTS,
    ROOT,
    STD,
    SegmentationData,
    TrainableClipSeg,
    build_clipseg,
    main,
)

TINY = ("minutes=0.03", "images=40", "batch=4", "device=cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out` and `work` of a network that was trained in two calls."""
    folder = tmp_path_factory.mktemp("segmenter")
    places = (f"out={folder / 'out'}", f"work={folder / 'work'}")
    main([*TINY, *places])
    first = torch.load(folder / "work" / "segmenter.pt", weights_only=True)["step"]
    main([*TINY, *places])
    assert torch.load(folder / "work" / "segmenter.pt", weights_only=True)["step"] > first > 0
    return folder


def test_scenes_are_renders_and_what_the_autoencoder_makes_of_them(trained: Path) -> None:
    scenes = SegmentationData(**torch.load(trained / "work" / "scenes.pt", weights_only=True))
    assert (
        len(scenes.images)
        == len(scenes.object_masks)
        == len(scenes.prop_masks)
        == len(scenes.label)
        == len(scenes.prop)
        == 80
    )
    first, second = scenes.images.float().chunk(2)
    assert 0 < (first - second).abs().mean() < 20 and torch.equal(*scenes.object_masks.chunk(2))
    for masks, which in ((scenes.object_masks, scenes.label), (scenes.prop_masks, scenes.prop)):
        assert torch.equal(masks.flatten(1).any(dim=1), which >= 0), "a mask where there is something, and only there"
    assert (scenes.label[:40:4] == -1).all() and (scenes.label[1:40:4] >= 0).all()


def test_the_library_reads_and_asks_it(trained: Path) -> None:
    model = CLIPSegForImageSegmentation.from_pretrained(trained / "out", dtype=torch.float32).eval()
    processor = CLIPSegProcessor.from_pretrained(trained / "out")
    image = planted.render(planted.sample_scenes(1, 7)).image[0]
    texts = ["a fiddler crab", "flowers"]
    given = processor(
        text=texts,
        images=[(image * 255).byte().permute(1, 2, 0).numpy()] * 2,
        padding="max_length",
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**given).logits
        tokens = processor.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        seen = ((image * 255).byte().float() / 255 - MEAN).expand(2, -1, -1, -1) / STD
        own, named = TrainableClipSeg(model)(seen, tokens, tokens)
        clip = model.clip(input_ids=tokens, pixel_values=seen)
    assert logits.shape == (2, 64, 64)
    torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(named, clip.logits_per_image, rtol=1e-4, atol=1e-4)
    assert (trained / "out" / "README.md").read_text().startswith("# out\n")


def test_both_towers_learn() -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "train" / "segmenter_planted.yaml")
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / cfg.teacher / "tokenizer", model_max_length=cfg.token_length)
    model = TrainableClipSeg(build_clipseg(tokenizer, 64, cfg))
    tokens = tokenizer(list(PROMPTS[:2]), padding="max_length", return_tensors="pt").input_ids
    model(torch.rand(2, 3, 64, 64), tokens, tokens)[0].square().sum().backward()
    clip = model.model.clip
    assert all(p.grad is not None and p.grad.any() for p in clip.vision_model.embeddings.parameters())
    assert clip.text_model.embeddings.token_embedding.weight.grad is not None
    assert len({tuple(row) for row in tokens.tolist()}) == 2 and tokens.shape[1] == cfg.token_length
    every = tokenizer(list(PROMPTS)).input_ids
    assert max(map(len, every)) <= cfg.token_length and len(PROMPTS) == 14
