"""Files of weights in the layouts in which adversarially trained networks are published, with random weights."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.checkpoint import load_checkpoint
from classifier_lens.models.classifier.loaders.timm import timm_classifier
from classifier_lens.models.classifier.loaders.torchvision import DENSENET_RENAME_RULES, torchvision_classifier
from classifier_lens.runner.types import UserError
from tests.cli import ROOT

PICTURES = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.6, 0.7])
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
State = dict[str, Tensor]


def prefixed(state: State, *prefixes: str) -> State:
    return {f"{prefix}{name}": value for prefix in prefixes for name, value in state.items()}


def robustness(state: State) -> dict[str, Any]:
    """A checkpoint of the package robustness, whose attacker has a copy of all weights."""
    extra_weights = {"mean": MEAN.view(3, 1, 1), "std": STD.view(3, 1, 1)}
    model = prefixed(state, "module.model.", "module.attacker.model.")
    model |= prefixed(extra_weights, "module.normalizer.new_", "module.attacker.normalize.new_")
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": model, "optimizer": optimizer, "schedule": None, "epoch": 90, "amp": None}


# Layouts that bring their normalization, and those that leave it to the architecture.
WITH: dict[str, Callable[[State], dict[str, Any]]] = {
    "robustness": robustness,
    "mu and sigma": lambda state: {**state, "mu": MEAN.view(1, 3, 1, 1), "sigma": STD.view(1, 3, 1, 1)},
    "normalize, in state_dict": lambda state: {
        "state_dict": prefixed(prefixed(state, "model."), "module.")
        | {"module.normalize.mean": MEAN.view(1, 3, 1, 1), "module.normalize.std": STD.view(1, 3, 1, 1)},
        "epoch": 3,
    },
}
WITHOUT: dict[str, Callable[[State], dict[str, Any]]] = {
    "bare": dict,
    "in state_dict": lambda state: {"state_dict": state},
    "in model, of several devices": lambda state: {"model": prefixed(state, "module."), "best": 48.1},
    "a model of a model": lambda state: prefixed(state, "model.module."),
}
NAMES = ("resnet18.a1_in1k", "deit_tiny_patch16_224.fb_in1k")


def plain(architecture: str) -> nn.Module:
    """A network of random weights, with random statistics of batch normalization."""
    torch.manual_seed(2)
    network = timm.create_model(architecture).eval()
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network


def robust(*overrides: str) -> ImageClassifier:
    """The classifier that the YAML file of robust networks loads."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        node = compose("config", overrides=["classifier=robust", *overrides]).classifier
    classifier = instantiate(node, _convert_="all")
    assert isinstance(classifier, ImageClassifier)
    return classifier


def assert_normalised_once(classifier: ImageClassifier, network: nn.Module, mean: Tensor, std: Tensor) -> None:
    with torch.no_grad():
        expected = network((PICTURES - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(classifier(PICTURES).logits, expected, atol=1e-5, rtol=1e-4)
    assert not set(classifier.network.state_dict()) ^ set(network.state_dict())


@pytest.mark.parametrize(
    ("layout", "name"), [*((layout, NAMES[0]) for layout in (*WITH, *WITHOUT)), ("robustness", NAMES[1])]
)
def test_published_layouts_give_the_outputs_of_the_plain_network(tmp_path: Path, name: str, layout: str) -> None:
    network = plain(name)
    torch.save((WITH | WITHOUT)[layout](network.state_dict()), tmp_path / "w.pt")
    classifier = robust(f"classifier.name={name}", f"classifier.checkpoint={tmp_path / 'w.pt'}")
    assert_normalised_once(classifier, network, *((MEAN, STD) if layout in WITH else IMAGENET))


def test_safetensors_are_read_by_the_same_rules(tmp_path: Path) -> None:
    network = plain(NAMES[0])
    state = prefixed(network.state_dict(), "model.") | {"normalize.mean": MEAN, "normalize.std": STD}
    save_file(state, tmp_path / "w.safetensors")
    classifier = robust(f"classifier.name={NAMES[0]}", f"classifier.checkpoint={tmp_path / 'w.safetensors'}")
    assert_normalised_once(classifier, network, MEAN, STD)


def test_the_normalization_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    state = plain(NAMES[0]).state_dict()
    files = {"with": WITH["mu and sigma"](state), "without": state}
    built = []
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        built.append(robust(f"classifier.name={NAMES[0]}", f"classifier.checkpoint={tmp_path / name}"))
    assert built[0].digest == built[1].digest and built[0].fingerprint != built[1].fingerprint


def test_old_names_of_torchvisions_densenets() -> None:
    state = models.densenet121(num_classes=2).state_dict()
    rule = DENSENET_RENAME_RULES[0]
    older = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])", r"\1.\2", name): name for name in state}
    assert sum(old != new for old, new in older.items()) > 500
    assert all(re.sub(rule["from"], rule["to"], old) == new for old, new in older.items())


# --- refused files -----------------------------------------------------------------------------------------


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))


def error_of(tmp_path: Path, content: Any, inside: list[str], keys: list[dict[str, str]]) -> str:
    """The error message for a file, which is one line."""
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError) as caught:
        load_checkpoint(small(), tmp_path / "w.pt", inside, keys, "classifier.checkpoint=w.pt")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    state = small().state_dict()
    incomplete = {name: value for name, value in state.items() if name != "0.bias"}
    assert "1 weights are missing, such as 0.bias; 0 are unexpected" in error_of(tmp_path, incomplete, [], [])
    assert (
        "6 weights are missing, such as 0.weight; 6 are unexpected, such as x.0.weights; classifier.key_mapping"
        in error_of(
            tmp_path, {f"x.{name}s": value for name, value in state.items() if "num_batches" not in name}, [], []
        )
    )
    extra_weights = prefixed(state, "model.") | {"model.head.weight": torch.zeros(3)}
    assert "0 weights are missing; 1 are unexpected, such as head.weight" in error_of(tmp_path, extra_weights, [], [])
    for name in ("normalize.mean", "pixel_std", "mu"):  # which affect the outputs
        normalised = prefixed(state, "model.") | {name: torch.zeros(3)}
        assert f"1 are unexpected, such as {name}" in error_of(tmp_path, normalised, [], [])
    eight = {name: value.to(torch.int8) for name, value in state.items()}
    assert "0.weight is of type torch.int8, the network's of torch.float32" in error_of(tmp_path, eight, [], [])
    both = error_of(tmp_path, prefixed(state, "student.", "teacher."), [], [])
    assert (
        "exist with the prefixes student., teacher.; classifier.key_mapping=[{drop: '^teacher\\.'}] removes one" in both
    )
    averaged = error_of(tmp_path, {"net": state, "ema": state}, [], [])
    assert "the entries net, ema match the network; classifier.state_dict_entries=[net] selects one" in averaged
    assert "0.bias has shape (5,), the network's has (2,)" in error_of(
        tmp_path, state | {"0.bias": torch.zeros(5)}, [], []
    )
    assert "contains a list; allowed is a state dict" in error_of(tmp_path, [1], [], [])
    assert (
        "contains net, epoch, which are not weights; classifier.state_dict_entries=['model'] has to name"
        in error_of(tmp_path, {"net": incomplete, "epoch": 3}, ["model"], [])
    )
    only = error_of(tmp_path, state | {"mu": torch.zeros(3)}, [], [{"from": "^mu$", "to": "mean"}])
    assert "mean of shape (3,); allowed are mean and std of 3 channels" in only
    twice = error_of(tmp_path, prefixed(state, "a.", "b."), [], [{"from": "^[ab]\\.", "to": ""}])
    assert "renames both a.0.weight and b.0.weight to 0.weight; drop one of them" in twice
    assert "classifier.key_mapping={'from': '('" in error_of(tmp_path, state, [], [{"from": "(", "to": ""}])
    assert "a rule is {from: …, to: …} or {drop: …}" in error_of(tmp_path, state, [], [{"from": "a"}])


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in small().state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    assert load_checkpoint(small(), tmp_path / "w.pt", [], [], "x") is None


def test_a_state_dict_in_half_precision_loads(tmp_path: Path) -> None:
    """With its counters; a table of positions that changes by the rounding is refused."""
    network = small()
    network.register_buffer("places", torch.tensor([0, 7, 2048]))
    halved = {name: value.half() for name, value in network.state_dict().items()}
    torch.save(halved, tmp_path / "half.pt")
    fresh = small()
    fresh.register_buffer("places", torch.tensor([0, 7, 2048]))
    load_checkpoint(fresh, tmp_path / "half.pt", [], [], "x")
    assert torch.equal(fresh.state_dict()["0.weight"], halved["0.weight"].float())
    torch.save(halved | {"places": torch.tensor([0, 7, 2050]).half()}, tmp_path / "half.pt")
    with pytest.raises(UserError, match="places is of type torch.float16, the network's of torch.int64"):
        load_checkpoint(fresh, tmp_path / "half.pt", [], [], "x")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    line = error_of(tmp_path, {"model": small().state_dict(), "args": Code()}, ["model"], [])
    assert "sing in its entry args), which is never run here; save the entry of the weights alone" in line
    assert "torch.save(torch.load('in.pt', map_location='cpu', weights_only=False)['state_dict'], 'out.pt')" in line
    assert not Code.ran
    line = error_of(tmp_path, small(), [], [])
    assert "it is a network, not its weights; save the weights" in line and ".state_dict(), 'out.pt')" in line
    line = error_of(tmp_path, {"epoch": 3, "model": small()}, [], [])
    assert "Sequential in its entry model), which is never run here: the entry is a network, not its weights" in line
    assert "weights_only=False)['model'].state_dict(), 'out.pt')" in line
    torch.jit.script(small()).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match=r"is a TorchScript program; save its weights: torch\.save"):
        load_checkpoint(small(), tmp_path / "script.pt", [], [], "classifier.checkpoint=x")


class Code:
    """A canary: unpickling it would call `run`."""

    ran = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return sing, ()


def sing() -> None:
    Code.ran = True


NOT_OF_TORCH: dict[str, tuple[bytes, str]] = {
    "pickle.pt": (pickle.dumps({"a": 1.0}), "is a pickle that torch.save did not write"),
    "page.pth": (b"<html>404</html>", "is not a file of safetensors or of torch.save (it begins with b'<html>404</h')"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS; `git lfs pull`"),
    "empty.pt": (b"", "is not a file of safetensors or of torch.save (it is empty)"),
}


@pytest.mark.parametrize("name", NOT_OF_TORCH)
def test_other_files_are_recognized_by_their_content(tmp_path: Path, name: str) -> None:
    content, message = NOT_OF_TORCH[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_checkpoint(small(), tmp_path / name, [], [], "classifier.checkpoint=x")
    assert "\n" not in str(caught.value) and str(caught.value).count("classifier.checkpoint=x") == 1


def test_the_content_of_a_file_determines_its_format_not_its_name(tmp_path: Path) -> None:
    state = small().state_dict()
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert load_checkpoint(small(), tmp_path / name, [], [], "x") is None


ORDERS: list[dict[str, Any]] = [
    {"class_to_idx": {"crab": 1, "boat": 0, "bridge": 2}}, {"id2label": {"0": "boat", "2": "bridge", "1": "crab"}},
    {"classes": ["boat", "crab", "bridge"]}, {"idx_to_class": {0: "boat", 1: "crab", 2: "bridge"}},
]  # fmt: skip


@pytest.mark.parametrize("noted", ORDERS)
def test_classes_of_a_file_in_another_order_are_refused(tmp_path: Path, noted: dict[str, Any]) -> None:
    torch.save({"model": small().state_dict(), **noted}, tmp_path / "w.pt")

    def load(*labels: str) -> None:
        load_checkpoint(small(), tmp_path / "w.pt", ["model"], [], "classifier.checkpoint=w.pt", labels)

    load("boat", "crab", "bridge")
    load("ship", "crab", "bridge")  # other names are the user's
    load()
    (name,) = noted
    with pytest.raises(UserError, match=f"output 0 is boat by its {name}, but bridge by classifier.labels; give"):
        load("bridge", "boat", "crab")


# --- layouts of training scripts -----------------------------------------------------------------------------

NEW, OLD = small().state_dict(), {name: value + 1 for name, value in small().state_dict().items()}
NUMBERS = {"best": np.float64(0.9), "epoch": np.int64(3), "lr": np.float32(0.1), "done": np.bool_(True)}
SCRIPTS: dict[str, Any] = {
    "several devices": {"state_dict": prefixed(NEW, "module."), "epoch": 3},
    "lightning": {"state_dict": prefixed(NEW, "model."), "hyper_parameters": {"lr": 1e-3}, "loops": {"fit": {}}},
    "lightning, net": {"state_dict": prefixed(NEW, "net."), "optimizer_states": [{"state": {}}]},
    "compiled, several devices": prefixed(NEW, "module._orig_mod."),
    "timm": {"state_dict": NEW, "arch": "resnet18", "args": Namespace(lr=0.1, out=Path("x")), "metric": 1.0},
    "torchvision": {"model": NEW, "optimizer": {"state": {}, "param_groups": []}, "args": Namespace(lr=0.1)},
    "tutorial": {"model_state_dict": NEW, "optimizer_state_dict": {}, "epoch": 3, "loss": torch.tensor(0.1)},
    "another name": {"net": NEW, "acc": 91.2, "epoch": 3},
    "two deep": {"checkpoint": {"weights": NEW, "epoch": 3}},
    "numbers of NumPy": {"model": NEW, **NUMBERS},
    "arrays and times": {
        "model": NEW,
        "random": np.random.RandomState(0).get_state(),
        "confusion": np.eye(3),
        "names": np.array(["a"]),
        "began": datetime(2026, 1, 1),
        "args": SimpleNamespace(lr=0.1),
    },
    "lightning, with a loss and metrics": {
        "state_dict": prefixed(NEW, "net.")
        | {"criterion.weight": torch.ones(3), "accuracy.running_mean": torch.ones(1)}
    },
    "parts that are wrapped": {f"0._fsdp_wrapped_module.{n[2:]}" if n[0] == "0" else n: v for n, v in NEW.items()},
    "compiled parts": {f"model.1._orig_mod.{n[2:]}" if n[0] == "1" else f"model.{n}": v for n, v in NEW.items()},
    "counted operations": NEW | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "half precision": {name: value.half() if value.is_floating_point() else value for name, value in NEW.items()},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_checkpoints_of_training_scripts_load_without_settings(tmp_path: Path, script: str) -> None:
    torch.save(SCRIPTS[script], tmp_path / "w.pt")
    network = small()
    for value in network.state_dict().values():
        value.zero_()
    assert (
        load_checkpoint(network, tmp_path / "w.pt", ["state_dict", "model"], [], "classifier.checkpoint=w.pt") is None
    )
    tolerance = 1e-3 if script == "half precision" else 0.0
    for name, value in network.state_dict().items():
        assert value.dtype == NEW[name].dtype
        torch.testing.assert_close(value, NEW[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("inside", [["state_dict", "model"], ["state_dict_ema"]])
def test_averaged_weights_are_listed_and_can_be_selected(
    tmp_path: Path, inside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"state_dict": NEW, "state_dict_ema": {"n_averaged": torch.tensor(3)} | prefixed(OLD, "module.")},
        tmp_path / "w",
    )
    network = small()
    load_checkpoint(network, tmp_path / "w", inside, [], "classifier.checkpoint=w")
    expected, other = (OLD, "state_dict") if "state_dict_ema" in inside else (NEW, "state_dict_ema")
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{other} would match too, classifier.state_dict_entries=[{other}] selects it" in line


def test_ignored_weights_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(SCRIPTS["lightning, with a loss and metrics"], tmp_path / "w")
    load_checkpoint(small(), tmp_path / "w", ["state_dict"], [], "classifier.checkpoint=w")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "classifier.checkpoint=w: uses net.*; ignores criterion.weight, accuracy.running_mean"


def test_numpy_objects_are_not_read(tmp_path: Path) -> None:
    """A NumPy value of type `object` may contain any pickle."""
    line = error_of(tmp_path, {"model": NEW, "best": np.array(Code(), dtype=object)}, ["model"], [])
    assert "never run here" in line and not Code.ran


def test_a_network_of_timm_at_another_size_and_normalization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    half = [0.5, 0.5, 0.5]
    for name, settings in (("test_resnet", {}), ("test_vit", {"img_size": 64})):
        torch.save(timm.create_model(name, num_classes=2, **settings).state_dict(), tmp_path / "w.pt")
        arguments = ("imagenet", 64, half, half)
        classifier = timm_classifier(name, True, None, str(tmp_path / "w.pt"), [], [], ["a", "b"], *arguments)
        assert classifier.size == 64 and classifier.mean.flatten().tolist() == half == classifier.std.flatten().tolist()
        assert classifier(PICTURES).logits.shape == (2, 2)
    torch.save(timm.create_model("test_resnet", num_classes=1).state_dict(), tmp_path / "one.pt")
    file = str(tmp_path / "one.pt")
    one = timm_classifier("test_resnet", True, None, file, [], [], ["a", "b"], "imagenet", output="binary")
    assert one(PICTURES).logits[:, 0].tolist() == [0, 0]
    with pytest.raises(UserError, match="size=0; allowed are whole numbers"):
        timm_classifier("test_vit", True, None, file, [], [], ["a", "b"], "imagenet", 0)


def test_a_network_of_torchvision_at_another_size_and_normalization(tmp_path: Path) -> None:
    torch.save({"model": prefixed(models.squeezenet1_1(num_classes=3).state_dict(), "module.")}, tmp_path / "w.pt")
    classifier = torchvision_classifier(
        "squeezenet1_1", "DEFAULT", str(tmp_path / "w.pt"), ["model"], [], ["a", "b", "c"], "imagenet", 64, [0.5] * 3,
        [0.25] * 3,
    )  # fmt: skip
    assert classifier.size == 64 and classifier.std.flatten().tolist() == [0.25] * 3


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for name, content in (("a.pt", whole[:200]), ("b.pt", b"broken"), ("c.pt", b""), ("d.safetensors", b"broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            load_checkpoint(small(), tmp_path / name, [], [], "classifier.checkpoint=x")
        assert "\n" not in str(caught.value)
