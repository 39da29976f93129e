"""The help of `python run.py`: the groups of conf/ with their options, keys and examples. Imports no slow packages."""

from __future__ import annotations

import textwrap
from pathlib import Path

from classifier_lens.runner.paths import CONFIG_FOLDER

HELP_OPTIONS = frozenset(("--help", "-h"))
NARROWEST, WIDEST = 80, 140  # columns
GROUPS = {
    "task": "what is computed",
    "classifier": "the network to explain",
    "data": "images to start from",
    "generator": "the latent diffusion model",
    "sampler": "its sampler",
    "domain": "settings that fit the images",
    "optimizer": "steps and rates",
    "parametrization": "what is optimized",
    "baseline": "methods to compare with, for task.baseline",
    "augment": "views of the image that the classifier predicts",
    "captioner": "captions of images",
    "segmenter": "masks of objects",
    "clip": "the CLIP model that compares images and texts",
    "phrases": "objects and phrases for searches",
    "overlay": "changes of images whose effect is measured",
    "problems": "how many problems without limit",
    "safety_checker": "safety checker",
    "logger": "where progress is logged",
    "experiment": "figures of the papers and miniatures of them",
}
KEYS = {
    "task.target": "target class, or a rule such as nearest",
    "task.preserve": "preserved region: background, foreground, none or all",
    "task.baseline": "a baseline of conf/baseline instead of the method",
    "data.path": "image file (data=image) or folder (data=folder)",
    "data.label": "class of the image (data=image)",
    "classifier.target": "file.py:function (classifier=callable)",
    "classifier.labels": "file with the class names, one per line",
    "generator.path": "folder or hub name of the diffusion model",
    "generator.steps": "sampler steps",
    "optimizer.steps": "optimization steps",
    "optimizer.lr.latent": "learning rate of the latent",
    "augment.crops": "random crops per optimization step",
    "select.classes": "only images of these classes",
    "select.indices": "only images at these positions",
    "limit": "number of problems; null for all",
    "batch": "problems optimized together; auto for as many as fit in memory",
    "seed": "seed of images and noise",
    "device": "auto, cpu, cuda or cuda:1",
    "threads": "CPU threads",
    "outputs": "folder of the results",
}
EXAMPLES = {
    "python run.py": "four counterfactuals of the planted world",
    "python run.py classifier=vit_b data=image data.path=goldfish.jpg data.label=goldfish task.target=axolotl":
        "your image, Stable Diffusion",
    "python run.py task=concept_effect classifier=planted_shortcut": "phrases that a classifier depends on",
    "python run.py -m classifier=planted_clean,planted_shortcut seed=0,1": "a sweep: four runs",
    "python run.py task=neuron_vis --cfg job": "every key with its value, without a run",
}  # fmt: skip


def help_text(columns: int) -> str:
    """The help for a terminal of this width."""
    width = min(max(columns, NARROWEST), WIDEST)
    groups = [
        _wrapped(name, f"{about}: {', '.join(options(CONFIG_FOLDER / name))}", width) for name, about in GROUPS.items()
    ]
    longest = max(map(len, KEYS))
    return "\n".join([
        "Explain an image classifier with a latent diffusion model.",
        "Usage: python run.py [group=option ...] [key=value ...]",
        "\nGroups and their options:", *groups,
        "\nKeys:", *(f"  {key:<{longest}}  {about}" for key, about in KEYS.items()),
        "\nExamples:", *(f"  {command}  # {about}" for command, about in EXAMPLES.items()),
        "\nOptions of Hydra: --hydra-help. The reference of all keys and guides: docs/.",
    ])  # fmt: skip


def options(folder: Path) -> list[str]:
    """The options of a group; for `experiment` its folders with their numbers of options."""
    if subfolders := sorted(path for path in folder.iterdir() if path.is_dir() and folder.name == "experiment"):
        return [f"{path.name}/… ({len(list(path.glob('*.yaml')))})" for path in subfolders]
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    return [name for name in names if name.removesuffix("_train") not in names or not name.endswith("_train")]


def _wrapped(name: str, text: str, width: int) -> str:
    longest = max(map(len, GROUPS))
    indent = " " * (longest + 4)
    return textwrap.fill(
        text, width, initial_indent=f"  {name:<{longest}}  ", subsequent_indent=indent, break_on_hyphens=False
    )
