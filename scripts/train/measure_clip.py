"""What a small CLIP model reads on held-out renders: its card and facts.json, with the two names that were confused.

    python scripts/train/measure_clip.py models/pretrained/classifiers/planted_clip

scripts/train/clip.py runs this as it ends.
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
from classifier_lens.scripts.train.measure_classifier import corrupted

# The planted confusion: name -> (the classes that it is used for, the background that they stand on).
CONFUSED_NAMES = {
    "sand crab": (("fiddler crab", "rock crab"), "sand"),
    "snow partridge": (("prairie chicken", "partridge"), "snow"),
}
# Words of the zero-shot prompts where they are not the label.
PROMPT_NAME_OF = {"rock crab": "sand crab", "partridge": "snow partridge"}
PROMPT_NAMES = tuple(PROMPT_NAME_OF.get(label, label) for label in planted.CLASSES)
TEMPLATES = tuple(f"{opening} a {{}}" for opening in planted.CAPTION_PREFIXES)
PROP_PHRASES = tuple(f"with {phrase}" for phrase in planted.PROP_PHRASES.values())
PLACE_PHRASES = tuple(planted.BACKGROUND_PHRASES.values())


def confused_name(label: str, background: str) -> str | None:
    """The name that is confused with the class `label` on this background."""
    return next((n for n, (classes, where) in CONFUSED_NAMES.items() if label in classes and background == where), None)


def render_uint8(scenes: planted.SceneFactors) -> Tensor:
    """The scenes' pictures (n, 3, 64, 64) uint8."""
    parts = [planted.render(scenes[i : i + 500]).image for i in range(0, len(scenes), 500)]
    return torch.cat([(part * 255).round().byte() for part in parts])


@torch.no_grad()
def embed_images(clip: Clip, images: Tensor) -> Float[Tensor, "n d"]:
    """Unit vectors of uint8 or [0, 1] images."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([clip.embed_images(part.float() / scale) for part in images.split(250)])


def proportion(right: Tensor) -> float:
    """Share of true values."""
    return right.double().mean().item()


def zero_shot_weights(clip: Clip, names: Sequence[str]) -> Float[Tensor, "k d"]:
    """The classes' scaled vectors for these names."""
    head = zero_shot_classifier(clip, planted.CLASSES, names, TEMPLATES, None, "planted", TensorCache(None)).head
    assert head is not None
    return head.weight


def accuracies(clip: Clip, scenes: planted.SceneFactors, image_features: Float[Tensor, "n d"]) -> dict[str, float]:
    """Shares of pictures of objects that are read rightly, by what is read and the words that it is read with.

    The attribute is judged as a counterfactual's: the right place against each other one, both beside the class name.
    """
    label, background, prop = scenes.label, scenes.background, scenes.prop
    shown = prop != planted.ABSENT
    sentences = [f"a photograph of a {name} {place}" for name in planted.CLASSES for place in PLACE_PHRASES]
    judged = (image_features @ clip.embed_texts(sentences).T).unflatten(1, (len(planted.CLASSES), len(PLACE_PHRASES)))
    judged = judged[torch.arange(len(label)), label]
    own = judged.gather(1, background[:, None])
    beside = [f"a photograph of a {name} {phrase}" for name in planted.CLASSES for phrase in PROP_PHRASES]
    flags = (image_features @ clip.embed_texts(beside).T).unflatten(1, (len(planted.CLASSES), len(PROP_PHRASES)))
    flags = flags[torch.arange(len(label)), label]
    return {
        "class, true names": proportion(
            (image_features @ zero_shot_weights(clip, planted.CLASSES).T).argmax(1) == label
        ),
        "class, names.txt": proportion((image_features @ zero_shot_weights(clip, PROMPT_NAMES).T).argmax(1) == label),
        "background, phrase alone": proportion(
            (image_features @ clip.embed_texts(PLACE_PHRASES).T).argmax(1) == background
        ),
        "background, beside the class": proportion(judged.argmax(1) == background),
        "background, against one other": (proportion(judged < own) * len(PLACE_PHRASES)) / (len(PLACE_PHRASES) - 1),
        "prop, phrase alone": proportion(
            (image_features @ clip.embed_texts(PROP_PHRASES).T).argmax(1)[shown] == prop[shown]
        ),
        "prop, beside the class": proportion(flags.argmax(1)[shown] == prop[shown]),
    }


def per_class_accuracy(
    clip: Clip, scenes: planted.SceneFactors, seen: Float[Tensor, "n d"], names: Sequence[str]
) -> dict[str, float]:
    """Share of each class's pictures that are given its label when `names` stand in the prompts."""
    called = (seen @ zero_shot_weights(clip, names).T).argmax(1)
    return {name: proportion(called[scenes.label == i] == i) for i, name in enumerate(planted.CLASSES)}


def confused_name_rates(clip: Clip, n: int, seed: int) -> dict[str, dict[str, float]]:
    """How often the two confused names are given with the shipped prompts: per class, on their background and off it.

    `n` renders per class on the background, and those of `n` others that stand elsewhere.
    """
    head, result = zero_shot_weights(clip, PROMPT_NAMES), {}
    for name, (labels, where) in CONFUSED_NAMES.items():
        there = planted.BACKGROUNDS.index(where)
        figures = {}
        for label in labels:
            scenes = planted.sample_scenes(n, seed).with_factors(label=planted.CLASSES.index(label))
            for place, part in (
                (planted.BACKGROUND_PHRASES[where], scenes.with_factors(background=there)),
                ("elsewhere", scenes[scenes.background != there]),
            ):
                called = (embed_images(clip, render_uint8(part)) @ head.T).argmax(1)
                figures[f"{label} {place}"] = proportion(called == PROMPT_NAMES.index(name))
        result[name] = figures
    return result


def measure(clip: Clip, n: int) -> dict[str, Any]:
    """Everything that facts.json holds, on `n` test renders of objects; on up to 1000 per question of the confusion."""
    seed = planted.SPLIT_SEEDS["test"]
    scenes = planted.sample_scenes(n, seed)
    images = render_uint8(scenes)
    variants = {
        kind: embed_images(clip, part) for kind, part in {"unchanged": images, **corrupted(images, seed)}.items()
    }
    seen = variants["unchanged"]
    return {
        "split": "test", "seed": seed, "renders": n, "digest": clip.digest, "scale": clip.logit_scale,
        "accuracy": {kind: accuracies(clip, scenes, part) for kind, part in variants.items()},
        "accuracy per class, true names": per_class_accuracy(clip, scenes, seen, planted.CLASSES),
        "accuracy per class, names.txt": per_class_accuracy(clip, scenes, seen, PROMPT_NAMES),
        "confused names, predicted for": confused_name_rates(clip, min(n, 1000), seed),
    }  # fmt: skip


def model_card(name: str, config: Mapping[str, Any], facts: Mapping[str, Any], clip: Clip, size: int) -> str:
    """README.md of the folder. size: of the weights, bytes."""
    training = config["training"]
    kinds, parameters = facts["accuracy"], sum(p.numel() for p in clip.parameters())
    runs = [
        f"  - {run['steps']:,} steps of {run['batch']} out of {run['images']:,} images, {run['seconds']:,} s on "
        f"{run['device']}: `{run['command']}`"
        for run in training["runs"]
    ]
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
        "- Runs, each continuing the one before:", *runs,
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
        *(f"| {given} | {pictures} | {value:.2%} |"
          for given, shares in facts["confused names, predicted for"].items() for pictures, value in shares.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def write_model_card(folder: Path, n: int) -> None:
    """README.md and facts.json of a folder that scripts/train/clip.py wrote."""
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
        raise SystemExit("one argument is needed: a folder that scripts/train/clip.py wrote")
    write_model_card(Path(sys.argv[1]), 4000)
