"""Every classifier of the zoo and every segmenter, from files of random weights that lie as the published ones do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertTokenizer, ViTConfig, ViTForImageClassification

from classifier_lens.models.classifier.loaders.convstem import convolutional_stem
from classifier_lens.runner.configuration.compose import compose_config
from tests.checkpoints.hub import snapshot
from tests.checkpoints.test_sd15 import CLASSIFIER, SMALL
from tests.cli import ROOT, Cli
from tests.models.segmenter.tiny_clipseg import write_clipseg
from tests.models.segmenter.tiny_dino import write_detector
from tests.models.segmenter.tiny_sam import write_sam

# Not of the hub's or a user's files, or with no name of their own: tested elsewhere.
ELSEWHERE = ("callable", "timm", "torchvision", "trained", "transformers", "robust")
ZOO = sorted(
    path.stem
    for path in (ROOT / "conf/classifier").glob("*.yaml")
    if not path.stem.startswith(("planted", "cifar10", "efficientnet_lite")) and path.stem not in ELSEWHERE
)
# Of more weights or pixels than ViT-S and ResNet-50 have: half a minute to ten minutes each.
LARGE = (
    "clip_faces", "clip_zeroshot", "clip_zeroshot_clipa_h", "clip_zeroshot_clipa_l", "convnext_b", "convnext_l",
    "convnextv2_h", "eva02_l", "seresnet152d", "singh2023_vit_b", "vit_b",
)  # fmt: skip
# Files written and loaded as those of resnet50, vit_cub and grounded_sam with sam_hq are, or, of robust networks, whose
# layouts tests/models/classifier/loaders tests.
ALIKE = (
    "caffenet", "vit_s", "robust_resnet50", "robust_vit_s", "singh2023_vit_s", "vit_food", "grounded_sam_hq",
)  # fmt: skip
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))
FEW = ("generator.steps=2", "generator.null_text.inner_steps=1", "optimizer.steps=2")
NORMALISATION = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeinorst")]
CAL = """
import torch

network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 32, stride=32), torch.nn.Flatten(), torch.nn.LazyLinear(196))
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    network(torch.zeros(1, 3, 448, 448))


def load():
    return network
"""


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its weights, of which none share their memory."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def write_timm(node: dict[str, Any], home: Path) -> list[str]:
    """Of the hub's repository timm/<name>, the file that timm reads."""
    torch.manual_seed(0)
    network = timm.create_model(node["name"])
    save_file(state_of(network), snapshot(home, f"timm/{node['name']}", node["revision"]) / "model.safetensors")
    return []


def write_torchvision(node: dict[str, Any], home: Path) -> list[str]:
    """The file that torchvision downloads into torch hub's folder."""
    chosen = torchvision.models.get_model_weights(node["name"])[node["weights"]]
    folder = home / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(node["name"])
    torch.save(network.state_dict(), folder / chosen.url.rpartition("/")[2])
    return []


def write_transformers(node: dict[str, Any], home: Path) -> list[str]:
    """A ViT of the hub, whose labels are numbered and joined as those of CUB and Food-101 are."""
    folder = snapshot(home, node["path"], node["revision"])
    torch.manual_seed(0)
    labels = {i: f"{i + 1:03}.Bronzed_Kind_{i}" for i in range(7)}
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    prepared = {
        "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return ["data.label=Bronzed Kind 3"]


def write_robust(node: dict[str, Any], home: Path) -> list[str]:
    """A file of the `robustness` package's layout, stripped of its code as the YAML says."""
    torch.manual_seed(0)
    state = timm.create_model(node["name"]).state_dict()
    model = {f"{prefix}{name}": value for prefix in ("module.model.", "module.attacker.model.") for name, value in
             state.items()}  # fmt: skip
    model |= {f"module.normalizer.new_{name}": value.view(3, 1, 1) for name, value in NORMALISATION.items()}
    home.mkdir()
    torch.save(model, home / "robust.pt")
    return [f"classifier.checkpoint={home / 'robust.pt'}"]


def write_convstem(node: dict[str, Any], home: Path) -> list[str]:
    """A file of RobustBench's."""
    torch.manual_seed(0)
    network = timm.create_model(node["name"])
    network.patch_embed.proj = convolutional_stem(node["stem_channels"], network.embed_dim)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    home.mkdir()
    torch.save({"state_dict": state}, home / "robust.pt")
    return [f"classifier.checkpoint={home / 'robust.pt'}"]


def write_cal(_: dict[str, Any], home: Path) -> list[str]:
    """Code of a user's that loads a network of 196 logits."""
    home.mkdir()
    (home / "cal_layout.py").write_text(CAL)
    (home / "cars.txt").write_text("".join(f"Maker Model {year}\n" for year in range(1800, 1996)))
    return [
        f"classifier.target={home / 'cal_layout.py'}:load", f"classifier.labels={home / 'cars.txt'}",
        "data.label=Maker Model 1900",
    ]  # fmt: skip


def write_clip(node: dict[str, Any], home: Path) -> list[str]:
    """The hub's file of an open_clip model, and where it has BERT's tokenizer, that."""
    name, tag = node["clip"]["name"], node["clip"]["pretrained"]
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/")
    folder = snapshot(home, repository, node["clip"]["revision"])
    torch.manual_seed(0)
    network = open_clip.create_model(name, load_weights=False)
    save_file(state_of(network), folder / "open_clip_model.safetensors")
    if bert := open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name"):
        folder = snapshot(home, bert, None)
        BertTokenizer(vocab={word: i for i, word in enumerate(BERT)}).save_pretrained(folder)
        BertConfig().save_pretrained(folder)
    few = ["classifier.templates=['a bad photo of the {}.']"]
    if node["labels"] == "imagenet":
        return [*few, "classifier.labels=[goldfish,tench,hammerhead shark]"]
    asked = {"mode": "attribute", "attribute.source": "smiling", "attribute.target": "looking sad"}
    return [
        *few, "data.label=man", "captioner.template='a closeup portrait of {article} {label} smiling'",
        *(f"task.{key}={words}" for key, words in asked.items()),
    ]  # fmt: skip


# Keys that have no value in the YAML.
FILE = ("checkpoint",)
TO_BE_GIVEN = {
    "cal_resnet101": ("target", "labels"), "robust_resnet50": FILE, "robust_vit_s": FILE, "singh2023_vit_b": FILE,
    "singh2023_vit_s": FILE,
}  # fmt: skip
WRITERS: dict[str, Callable[[dict[str, Any], Path], list[str]]] = {
    "classifier_lens.models.clip.zero_shot_classifier": write_clip,
    "classifier_lens.models.classifier.loaders.convstem.convstem_classifier": write_convstem,
    "classifier_lens.models.classifier.loaders.user_network.callable_classifier": write_cal,
    "classifier_lens.models.classifier.loaders.timm.timm_classifier": write_timm,
    "classifier_lens.models.classifier.loaders.torchvision.torchvision_classifier": write_torchvision,
    "classifier_lens.models.classifier.loaders.transformers.transformers_classifier": write_transformers,
}


def published(option: str, home: Path) -> list[str]:
    """Write the files that an option asks for; what else it needs to be given."""
    node = compose_config([f"classifier={option}", *(f"classifier.{key}=x" for key in TO_BE_GIVEN.get(option, ()))])
    write = write_robust if option.startswith("robust") else WRITERS[node["classifier"]["_target_"]]
    return write(node["classifier"], home)


@pytest.mark.parametrize("option", [pytest.param(o, marks=SLOW if o in LARGE + ALIKE else ()) for o in ZOO])
def test_a_counterfactual_for_every_classifier(
    option: str, sd15: Path, home: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two steps of uvce, with the classifier's own weights, size, labels and preprocessing."""
    own = published(option, home)
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "x.jpg")
    words = {word.split("=", 1)[0]: word for word in ("data.label=goldfish", *SMALL, *own)}
    outcome = cli.plain(
        capfd, "task=uvce", f"classifier={option}", "data=image", f"data.path={tmp_path / 'x.jpg'}",
        f"generator.path={sd15}", f"outputs={cli.outputs}", *words.values(), *FEW,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert cli.folder.parent.name == f"imagenet_ddim-{option}"
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert line["source"] != line["target"] and len(line["history"]) == 3
    totals = [step["total"] for step in line["history"]]
    assert len(set(totals)) == 3, "the classifier's gradient moves the picture"
    assert Image.open(cli.folder / line["images"]["result"]).size == (64, 64)


# What writes their folders, by the keys of the YAML that say where these are looked for.
detector = partial(write_detector, side=128)
sam, sam_hq, sam2 = (partial(write_sam, kind) for kind in ("sam", "sam_hq", "sam2"))
SEGMENTERS: dict[str, dict[str, Callable[[Path], Path]]] = {
    "clipseg": {"path": write_clipseg}, "sam": {"path": sam}, "sam_hq": {"path": sam_hq},
    "grounded_sam": {"path": sam, "detector": detector}, "grounded_sam_hq": {"path": sam_hq, "detector": detector},
    "grounded_sam2": {"path": sam2, "detector": detector},
}  # fmt: skip


@pytest.mark.parametrize("option", [pytest.param(o, marks=SLOW if o in ALIKE else ()) for o in SEGMENTERS])
def test_a_counterfactual_with_every_segmenter_of_the_hub(
    option: str, sd15: Path, home: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The weights lie in the hub's cache, at the revision that the YAML names."""
    node = compose_config([f"segmenter={option}"])["segmenter"]
    for key, write in SEGMENTERS[option].items():
        write(snapshot(home, node[key], node["revision" if key == "path" else f"{key}_revision"]))
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "x.jpg")
    outcome = cli.plain(
        capfd, "task=uvce", *CLASSIFIER, f"segmenter={option}", "data=image", f"data.path={tmp_path / 'x.jpg'}",
        "data.label=goldfish", f"generator.path={sd15}", f"outputs={cli.outputs}", *SMALL, *FEW,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert len(line["history"]) == 3 and Image.open(cli.folder / line["images"]["mask"]).size == (64, 64)
