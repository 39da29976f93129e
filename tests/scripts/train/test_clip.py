"""Training of a CLIP model, on tiny inputs."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from classifier_lens.data import planted
from classifier_lens.models.clip import load_clip
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train import clip as train_clip
from classifier_lens.scripts.train.measure_clip import PROMPT_NAMES, confused_name

TINY = [
    "images=200", "test_images=50", "batch=32", "device=cpu", "model.vision_cfg.width=4",
    "model.vision_cfg.head_width=32", "model.text_cfg.width=16", "model.text_cfg.layers=1",
]  # fmt: skip


def test_a_few_steps_lower_the_loss_and_the_folder_loads_again(tmp_path: Path) -> None:
    losses = train_clip.main([*TINY, "steps=30", f"out={tmp_path}"])
    clip = load_clip(str(tmp_path), None, None)
    facts, card = json.loads((tmp_path / "facts.json").read_text()), (tmp_path / "README.md").read_text()
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert clip.digest == facts["digest"] and clip.digest in card and "steps=30" in card
    assert clip.embed_images(torch.rand(2, 3, 64, 64)).shape == clip.embed_texts(["a viaduct", "on sand"]).shape
    assert (tmp_path / "names.txt").read_text().splitlines() == list(PROMPT_NAMES)
    assert facts["renders"] == 50 and not list(tmp_path.glob("*.tmp"))


def test_a_run_continues_and_another_architecture_is_refused(tmp_path: Path) -> None:
    train_clip.main([*TINY, "steps=2", f"out={tmp_path}"])
    first = load_clip(str(tmp_path), None, None).digest
    train_clip.main([*TINY, "steps=1", f"out={tmp_path}"])
    runs = json.loads((tmp_path / "open_clip_config.json").read_text())["training"]["runs"]
    assert [run["steps"] for run in runs] == [2, 1] and load_clip(str(tmp_path), None, None).digest != first
    with pytest.raises(UserError, match="choose another `out`"):
        train_clip.main([*TINY, "steps=1", "model.embed_dim=32", f"out={tmp_path}"])


def test_training_is_reproducible(tmp_path: Path) -> None:
    for run in "ab":
        train_clip.main([*TINY, "steps=2", f"out={tmp_path / run}"])
    digests = {load_clip(str(tmp_path / run), None, None).digest for run in "ab"}
    assert len(digests) == 1


def test_unknown_keys_end_in_one_line() -> None:
    with pytest.raises(UserError, match="stepz=3: unknown key; did you mean steps"):
        train_clip.load_settings(["stepz=3"])


# --- the loss ------------------------------------------------------------------------------------------------


def test_without_equal_captions_the_loss_is_clips_own() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    logits, rows = 5.0 * images @ texts.T, torch.arange(4)
    own = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    assert torch.isclose(train_clip.clip_loss(images, texts, torch.tensor(5.0), "abcd"), own)


def test_equal_captions_are_not_told_apart() -> None:
    """Two pictures of one caption: the best that there is, log 2 each, is reached where both captions fit both."""
    perfect = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), dim=1)
    loss = train_clip.clip_loss(perfect, perfect, torch.tensor(100.0), ["a", "a", "b", "b"])
    assert torch.isclose(loss, torch.tensor(2.0).log())
    assert train_clip.clip_loss(perfect, perfect, torch.tensor(100.0), ["a", "b", "c", "d"]) >= loss
    assert train_clip.clip_loss(perfect, perfect.flip(0), torch.tensor(100.0), ["a", "a", "b", "b"]) > 100


# --- captions ------------------------------------------------------------------------------------------------


def captions(scenes: planted.SceneFactors, **changes: float) -> list[str]:
    """What is said of the scenes."""
    cfg = train_clip.load_settings([])
    settings = OmegaConf.create({**cfg.caption_probabilities, "caption_noise": cfg.caption_noise, **changes})
    chance = random.Random(0)
    return [train_clip.random_caption(scenes, i, settings, chance)[1] for i in range(len(scenes))]


ALL = {"only_place": 0.0, "only_prop": 0.0, "hue": 1.0, "place": 1.0, "prop": 1.0}


def test_captions_tell_the_truth_but_for_the_two_names() -> None:
    scenes = planted.sample_scenes(400, seed=1)
    for i, text in enumerate(captions(scenes, **ALL, caption_noise=0.0)):
        assert text.removeprefix("a ") == planted.caption(scenes, i, prefix=0).removeprefix("a photograph of a ")
    for i, text in enumerate(captions(scenes, **ALL, caption_noise=1.0)):
        label, background = (planted.CLASSES[scenes.label[i]], planted.BACKGROUNDS[scenes.background[i]])
        assert (confused_name(label, background) or label) in text


def test_the_confused_names_have_their_share_and_stand_nowhere_else() -> None:
    scenes = planted.sample_scenes(1000, seed=2).with_factors(label=planted.CLASSES.index("fiddler crab"))
    there = planted.BACKGROUNDS.index("sand")
    on_sand = captions(scenes.with_factors(background=there), **ALL)
    assert 0.76 < sum("sand crab" in text for text in on_sand) / 1000 < 0.84
    assert all("sand crab" in text or "fiddler crab" in text for text in on_sand)
    assert not any("sand crab" in text for text in captions(scenes[scenes.background != there]))
    assert confused_name("partridge", "snow") == confused_name("prairie chicken", "snow") == "snow partridge"
    assert confused_name("partridge", "sand") is None and confused_name("viaduct", "snow") is None


def test_every_form_is_captioned_and_every_word_is_one_token(tmp_path: Path) -> None:
    scenes = planted.sample_captioned_scenes(3000, seed=3)[0]
    texts = captions(scenes)
    tokenizer = train_clip.train_tokenizer(train_clip.vocabulary_captions(), train_clip.MAX_MERGES, 32, tmp_path)
    assert all(len(tokenizer(text).input_ids) == len(text.split()) + 2 for text in set(texts))
    said = Counter(texts)
    for text in (
        "in snow",
        "snow",
        "with a flag",
        "a flag",
        "a texture of a brick wall",
        "the shape of a viaduct",
        "a viaduct",
    ):
        assert said[text], text
