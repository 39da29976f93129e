"""Where the project lies: a checkout, or the installed package `classifier_lens`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "classifier_lens"  # the name under which all folders of code are imported
ROOT = Path(__file__).resolve().parents[1]  # holds conf/, data/, models/, runner/, scripts/ and tasks/
CONFIG_FOLDER = ROOT / "conf"
PRETRAINED_FOLDER = ROOT / "models" / "pretrained"  # weights that are shipped
CODE_FOLDERS = tuple(
    ROOT / name for name in ("data", "models", "runner", "scripts", "tasks")
)  # all of the project's code
