"""What a page calls the values of a result: a label for each key, and the names of images and loss terms."""

from __future__ import annotations

from collections.abc import Mapping

VALUE_LABELS = {
    "name": "Name",
    "value": "Value",
    "image_name": "Image",
    "criterion": "Success criterion",
    "source": "Source class",
    "target": "Target",
    "caption": "Caption",
    "prompt": "Prompt",
    "unit": "Unit",
    "component": "Component",
    "direction": "Direction",
    "objective": "Objective",
    "max_steps": "Optimization steps",
    "best_step": "Best step",
    "cross_replace_steps": "Cross-replace steps, share of the chain",
    "background_blend_steps": "Background blend steps, share of the chain",
    "preserve": "Preserved region",
    "seed": "Seed",
    "seconds": "Time in s",
    "controls_file": "Optimized parameters",
    "results": "Results",
    "successes": "Successes",
    "successes_at_start": "Successes before the first step",
    "mean_confidence_std": "Standard deviation of the confidence over seeds",
    "gap_before": "Confidence gap before",
    "gap_after": "Confidence gap after",
    "image_neighbors": "Real images nearest to the result",
    "image_neighbors_disagreeing": "Of these with the same disagreement",
    "text_neighbors": "Real images nearest to the prompt",
    "text_neighbors_disagreeing": "Of these with the same disagreement (prompt)",
    "activation": "Activation",
    "activation_before": "Activation before",
    "activation_start": "Activation at the start",
    "activation_after": "Activation after",
    "activation_attack": "Activation after the feature attack",
    "activations": "Activations of units",
    "activation_zscore": "Activation, z-score over training images",
    "other_units_zscore": "Mean z-score of the other units",
    "training_max": "Training maximum",
    "training_std": "Standard deviation over training images",
    "best_word": "Most activating words",
    "word_max": "Highest activation of their images",
    "word_means": "Mean activation by words",
    "confidence_attack": "Confidence after the feature attack",
    "cam_share_outside_before": "CAM outside the object before",
    "cam_share_outside_after": "CAM outside the object after",
    "contribution_before": "Contribution before",
    "contribution_start": "Contribution at the start",
    "contribution_after": "Contribution after",
    "activation_score": "Activation score",
    "activation_score_interval": "95\u00a0% interval",
    "min_activation_score": "Lowest of the restarts",
    "max_activation_score": "Highest of the restarts",
    "mean_activation_score": "Mean activation score",
    "mean_confidence": "Mean confidence",
    "baseline_prompts": "Baseline prompts",
    "class_name": "Class name",
    "best_restart": "Best restart",
    "restarts": "Restarts",
    "num_images": "Images",
    "comparison": "Optimized prompt",
    "rank": "Rank among the class's features",
    "r": "r, share of the image on the class",
    "r_interval": "95\u00a0% interval of r",
    "delta": "Threshold δ",
    "verdict": "Verdict",
    "annotation": "Human annotation",
    "agrees_with_annotation": "Agrees with the annotation",
    "group": "Group",
    "animate": "Animate class",
    "activated": "Images activate the feature",
    "class_mean_activation": "Mean activation in training images of the class",
    "classifier_digest": "Digest of the classifier",
    "core": "Core features",
    "spurious": "Spurious features",
    "undecided": "Undecided features",
    "not_activated": "Features that no prompt activates",
    "agreement": "Agreement with human annotations",
    "delta_curve": "Agreement by threshold δ",
    "features": "Features",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "kappa": "Cohen's κ",
    "auc": "AUC of r",
    "share_on_object": "Share on the object",
    "share_on_object_class": "Share on the object, class name",
    "share_on_object_words": "Share on the object, mean of all words",
    "object_area": "Share of the image that the object covers",
    "probability": "Probability of the target",
    "psnr": "PSNR of the reconstruction in dB",
}
SUMMARY_LABELS = VALUE_LABELS | {"class_name": "Score of the class name", "caption": "Score of the caption"}
LOSS_LABELS = {
    "class_log_prob": "−log p(target)",
    "latent_distance": "Latent distance",
    "pixel_distance": "Pixel distance",
    "unit_activation": "− unit activation",
    "npca_contribution": "− component contribution",
    "disagreement": "− confidence gap",
    "total": "Total",
}
IMAGE_LABELS = {
    "original": "Original",
    "start": "Initialization",
    "best": "Result",
    "difference": "Absolute difference",
    "mask": "Editable region (white)",
    "training": "Most activating training image",
    "best_word": "Most activating image of the words",
    "attack": "Feature attack",
    "found": "Region of the class, in color",
    "cam-training": "HiResCAM of the training image",
    "cam-before": "HiResCAM before",
    "cam-after": "HiResCAM after",
    "class": "Attention to the class name",
}
FAMILIES = {  # of image names: what follows is a number or a name
    "word": "Attention to",
    "gradient": "Gradient,",
    "near": "Nearest real image",
    "image-neighbor": "Nearest real image",
    "text": "Real image nearest to the prompt",
    "text-neighbor": "Real image nearest to the prompt",
}
NO_AUGMENTATION = "none"  # of the gradient of the image itself


def humanize(key: str) -> str:
    """A key as words: "class_log_prob" -> "class log prob"."""
    return key.replace("_", " ")


def value_label(key: str) -> str:
    """The label of a result's value; keys without one, such as names of classes, stay as they are."""
    return VALUE_LABELS.get(key, humanize(key))


def term_label(key: str) -> str:
    """The label of a loss term."""
    return LOSS_LABELS.get(key, humanize(key))


def setting_label(key: str) -> str:
    """A dotted path of a summary or a configuration as words: "max.successes" -> "max: Successes"."""
    *path, last = key.split(".")
    return ": ".join([*path, value_label(last)])


def image_label(key: str, titles: Mapping[str, str]) -> str:
    """The caption of an image, by the task's own titles first."""
    if key in titles or key in IMAGE_LABELS:
        return titles.get(key, IMAGE_LABELS.get(key, ""))
    family = next((name for name in sorted(FAMILIES, key=len, reverse=True) if key.startswith(f"{name}-")), None)
    if family is None:
        return humanize(key).capitalize()
    rest = key.removeprefix(f"{family}-")
    if family == "word":
        number, _, word = rest.partition("-")
        return f"{FAMILIES[family]} “{word or number}”"
    if family == "gradient" and rest == NO_AUGMENTATION:
        return "Gradient, no augmentation"
    return f"{FAMILIES[family]} {humanize(rest)}"
