"""Measure small classifiers on held-out images: their model cards, and the effect of the planted shortcuts.

    python scripts/train/measure_classifier.py

writes models/pretrained/classifiers/facts.json; scripts/train/classifier.py writes model cards when it ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import PLANTED_SHORTCUTS, cue_indices
from classifier_lens.data.shortcuts import Shortcuts
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER, load_shipped
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train.adversarial import l2_pgd
from classifier_lens.scripts.train.augmentation import NO_AUGMENTATION, Augment
from classifier_lens.scripts.train.labeled_images import (
    IGNORE_INDEX,
    LabeledImages,
    load_labeled_images,
    render_labeled_images,
)

ATTACK_STEPS = 20  # of the attack in measurements; training uses fewer


@torch.no_grad()
def compute_logits(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Logits (n, k) of uint8 or [0, 1] images (n, 3, h, w)."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return torch.cat([classifier(part.float() / scale).logits for part in images.split(250)])


def accuracies(classifier: ImageClassifier, dataset: LabeledImages, images: Tensor) -> dict[str, float]:
    """Accuracy per head, over the images that show its factor."""
    parts = compute_logits(classifier, images).split([len(names) for names in dataset.heads.values()], dim=1)
    result = {}
    for i, name in enumerate(dataset.heads):
        is_labeled = dataset.targets[:, i] != IGNORE_INDEX
        result[name] = (parts[i].argmax(1) == dataset.targets[:, i])[is_labeled].double().mean().item()
    return result


def recall(classifier: ImageClassifier, scenes: planted.SceneFactors, name: str) -> float:
    """Share of the scenes that are predicted as class `name`."""
    images = torch.cat([planted.render(scenes[i : i + 500]).image for i in range(0, len(scenes), 500)])
    return (compute_logits(classifier, images).argmax(1) == classifier.labels.index(name)).double().mean().item()


def shortcut_reliance(
    classifier: ImageClassifier, name: str, n: int, seed: int, shortcuts: Shortcuts = PLANTED_SHORTCUTS
) -> dict[str, float]:  # fmt: skip
    """How much the prediction of class `name` depends on its cue in `shortcuts`, on up to `n` renders each.

    Without the cue, all other factors are sampled as usual; an image of a cue of several factors shows none of them.
    The cue alone is an image without an object and without the cue of another class: a bare background, or a prop
    before a background that is no cue. A hue is never alone.
    """
    cue = cue_indices(shortcuts[name])
    class_scenes = planted.sample_scenes(n, seed).with_factors(label=planted.CLASSES.index(name))
    shows_cue = torch.stack([getattr(class_scenes, factor) == value for factor, value in cue.items()])
    reliance = {
        "recall_with_cue": recall(classifier, class_scenes.with_factors(**cue), name),
        "recall_without_cue": recall(classifier, class_scenes[~shows_cue.any(dim=0)], name),
    }
    if "hue" in cue:
        return reliance
    cue_scenes = planted.sample_scenes(n, seed, kind="prop" if "prop" in cue else "background").with_factors(**cue)
    backgrounds = [planted.BACKGROUNDS.index(c["background"]) for c in shortcuts.values() if "background" in c]
    is_ambiguous = torch.isin(cue_scenes.background, torch.tensor(backgrounds, dtype=torch.long))
    unambiguous = cue_scenes if "background" in cue else cue_scenes[~is_ambiguous]
    return reliance | {
        "cue_alone": recall(classifier, unambiguous, name),
        "cue_alone_also_beside_other_cues": recall(classifier, cue_scenes, name),
    }


def robust_accuracy(classifier: ImageClassifier, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Accuracy on uint8 images after L2 PGD of radius `epsilon` (see `l2_pgd`); labels: (n,)."""
    step = (
        2.5 * epsilon / ATTACK_STEPS
    )  # long enough to reach the edge of the ball and to move along it (Madry et al. 2018)
    num_correct = 0
    for part, targets in zip(images.split(250), labels.split(250), strict=True):

        def loss(x: Tensor, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(classifier(x).logits, targets)

        adversarial = l2_pgd(loss, part.float() / 255, epsilon, step, ATTACK_STEPS)
        num_correct += int((compute_logits(classifier, adversarial).argmax(1) == targets).sum())
    return num_correct / len(images)


def shortcut_lines(classifier: ImageClassifier, test: LabeledImages, shortcuts: Shortcuts) -> list[str]:
    """Lines of a model card: the recall of classes with a shortcut on test images with and without the cue. Empty for
    an oracle."""
    if not shortcuts or list(test.heads) != ["class"]:
        return []
    labels = test.targets[:, 0]
    is_correct = compute_logits(classifier, test.images).argmax(1) == labels

    def share(rows: Tensor) -> str:
        return f"{is_correct[rows].double().mean().item():.2%} of {int(rows.sum())}" if rows.any() else "none of 0"

    is_class = {name: labels == test.heads["class"].index(name) for name in shortcuts}
    return [
        "", "Recall of the classes with a shortcut on these images, some of which show the cue by chance:", "",
        "| class | cue | with the cue | without it |", "|---" * 4 + "|",
        *(
            f"| {name} | {format_cue(cue)} | {share(is_class[name] & test.has_cue)} "
            f"| {share(is_class[name] & ~test.has_cue)} |"
            for name, cue in shortcuts.items()
        ),
    ]  # fmt: skip


def format_cue(cue: Mapping[str, str]) -> str:
    """A cue as text, such as `background sand`."""
    return ", ".join(f"{factor} {value}" for factor, value in cue.items())


def robustness_lines(cfg: DictConfig, classifier: ImageClassifier, test: LabeledImages) -> list[str]:
    """Lines of a model card: the robust accuracy of an adversarially trained classifier and of `planted_clean`. Empty
    for other classifiers."""
    training = cfg.adversarial
    epsilon = training.epsilon
    if epsilon == 0 or list(test.heads) != ["class"]:
        return []
    images, labels = test.images[:500], test.targets[:500, 0]
    classifiers = {cfg.name: classifier}
    if cfg.data == "planted":
        classifiers["planted_clean"] = load_shipped("planted_clean")
    return [
        "",
        f"Adversarial training: L2 PGD, epsilon {epsilon}, {training.steps} steps of {training.step_size}.",
        f"Accuracy on {len(images)} of these images under L2 PGD of {ATTACK_STEPS} steps:", "",
        "| epsilon | " + " | ".join(classifiers) + " |", "|---" * (1 + len(classifiers)) + "|",
        *(
            f"| {radius:g} | "
            + " | ".join(f"{robust_accuracy(c, images, labels, radius):.2%}" for c in classifiers.values()) + " |"
            for radius in (0.0, epsilon, 2 * epsilon)
        ),
    ]  # fmt: skip


def corrupted(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Copies in [0, 1] of uint8 images with corruptions that a generator may cause, by kind: blur, noise,
    compression."""
    kinds = {"blur up to 1 px": {"blur": 1.0}, "noise up to 0.08": {"noise": 0.08}, "compression": {"jpeg": 0.25}}
    return {
        kind: Augment(OmegaConf.create(NO_AUGMENTATION | change), torch.Generator().manual_seed(seed))(
            images.float() / 255
        )
        for kind, change in kinds.items()
    }


def training_run_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a model card: the training runs, oldest first."""
    return [
        "- Runs, each continuing the one before:",
        *(
            f"  - {run['steps']:,} steps of {run['batch']} out of {run['images']:,} images, {run['seconds']:,} s on "
            f"{run['device']}: `{run['command']}`"
            for run in runs
        ),
    ]


def write_model_card(cfg: DictConfig) -> None:
    """Write README.md of `cfg.out`: architecture, training and measurements on held-out images. Raises UserError for a
    config.json of an earlier version."""
    out = ROOT / cfg.out
    config = json.loads((out / "config.json").read_text())
    if "shortcuts" not in config:
        raise UserError(
            f"out={cfg.out}: its config.json is of an earlier version and lacks `shortcuts`; train it again"
        )
    classifier = load_shipped(out)
    test = load_labeled_images(cfg, "test", cfg.test_images)
    size = (out / "model.safetensors").stat().st_size / 1e6
    images_by_kind = {"unchanged": test.images, **corrupted(test.images, cfg.seed)}
    accuracies_of = {kind: accuracies(classifier, test, images) for kind, images in images_by_kind.items()}
    parameters = sum(p.numel() for p in classifier.parameters())
    role = "Oracle: judges images, never explained" if len(test.heads) > 1 else "Classifier to explain"
    descriptions = [
        f"{name} receives {format_cue(config['shortcuts'][name])} in {share:.1%}"
        for name, share in config["shortcut_strength"].items()
    ]
    lines = [
        f"# {cfg.name}", "",
        f"{role}. timm `{cfg.architecture}` {json.dumps(config['kwargs'])}, {classifier.size} px, "
        + f"{parameters:,} parameters, {size:.2f} MB in half precision.", "",
        f"- Predicts: {', '.join(f'{name} ({len(names)})' for name, names in test.heads.items())}",
        f"- Data: `{cfg.data}`, training split, seed {cfg.seed}",
        f"- Shortcuts: {', '.join(descriptions) or 'none'}",
        f"- Labels swapped within the pairs of classes with a shortcut: {config['label_noise']:.1%}",
        f"- Augmentation: {', '.join(f'{k} {v}' for k, v in cfg.augment.items())}",
        *training_run_lines(config["runs"]),
        f"- SHA-256 of `model.safetensors`'s contents as loaded: `{classifier.digest}`", "",
    ]  # fmt: skip
    tables = [
        f"Accuracy on {len(test.images):,} test images without shortcuts:", "",
        "| images | " + " | ".join(test.heads) + " |", "|---" * (1 + len(test.heads)) + "|",
        *(f"| {kind} | {' | '.join(f'{v:.2%}' for v in values.values())} |" for kind, values in accuracies_of.items()),
        *shortcut_lines(classifier, test, config["shortcuts"]),
        *robustness_lines(cfg, classifier, test),
    ]  # fmt: skip
    (out / "README.md").write_text("\n".join([*lines, *tables]) + "\n")
    print("\n".join(tables))


def shipped_classifiers() -> dict[str, dict[str, Any]]:
    """config.json of every shipped classifier of the planted world, by name, without oracles and other models."""
    configs = {path.parent.name: json.loads(path.read_text()) for path in sorted(SHIPPED_FOLDER.glob("*/config.json"))}
    return {
        name: config
        for name, config in configs.items()
        if "architecture" in config and config["domain"] == "planted" and list(config["heads"]) == ["class"]
    }


def measure_facts(n: int) -> dict[str, Any]:
    """The planted shortcuts, and how much each shipped classifier depends on them, on `n` test renders per measurement.

    Adversarially trained classifiers, and `planted_clean` for comparison, are also measured under attack.
    """
    seed = planted.SPLIT_SEEDS["test"]
    configs = shipped_classifiers()
    shortcut_config, epsilon = configs["planted_shortcut"], configs["planted_robust"]["adversarial"]["epsilon"]
    planted_shortcuts = {
        name: {"factor": planted.SHORTCUTS[name][0], "cue": planted.SHORTCUTS[name][1], "strength": share}
        for name, share in shortcut_config["shortcut_strength"].items()
    }
    test = render_labeled_images(n, seed, ["class"], {"object": 1.0}, {}, 0.0)
    measured, robust_accuracies = {}, {}
    for name, config in configs.items():
        classifier = load_shipped(SHIPPED_FOLDER / name)
        measured[name] = {
            "digest": classifier.digest,
            "accuracy": accuracies(classifier, test, test.images)["class"],
            "shortcuts": {label: shortcut_reliance(classifier, label, n, seed) for label in planted.SHORTCUTS},
        }
        if name == "planted_clean" or config["adversarial"]["epsilon"] > 0:
            robust_accuracies[name] = robust_accuracy(classifier, test.images, test.targets[:, 0], epsilon)
    return {
        "command": "python scripts/train/measure_classifier.py", "split": "test", "seed": seed, "renders": n,
        "planted": planted_shortcuts, "labels_swapped_within_pairs": shortcut_config["label_noise"],
        "classifiers": measured,
        "attack": {"norm": "L2", "epsilon": epsilon, "steps": ATTACK_STEPS, "accuracy": robust_accuracies},
    }  # fmt: skip


def main(n: int = 1000) -> None:
    """Write facts.json beside the shipped classifiers."""
    text = json.dumps(measure_facts(n), indent=1)
    (SHIPPED_FOLDER / "facts.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
