"""Paths of the project, be it a checkout or the installed package `classifier_lens`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "classifier_lens"  # import name of all code
ROOT = Path(__file__).resolve().parents[1]  # contains conf/, data/, models/, runner/, scripts/ and tasks/
CONFIG_FOLDER = ROOT / "conf"
PRETRAINED_FOLDER = ROOT / "models" / "pretrained"  # weights that are shipped
CODE_FOLDERS = tuple(ROOT / name for name in ("data", "models", "runner", "scripts", "tasks"))
