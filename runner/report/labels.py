"""Labels of a page: of values and images as the tasks' result schemas declare them, and of loss terms."""

from __future__ import annotations

from collections.abc import Mapping

LOSS_LABELS = {
    "class_log_prob": "−log p(target)",
    "latent_distance": "Latent distance",
    "pixel_distance": "Pixel distance",
    "unit_activation": "− unit activation",
    "npca_contribution": "− component contribution",
    "disagreement": "− confidence gap",
    "total": "Total",
}
TABLE_LABELS = {"name": "Name", "value": "Value"}  # of columns that a table adds


def humanize(key: str) -> str:
    """A key as words: "class_log_prob" -> "class log prob"."""
    return key.replace("_", " ")


def value_label(key: str, labels: Mapping[str, str]) -> str:
    """The label of a value; keys without one, such as names of classes, stay as they are."""
    return labels.get(key) or TABLE_LABELS.get(key) or humanize(key)


def term_label(key: str) -> str:
    """The label of a loss term."""
    return LOSS_LABELS.get(key, humanize(key))


def setting_label(key: str, labels: Mapping[str, str]) -> str:
    """A dotted path of a summary or a configuration as words: "max.successes" -> "max: Successes"."""
    *path, last = key.split(".")
    return ": ".join([*path, value_label(last, labels)])
