"""No file of data, weights or results runs code: a pickle, a module or a node that would make a canary is given to
every loader, which says in one line what is wrong, or passes it over; no canary is made."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import CLIPTextModel, ViTConfig, ViTForImageClassification, ViTImageProcessor

from classifier_lens.data import cifar10, hugging_face, published_datasets
from classifier_lens.data.array_pickle import unpickle_arrays
from classifier_lens.models.classifier.loaders.checkpoint import load_checkpoint
from classifier_lens.models.classifier.loaders.transformers import transformers_classifier
from classifier_lens.models.clip import load_clip
from classifier_lens.models.generator.pipeline import networks
from classifier_lens.models.generator.prompt_tuning import SoftPrompt
from classifier_lens.models.hub import load_frozen, read_model_type
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.compose import load_recorded_dataset
from classifier_lens.runner.results.reader import read_run
from classifier_lens.runner.types import UserError
from tests.cli import ROOT

CANARY = "canary"  # a folder that the code in the files would make in the working folder
MODULE = f"import os\nos.mkdir('{CANARY}')\n"


class Code:
    """What a pickle calls when it is read."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (CANARY,)


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The working folder is an empty one, in which no canary lies at the end."""
    place = tmp_path / "working"
    place.mkdir()
    monkeypatch.chdir(place)
    yield
    assert not (place / CANARY).exists(), "code of a file was run"


def pickled(path: Path, kind: str) -> Path:
    """A file whose reading calls code: as `torch.save` writes it, or a bare pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "torch":
        torch.save({"state_dict": Code()}, path)
    else:
        path.write_bytes(pickle.dumps({"data": Code(), "labels": []}, protocol=2))
    return path


def refused(read: Callable[[], object]) -> str:
    """The one line in which a reader refuses."""
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_canary_would_be_seen(tmp_path: Path) -> None:
    file = pickled(tmp_path / "x.pt", "torch")
    torch.load(file, weights_only=False)
    assert Path(CANARY).is_dir()
    Path(CANARY).rmdir()


# --- weights -------------------------------------------------------------------------------------------------

KINDS = ("torch", "pickle")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ckpt", "x.bin", "x.safetensors"])
def test_a_checkpoint(name: str, kind: str, tmp_path: Path) -> None:
    path = pickled(tmp_path / name, kind)
    network = timm.create_model("test_resnet", num_classes=2)
    assert refused(lambda: load_checkpoint(network, path, ("state_dict",), (), f"classifier.checkpoint={path}"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_model(kind: str, tmp_path: Path) -> None:
    assert refused(lambda: load_clip("ViT-B-32", str(pickled(tmp_path / "x.pt", kind)), None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_transformers(kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(tiny_folder / "text_encoder", folder)
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", kind)
    assert refused(lambda: load_frozen("captioner.path=x", folder, CLIPTextModel, torch.float32))


def test_a_folder_that_brings_its_own_classes(tmp_path: Path) -> None:
    """In transformers' layout: `auto_map` names a module that lies beside the weights."""
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32,
                       patch_size=16, num_labels=2)  # fmt: skip
    for file in ("config.json", "preprocessor_config.json"):
        folder = tmp_path / file.partition(".")[0]
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        (folder / "own.py").write_text(MODULE)
        said = json.loads((folder / file).read_text())
        said["auto_map"] = {name: "own.Own" for name in ("AutoConfig", "AutoImageProcessor", "AutoProcessor")}
        said |= {"model_type": "own", "image_processor_type": "Own"}
        (folder / file).write_text(json.dumps(said))
        assert refused(lambda folder=folder: transformers_classifier(str(folder), None, ["a", "b"], None))  # type: ignore[misc]
    assert refused(lambda: read_model_type("x", tmp_path / "config", ["clip"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pipeline(part: str, kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_folder, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    pickled(folder / part / f"{'pytorch_model' if part == 'text_encoder' else 'diffusion_pytorch_model'}.bin", kind)
    assert refused(lambda: networks.load_networks(str(folder), None, None, None, None, "float32", "cpu", "needs a GPU"))


@pytest.mark.parametrize("library", ["own", "diffusers_modules.local.own", "own.py"])
def test_a_pipeline_that_brings_its_own_classes(library: str, tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_folder, folder)
    for place in (folder, folder / "unet", Path.cwd()):
        (place / "own.py").write_text(MODULE)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": [library, "Own"]}))
    assert refused(lambda: networks.load_networks(str(folder), None, None, None, None, "float32", "cpu", "needs a GPU"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"])
def test_an_adapter(name: str, kind: str, tmp_path: Path, tiny_folder: Path) -> None:
    adapter = pickled(tmp_path / "lora" / name, kind).parent
    said = (str(tiny_folder), None, str(adapter), None, None, "float32", "cpu", "needs a GPU")
    assert refused(lambda: networks.load_networks(*said))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_an_earlier_answer(kind: str, tmp_path: Path) -> None:
    load = str(pickled(tmp_path / "controls.safetensors", kind))
    assert refused(lambda: SoftPrompt(load_path=load)._load(1, 4))


# --- data ----------------------------------------------------------------------------------------------------


def test_batches_of_cifar10(tmp_path: Path) -> None:
    pickled(tmp_path / "cifar-10-batches-py" / "test_batch", "pickle")
    said = refused(lambda: cifar10.Cifar10(tmp_path, "test", None, 0))
    assert "test_batch contains code (posix.mkdir), which is never run" in said


def test_a_zip_of_photographs(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("test/cat/0.jpg", pickle.dumps(Code()))
        archive.writestr("../../cat/canary.jpg", pickle.dumps(Code()))
    assert refused(lambda: cifar10.Cifar10(tmp_path, "test", None, 0))
    assert not list(tmp_path.parent.rglob("canary.jpg"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.array([1.5]),
        np.array(["a", "b"]),
        np.asfortranarray(np.eye(2)),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_come_back_from_a_pickle(array: np.ndarray, protocol: int) -> None:
    found = unpickle_arrays(pickle.dumps({"data": array, "labels": [1, 2], "name": "x"}, protocol=protocol))
    assert found["labels"] == [1, 2] and found["name"] == "x" and np.array_equal(found["data"], array)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"junk", pickle.dumps([1])[:-1], b"cos\nsystem\n."])
def test_a_damaged_pickle_is_told_in_words(content: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"is damaged|contains code|pickle|opcode|unpickling"):
        unpickle_arrays(content)


def test_objects_within_an_array_run_no_code() -> None:
    with pytest.raises(pickle.UnpicklingError, match="which is never run"):
        unpickle_arrays(pickle.dumps(np.array([Code()], dtype=object)))


def test_every_image_is_opened_as_one_of_named_formats() -> None:
    """Pillow hands EPS to Ghostscript, a further program, whatever the file is called."""
    unnamed = [
        f"{file}:{call.lineno}"
        for folder in ("data", "models", "runner", "scripts", "tasks")
        for file in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Image.open"
        and "formats" not in {keyword.arg for keyword in call.keywords}
    ]  # fmt: skip
    assert not unnamed


@pytest.mark.parametrize(
    "name", ["test/cat/0.jpg", "test/0.jpg", "test/a/b/0.jpg", "test/../cat/0.jpg", "test/dog//.jpg"]
)
def test_what_a_zip_may_hold(name: str, tmp_path: Path) -> None:
    for content in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", b"", b"\xff\xd8\xff"):
        with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
            archive.writestr(f"test/{name}", content)
        assert refused(lambda: cifar10.Cifar10(tmp_path, "test", None, 0))


def test_a_zip_with_a_password(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("test/cat/0.jpg", b"x")
    data = bytearray((tmp_path / "test.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    (tmp_path / "test.zip").write_bytes(data)
    assert "encrypted" in refused(lambda: cifar10.Cifar10(tmp_path, "test", None, 0))


def test_tables_of_matlab(tmp_path: Path) -> None:
    (tmp_path / "jpg").mkdir()
    for name in ("imagelabels.mat", "setid.mat"):
        pickled(tmp_path / name, "pickle")
    assert refused(lambda: published_datasets.flowers(str(tmp_path), "train", 0))


def test_a_data_set_with_a_script(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.py").write_text(MODULE)
    assert refused(
        lambda: hugging_face.load_hub_dataset(str(tmp_path / "own"), None, None, "train", "image", "label", None, 0)
    )


# --- results -------------------------------------------------------------------------------------------------


def run_folder(place: Path, config: str) -> Path:
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(config)
    (place / "results.jsonl").write_text('{"name": "x"}\n')
    return place


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir"])
def test_the_configuration_of_a_run_folder(tag: str, tmp_path: Path) -> None:
    folder = run_folder(
        tmp_path / "run", f"task: {{_target_: classifier_lens.tasks.uvce.Uvce}}\nseed: {tag} [{CANARY}]\n"
    )
    assert refused(lambda: read_run(folder))


@pytest.mark.parametrize(
    "target",
    ["os.mkdir", "builtins.eval", "classifier_lens.data.cifar10.pickle.loads",
     "classifier_lens.data.image_folder.Path.mkdir",
     "classifier_lens.models.classifier.loaders.user_network.callable_classifier",
     "hydra.utils.instantiate", "classifier_lens.data.planted", None, 3],
)  # fmt: skip
def test_the_data_that_a_run_folder_names(target: Any, tmp_path: Path) -> None:
    node = {"_target_": target, "_args_": [CANARY]}
    for config in (node, {"_target_": "classifier_lens.data.image_folder.ImageFolder", "path": node, "seed": 0}):
        said = refused(lambda config=config: load_recorded_dataset(config, "run/config.yaml"))  # type: ignore[misc]
        assert "is not a loader of conf/data" in said


def test_entries_of_a_cache_and_states_of_batches_are_set_aside(tmp_path: Path) -> None:
    cache = TensorCache(str(tmp_path / "cache"))
    cache.save(["k"], x=torch.ones(1, 2))
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    for kind in KINDS:
        assert cache.load([entry.stem]) is None if pickled(entry, kind) else None


def test_a_module_is_no_weights(tmp_path: Path) -> None:
    """A whole pickled network of a known package, which `torch.load` of old would have rebuilt."""
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    assert refused(
        lambda: load_checkpoint(nn.Linear(2, 2), tmp_path / "whole.pt", (), (), "classifier.checkpoint=whole.pt")
    )
