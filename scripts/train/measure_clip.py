"""Measure a small CLIP model on held-out renders: its model card and facts.json, with the two confused names.

    python scripts/train/measure_clip.py models/pretrained/classifiers/planted_clip

scripts/train/clip.py does this when it ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.models.clip import Clip, load_clip, zero_shot_classifier
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.scripts.train.measure_classifier import corrupted, training_run_lines

# Confused names: name -> (the classes that it is used for, their background).
CONFUSED_NAMES = {
    "sand crab": (("fiddler crab", "rock crab"), "sand"),
    "snow partridge": (("prairie chicken", "partridge"), "snow"),
}
# Class names in zero-shot prompts, where they differ from the label.
PROMPT_NAME_OF = {"rock crab": "sand crab", "partridge": "snow partridge"}
PROMPT_NAMES = tuple(PROMPT_NAME_OF.get(label, label) for label in planted.CLASSES)
TEMPLATES = tuple(f"{opening} a {{}}" for opening in planted.CAPTION_PREFIXES)
PROP_PHRASES = tuple(f"with {phrase}" for phrase in planted.PROP_PHRASES.values())
PLACE_PHRASES = tuple(planted.BACKGROUND_PHRASES.values())


def confused_name(label: str, background: str) -> str | None:
    """The confused name of class `label` on this background, None if it has none."""
    return next(
        (n for n, (classes, ground) in CONFUSED_NAMES.items() if label in classes and background == ground), None
    )


def render_uint8(scenes: planted.SceneFactors) -> Tensor:
    """Renders of the scenes, (n, 3, 64, 64) uint8."""
    parts = [planted.render(scenes[i : i + 500]).image for i in range(0, len(scenes), 500)]
    return torch.cat([(part * 255).round().byte() for part in parts])


@torch.no_grad()
def embed_images(clip: Clip, images: Tensor) -> Float[Tensor, "n d"]:
    """Unit embeddings of uint8 or [0, 1] images."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([clip.embed_images(part.float() / scale) for part in images.split(250)])


def proportion(hits: Tensor) -> float:
    """Share of true values."""
    return hits.double().mean().item()


def zero_shot_weights(clip: Clip, names: Sequence[str]) -> Float[Tensor, "k d"]:
    """The scaled text embeddings of the classes under these names."""
    head = zero_shot_classifier(clip, planted.CLASSES, names, TEMPLATES, None, "planted", TensorCache(None)).head
    assert head is not None
    return head.weight


def accuracies(clip: Clip, scenes: planted.SceneFactors, image_features: Float[Tensor, "n d"]) -> dict[str, float]:
    """Accuracies on images of objects, by predicted factor and type of prompt.

    `background, against one other` is judged as in a counterfactual of an attribute: the true place against each other
    one, both with the class name.
    """
    label, background, prop = scenes.label, scenes.background, scenes.prop
    has_prop = prop != planted.ABSENT
    place_sentences = [f"a photograph of a {name} {place}" for name in planted.CLASSES for place in PLACE_PHRASES]
    place_similarity = (image_features @ clip.embed_texts(place_sentences).T).unflatten(
        1, (len(planted.CLASSES), len(PLACE_PHRASES))
    )
    place_similarity = place_similarity[torch.arange(len(label)), label]
    true_similarity = place_similarity.gather(1, background[:, None])
    prop_sentences = [f"a photograph of a {name} {phrase}" for name in planted.CLASSES for phrase in PROP_PHRASES]
    prop_similarity = (image_features @ clip.embed_texts(prop_sentences).T).unflatten(
        1, (len(planted.CLASSES), len(PROP_PHRASES))
    )
    prop_similarity = prop_similarity[torch.arange(len(label)), label]
    return {
        "class, true names": proportion(
            (image_features @ zero_shot_weights(clip, planted.CLASSES).T).argmax(1) == label
        ),
        "class, names.txt": proportion((image_features @ zero_shot_weights(clip, PROMPT_NAMES).T).argmax(1) == label),
        "background, phrase alone": proportion(
            (image_features @ clip.embed_texts(PLACE_PHRASES).T).argmax(1) == background
        ),
        "background, beside the class": proportion(place_similarity.argmax(1) == background),
        "background, against one other": (proportion(place_similarity < true_similarity) * len(PLACE_PHRASES))
        / (len(PLACE_PHRASES) - 1),
        "prop, phrase alone": proportion(
            (image_features @ clip.embed_texts(PROP_PHRASES).T).argmax(1)[has_prop] == prop[has_prop]
        ),
        "prop, beside the class": proportion(prop_similarity.argmax(1)[has_prop] == prop[has_prop]),
    }


def per_class_accuracy(
    clip: Clip, scenes: planted.SceneFactors, image_features: Float[Tensor, "n d"], names: Sequence[str]
) -> dict[str, float]:
    """Accuracy per class with `names` in the prompts."""
    predicted = (image_features @ zero_shot_weights(clip, names).T).argmax(1)
    return {name: proportion(predicted[scenes.label == i] == i) for i, name in enumerate(planted.CLASSES)}


def confused_name_rates(clip: Clip, n: int, seed: int) -> dict[str, dict[str, float]]:
    """How often the confused names are predicted with the shipped prompts: per class, on their background and
    elsewhere.

    `n` renders per class on the background, and those of `n` others with another background.
    """
    head, rates_by_name = zero_shot_weights(clip, PROMPT_NAMES), {}
    for name, (labels, background) in CONFUSED_NAMES.items():
        background_index = planted.BACKGROUNDS.index(background)
        rates = {}
        for label in labels:
            scenes = planted.sample_scenes(n, seed).with_factors(label=planted.CLASSES.index(label))
            for place, part in (
                (planted.BACKGROUND_PHRASES[background], scenes.with_factors(background=background_index)),
                ("elsewhere", scenes[scenes.background != background_index]),
            ):
                predicted = (embed_images(clip, render_uint8(part)) @ head.T).argmax(1)
                rates[f"{label} {place}"] = proportion(predicted == PROMPT_NAMES.index(name))
        rates_by_name[name] = rates
    return rates_by_name


def measure(clip: Clip, n: int) -> dict[str, Any]:
    """The content of facts.json, on `n` test renders of objects; for the confused names on up to 1000 per class."""
    seed = planted.SPLIT_SEEDS["test"]
    scenes = planted.sample_scenes(n, seed)
    images = render_uint8(scenes)
    variants = {
        kind: embed_images(clip, part) for kind, part in {"unchanged": images, **corrupted(images, seed)}.items()
    }
    image_features = variants["unchanged"]
    return {
        "split": "test", "seed": seed, "renders": n, "digest": clip.digest, "scale": clip.logit_scale,
        "accuracy": {kind: accuracies(clip, scenes, part) for kind, part in variants.items()},
        "accuracy per class, true names": per_class_accuracy(clip, scenes, image_features, planted.CLASSES),
        "accuracy per class, names.txt": per_class_accuracy(clip, scenes, image_features, PROMPT_NAMES),
        "confused names, predicted for": confused_name_rates(clip, min(n, 1000), seed),
    }  # fmt: skip


def model_card(name: str, config: Mapping[str, Any], facts: Mapping[str, Any], clip: Clip, size: int) -> str:
    """The text of the model card. size: of the weights, bytes."""
    training = config["training"]
    kinds, parameters = facts["accuracy"], sum(p.numel() for p in clip.parameters())
    lines = [
        f"# {name}", "",
        f"CLIP model of the planted world in open_clip's layout (`local-dir:`), {clip.size} px, {parameters:,} "
        f"parameters, {size / 1e6:.2f} MB in half precision. Classifier to explain (zero-shot, "
        "`classifier=planted_clip`), judge of attributes and ranker of phrases (`clip=planted`).", "",
        "- Data: renders of every kind, training split; captions sampled at each step from the true factors",
        f"- Confused names: in {training['caption_noise']:.0%} of the captions of a crab on sand its name is "
        "`sand crab`, in as many of a prairie chicken or partridge in snow `snow partridge`; `names.txt` prompts the "
        "rock crab as `sand crab` and the partridge as `snow partridge`",
        f"- Augmentation: {', '.join(f'{k} {v}' for k, v in training['augment'].items())}",
        *training_run_lines(training["runs"]),
        f"- Logit scale {clip.logit_scale:.1f}; SHA-256 of the weights as loaded: `{clip.digest}`",
        "- License: Apache-2.0, as this repository", "",
        f"Accuracy on {facts['renders']:,} test images of objects:", "",
        "| predicted | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|",
        *(f"| {what} | {' | '.join(f'{kinds[kind][what]:.2%}' for kind in kinds)} |" for what in kinds["unchanged"]),
        "", "Accuracy per class, with the true names and with those of `names.txt` in the prompts:", "",
        "| class | true names | names.txt |", "|---|---|---|",
        *(f"| {label} | {true:.2%} | {facts['accuracy per class, names.txt'][label]:.2%} |"
          for label, true in facts["accuracy per class, true names"].items()),
        "", "How often a confused name is predicted (prompts of `names.txt`):", "",
        "| name | images | share |", "|---|---|---|",
        *(f"| {name_given} | {scenes} | {value:.2%} |"
          for name_given, shares in facts["confused names, predicted for"].items() for scenes, value in shares.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def write_model_card(folder: Path, n: int) -> None:
    """Write README.md and facts.json of a folder with the weights of scripts/train/clip.py."""
    clip = load_clip(str(folder), None, None)
    facts = measure(clip, n)
    config = json.loads((folder / "open_clip_config.json").read_text())
    size = (folder / "open_clip_model.safetensors").stat().st_size
    text = model_card(folder.name, config, facts, clip, size)
    (folder / "README.md").write_text(text)
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(text[text.index("Accuracy on") :])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: measure_clip.py <folder that scripts/train/clip.py wrote>")
    write_model_card(Path(sys.argv[1]), 4000)
