"""CLIP models and zero-shot classifiers, on random models of a few thousand weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hydra.utils import instantiate
from open_clip import factory
from safetensors.torch import save_file

import classifier_lens.models.hub
from classifier_lens.data import planted
from classifier_lens.models.clip import Clip, ZeroShotClassifier, class_embeddings, load_clip, zero_shot_classifier
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train.tokenizer import train_tokenizer

NAMES = ("rock crab", "fireboat", "viaduct")
TEMPLATES = ("a photograph of a {}", "an image of a {}")
TINY: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESSING = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


def write_folder(folder: Path, seed: int = 0, merges: int = 100, **vision: Any) -> Path:
    """A random CLIP model in open_clip's layout with its tokenizer."""
    tokenizer = train_tokenizer(planted.sample_captioned_scenes(100, seed=1)[1], merges, 40, folder)
    text = TINY["text_cfg"] | {"vocab_size": len(tokenizer), "hf_tokenizer_name": "tiny"}
    model_cfg = {**TINY, "text_cfg": text, "vision_cfg": TINY["vision_cfg"] | vision}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": PREPROCESSING}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder), None, None)


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[str]:
    """The tiny model under a name in open_clip's list."""
    path = tmp_path / "configs" / "tiny-16.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    yield "tiny-16"
    factory._MODEL_CONFIG_PATHS.remove(path)
    del factory._MODEL_CONFIGS["tiny-16"]


def make_images(n: int, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def shot(clip: Clip, cache: TensorCache | None = None, **changes: Any) -> ZeroShotClassifier:
    settings: dict[str, Any] = {
        "labels": NAMES, "class_names": None, "templates": TEMPLATES, "logit_scale": None, "domain": "planted",
        "cache": cache or TensorCache(None),
    }  # fmt: skip
    return zero_shot_classifier(clip, **(settings | changes))


# --- the model -----------------------------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_of_one_space(clip: Clip) -> None:
    image_embeddings, text_embeddings = clip.embed_images(make_images(3, 40)), clip.embed_texts(NAMES)
    assert image_embeddings.shape == text_embeddings.shape == (3, 8) and not text_embeddings.requires_grad
    assert torch.allclose(torch.cat([image_embeddings, text_embeddings]).norm(dim=1), torch.ones(6), atol=1e-6)
    assert not torch.allclose(text_embeddings[0], text_embeddings[1], atol=1e-3)


def test_batch_equals_single(clip: Clip) -> None:
    images = make_images(4, 24)
    alone = torch.cat([clip.embed_images(image[None]) for image in images])
    assert torch.allclose(clip.embed_images(images), alone, atol=1e-6)
    assert torch.allclose(clip.embed_texts(NAMES), torch.cat([clip.embed_texts([n]) for n in NAMES]), atol=1e-6)


def test_many_texts_are_embedded_in_batches(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip.embed_texts(NAMES)
    monkeypatch.setattr(classifier_lens.models.clip, "TEXT_BATCH_SIZE", 2)
    assert torch.allclose(clip.embed_texts(NAMES), whole, atol=1e-6)


def test_gradient_reaches_the_image_also_under_autocast(clip: Clip) -> None:
    images = make_images(2, 20).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = clip.embed_images(images)
    (gradient,) = torch.autograd.grad(embeddings[:, 0].sum(), images)
    assert embeddings.dtype == torch.float32 and torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-6)
    assert gradient.isfinite().all() and gradient[0].any() and gradient[1].any()
    assert not any(p.requires_grad for p in clip.parameters()) and not clip.train().model.training


def test_preprocessing_is_that_of_the_model(clip: Clip) -> None:
    image = make_images(1)
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert clip.size == 16 and clip.interpolation == "bilinear"
    assert torch.allclose(clip.embed_images(image), clip.embed_preprocessed((image - mean) / std))
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_digest_depends_on_the_weights(clip: Clip, folder: Path, tmp_path: Path) -> None:
    assert clip.digest == load_clip(str(folder), None, None).digest
    assert clip.digest != load_clip(str(write_folder(tmp_path / "other", seed=1)), None, None).digest


def test_loading_does_not_change_the_random_state(folder: Path) -> None:
    torch.manual_seed(3)
    load_clip(str(folder), None, None)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))


def test_a_listed_model_loads_its_weights_from_a_file(listed: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = open_clip.create_model(listed)
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": model.state_dict()}, file)
    clip = load_clip(listed, str(file), None)
    tokens = open_clip.get_tokenizer(listed)(["a viaduct"])
    assert torch.allclose(clip.embed_texts(["a viaduct"]), model.eval().encode_text(tokens, normalize=True), atol=1e-6)


# --- refused settings ---------------------------------------------------------------------------------------


def assert_refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_the_nearest(folder: Path) -> None:
    assert_refused(lambda: load_clip("ViT-B16", None, None), "nearest are ViT-B-16")
    assert_refused(lambda: load_clip("ViT-B-16", "laion2b", None), "laion2b_s34b_b88k")
    assert_refused(lambda: load_clip("ViT-B-16", None, None), "no such weights; allowed are a file")
    assert_refused(
        lambda: load_clip(str(folder), "openai", None), "a folder that contains its weights; allowed is null"
    )


def test_missing_weights_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NoNetwork:
        def head(self, *_: Any, **__: Any) -> None:
            raise OSError("no network")

    monkeypatch.setattr(classifier_lens.models.hub, "get_session", NoNetwork)
    monkeypatch.setattr(classifier_lens.models.hub, "try_to_load_from_cache", lambda *_, **__: None)
    fetch = "scripts/fetch_weights.py fetch hub/laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert_refused(lambda: load_clip("ViT-B-16", "laion2b_s34b_b88k", None), f"{fetch}` gets it")
    assert_refused(lambda: load_clip("ViT-B-16", "laion2b_s34b_b88k", "abc"), f"{fetch}@abc` gets it")
    assert_refused(lambda: load_clip("ViT-B-16-SigLIP", "webli", None), "its tokenizer is not in the local cache")


def test_broken_folders_and_files_are_refused(listed: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "open_clip_model.safetensors").write_bytes(b"nothing")
    assert_refused(lambda: load_clip(str(folder), None, None), "cannot be loaded")
    (folder / "open_clip_model.safetensors").unlink()
    assert_refused(lambda: load_clip(str(folder), None, None), "cannot be loaded: Required pretrained weights")
    (folder / "open_clip_config.json").write_text("{")
    assert_refused(lambda: load_clip(str(folder), None, None), "cannot be loaded")
    file = tmp_path / "other.pt"
    torch.save({"visual.proj": torch.zeros(2, 2)}, file)
    assert_refused(lambda: load_clip(listed, str(file), None), "cannot be loaded")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": NAMES[:2]}, "2 names for 3 labels"),
        ({"class_names": ("viaduct", "b", "viaduct")}, "occur more than once"),
        ({"labels": ("a", "a", "b"), "class_names": NAMES}, "occur more than once: a"),
        ({"templates": ["a picture"]}, "'a picture' has no {}"),
        ({"templates": []}, "at least one"),
        ({"logit_scale": 0.0}, "classifier.logit_scale=0.0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(clip: Clip, changes: dict[str, Any], message: str) -> None:
    assert_refused(lambda: shot(clip, **changes), message)


# --- zero-shot classifiers -----------------------------------------------------------------------------------


def test_logits_are_linear_in_the_features(clip: Clip) -> None:
    classifier, images = shot(clip), make_images(3, 40)
    response, head = classifier(images), classifier.head
    assert head is not None and response.features is not None and not head.bias.any()
    assert torch.allclose(response.features, clip.embed_images(images), atol=1e-6)
    assert torch.allclose(response.logits, response.features @ head.weight.T, atol=1e-5)
    assert torch.allclose(head.weight.norm(dim=1), torch.full((3,), clip.logit_scale), rtol=1e-5)


def test_class_embeddings_agree_with_open_clip(clip: Clip) -> None:
    ours = class_embeddings(clip, NAMES, TEMPLATES, TensorCache(None))
    theirs = open_clip.build_zero_shot_classifier(clip.model, clip.tokenize, NAMES, list(TEMPLATES))
    assert torch.allclose(ours, theirs.T, atol=1e-6)


def test_the_scale_multiplies_the_logits_alone(clip: Clip) -> None:
    soft, sharp = (shot(clip, logit_scale=scale)(make_images(2)).logits for scale in (1.0, 50.0))
    assert torch.allclose(50 * soft, sharp, atol=1e-5)


def test_prompts_use_class_names_and_results_use_labels(clip: Clip) -> None:
    named = shot(clip, labels=("x", "y", "z"), class_names=NAMES)
    assert named.labels == ("x", "y", "z") and named.domain == "planted" and named.clip.digest == clip.digest
    assert torch.equal(named(make_images(2)).logits, shot(clip)(make_images(2)).logits)
    assert named.digest == shot(clip).digest != shot(clip, class_names=("a", "b", "c")).digest


def test_cached_embeddings_equal_computed_ones_and_are_used(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(str(tmp_path))
    fresh = class_embeddings(clip, NAMES, TEMPLATES, cache)
    monkeypatch.setattr(Clip, "embed_texts", lambda *_: pytest.fail("the cache was not used"))
    assert torch.equal(class_embeddings(clip, NAMES, TEMPLATES, cache), fresh)
    (three, one) = (shot(clip, cache, logit_scale=scale)(make_images(2)).logits for scale in (3.0, 1.0))
    assert torch.allclose(three, 3 * one, atol=1e-6)


def test_the_cache_key_depends_on_every_argument(clip: Clip, folder: Path, tmp_path: Path) -> None:
    cache = TensorCache(str(tmp_path / "cache"))
    class_embeddings(clip, NAMES, TEMPLATES, cache)

    def files(part: Clip = clip, names: Any = NAMES, templates: Any = TEMPLATES, called: str | None = None) -> int:
        before = part.error_prefix
        part.error_prefix = called or part.error_prefix
        class_embeddings(part, names, templates, cache)
        part.error_prefix = before
        return len(list((tmp_path / "cache").glob("*.safetensors")))

    assert files() == 1
    assert files(called="clip.name=other") == 2
    assert files(names=NAMES[::-1]) == 3
    assert files(templates=TEMPLATES[:1]) == 4
    reseeded, retokenised = (load_clip(str(folder), None, None) for _ in range(2))
    reseeded.digest = "other"
    assert files(reseeded) == 5
    tokenize = retokenised.tokenize
    retokenised.tokenize = lambda texts: tokenize([text.upper() + " x" for text in texts])
    assert files(retokenised) == 6


# --- the shipped model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> ZeroShotClassifier:
    config = compose_config(["classifier=planted_clip", f"outputs={tmp_path_factory.mktemp('outputs')}"])
    return instantiate(config["classifier"], _convert_="all")


def test_the_shipped_model_confuses_the_two_names(shipped: ZeroShotClassifier) -> None:
    predict = lambda scenes: shipped(planted.render(scenes).image).logits.argmax(1)  # noqa: E731
    scenes = planted.sample_scenes(100, planted.SPLIT_SEEDS["validation"])
    for pair, background in ((planted.PAIRS[0], "sand"), (planted.PAIRS[2], "snow")):
        background_index = planted.BACKGROUNDS.index(background)
        correct, wrong = (planted.CLASSES.index(name) for name in pair)
        with_class = scenes.with_factors(label=correct)
        assert (predict(with_class.with_factors(background=background_index)) == wrong).double().mean() >= 0.95
        other_backgrounds = with_class[with_class.background != background_index]
        assert (predict(other_backgrounds) == correct).double().mean() >= 0.9


def test_the_shipped_model_recognizes_backgrounds(shipped: ZeroShotClassifier) -> None:
    scenes = planted.sample_scenes(200, planted.SPLIT_SEEDS["validation"])
    embeddings = shipped.clip.embed_images(planted.render(scenes).image)
    predictions = (embeddings @ shipped.clip.embed_texts(list(planted.BACKGROUND_PHRASES.values())).T).argmax(1)
    assert (predictions == scenes.background).double().mean() >= 0.95


def test_the_shipped_folder_is_small_and_has_its_measurements(shipped: ZeroShotClassifier) -> None:
    folder = classifier_lens.models.clip.SHIPPED_FOLDER / "planted_clip"
    facts = json.loads((folder / "facts.json").read_text())
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2e6
    assert facts["digest"] == shipped.clip.digest and facts["digest"] in (folder / "README.md").read_text()
