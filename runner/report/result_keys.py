"""Present names of keys in run folders of earlier versions, whose pages can be written again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANIFEST = {"unseen": "untracked"}
ATTEMPT = {"prepared": "preparation_seconds"}
_RECORD = {
    "picture": "image_name", "inject": "cross_replace_steps", "blend": "background_blend_steps", "keep": "preserve",
    "steps": "max_steps", "controls": "controls_file", "digests": "file_digests",
}  # fmt: skip
_IMAGES = {
    "best": "result", "training": "training_image", "worded": "best_word_image", "attack": "feature_attack",
    "found": "class_region", "cam-before": "hirescam_before", "cam-after": "hirescam_after",
    "cam-training": "hirescam_training", "class": "attention_class_name",
}  # fmt: skip
_IMAGE_SERIES = {  # prefixes of numbered and named images
    "near-": "image_neighbor_0", "text-": "text_neighbor_0", "word-": "attention_", "gradient-": "gradient_",
}  # fmt: skip
_SUMMARY = {"answers": "results", "not_reached": "not_activated", "curve": "delta_curve"}
_SCORE = {
    "verdict": "comparison", "interval": "activation_score_interval", "images": "num_images", "best": "best_restart",
    "lowest": "min_activation_score", "highest": "max_activation_score", "class name": "class_name",
    "best caption": "caption",
}  # fmt: skip
_ON_OBJECT = {
    "within": "share_on_object", "within_class": "share_on_object_class", "within_words": "share_on_object_words",
    "area": "object_area",
}  # fmt: skip
_BY_TASK = {
    "spurious_audit": {
        "reached": "activated", "label": "annotation", "agrees": "agrees_with_annotation", "agree": "accuracy",
        "typical": "class_mean_activation", "shares": "r_per_image", "network": "classifier_digest",
    },
    "disagreement": {
        "near_found": "image_neighbors", "near_same": "image_neighbors_disagreeing", "text_found": "text_neighbors",
        "text_same": "text_neighbors_disagreeing", "rival_predicted_after": "second_predicted_after",
        "rival_confidence_before": "second_confidence_before", "rival_confidence_after": "second_confidence_after",
    },
    "diffexplainer_class": {"rivals": "baseline_prompts", "interval": "activation_score_interval"},
    "neuron_vis": {
        "own_standardised": "activation_zscore", "others_standardised": "other_units_zscore", "word": "best_word",
    },
    "neuron_cf": {
        "cam_outside_before": "cam_share_outside_before", "cam_outside_after": "cam_share_outside_after",
    },
    "attention_maps": _ON_OBJECT, "input_gradients": _ON_OBJECT,
    "uvce": {"confidence_spread": "mean_confidence_std"},
}  # fmt: skip


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The same values, under the present names of their keys."""
    return {names.get(key, key): value for key, value in values.items()}


def current_record(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A result of a task under the present names."""
    current = renamed(record, _RECORD | _BY_TASK.get(task, {}))
    images = current.get("images")
    if isinstance(images, Mapping):
        current["images"] = {_image_key(key): path for key, path in images.items()}
    prompts = current.get("baseline_prompts")
    if isinstance(prompts, Mapping):
        current["baseline_prompts"] = {name: renamed(row, _SCORE) for name, row in renamed(prompts, _SCORE).items()}
    shares = current.get("share_on_object")
    if task == "attention_maps" and isinstance(shares, Mapping):
        current["share_on_object"] = {_image_key(key): share for key, share in shares.items()}
    return current


def _image_key(key: str) -> str:
    for old, new in _IMAGE_SERIES.items():
        if key.startswith(old):
            return new + key.removeprefix(old).replace("-", "_", 1 if old == "word-" else 0)
    return _IMAGES.get(key, key)


def current_summary(summary: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A run's summary under the present names, the rows of its tables too."""
    names = _SUMMARY | _BY_TASK.get(task, {}) | (_SCORE if task == "diffexplainer_class" else {})
    return {key: _nested(value, names) for key, value in renamed(summary, names).items()}


def _nested(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return renamed(value, names)
    if isinstance(value, list):
        return [renamed(row, names) if isinstance(row, Mapping) else row for row in value]
    return value
