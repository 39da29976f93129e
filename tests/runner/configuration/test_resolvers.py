"""What units are ranked on follows the data set, wherever that is chosen and however a run is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from classifier_lens.data.planted import CLASSES
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.cluster import submit
from classifier_lens.runner.configuration.compose import compose_config, expand_sweep
from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.results.run_folder import run_key
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.units.activation_ranking import check_training_images
from tests.cli import Cli


class Labelled:
    """As much of a classifier or of a data set as its labels."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels


@pytest.mark.parametrize(
    ("words", "target", "values"),
    [
        ([], "planted.dataset.PlantedDataset", {"split": "train", "count": 20000}),
        (["data=folder", "data.path=a"], "image_folder.ImageFolder", {"path": "a"}),
        (["data=folder", "data.path=a", "training.path=b"], "image_folder.ImageFolder", {"path": "b"}),
        (
            ["data=hf", "data.name=a", "data.count=3", "training.count=5"],
            "hugging_face.load_hub_dataset",
            {"name": "a", "count": 5},
        ),
        (
            ["data=hf", "data.name=a", "data.count=3"],
            "hugging_face.load_hub_dataset",
            {"name": "a", "count": 3, "split": "test"},
        ),
        (["data=cub", "data.path=a"], "published_datasets.cub", {"path": "a", "split": "train"}),
        (["data=cifar10", "data.path=a", "data.count=3"], "cifar10.Cifar10", {"path": "a", "split": "train"}),
        (["classifier=vit_b", "data.path=a"], "imagenet.ImageNet", {"path": "a"}),
        (["data=imagenet_train", "data.path=a"], "imagenet.ImageNet", {"path": "a"}),
        (["classifier=vit_b", "data=image", "data.path=a", "data.label=b"], "imagenet.ImageNet", {"path": None}),
        (["data=folder", "data.path=a", "data@training=imagenet_train"], "imagenet.ImageNet", {"path": None}),
        (["experiment=planted/neuron_cf", "data=folder", "data.path=a"], "image_folder.ImageFolder", {"path": "a"}),
        (["experiment=dig_in/fig09", "data=folder", "data.path=a"], "image_folder.ImageFolder", {"path": "a"}),
        (["experiment=dig_in/fig10", "data.path=x.jpg"], "imagenet.ImageNet", {"path": None}),
    ],
    ids=str,
)  # fmt: skip
def test_the_runs_own_images_are_the_default(words: list[str], target: str, values: dict[str, Any]) -> None:
    training = compose_config(words)["training"]
    assert training["_target_"] == f"classifier_lens.data.{target}"
    assert {key: training[key] for key in values} == values


def test_a_data_set_that_an_experiment_of_the_users_chooses_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: folder\n  - override /task: neuron_vis\n"
        "data: {path: mine}\nhydra: {sweeper: {params: {data.path: 'a,b'}}}\n"
    )
    words = [f"outputs={tmp_path}", "experiment=mine"]
    seen = begun(monkeypatch, "--config-dir", str(tmp_path), *words)
    assert [config["task"]["training"]["path"] for config in seen] == ["mine"]
    seen = begun(monkeypatch, "--config-dir", str(tmp_path), "-m", *words)
    assert [config["task"]["training"]["path"] for config in seen] == ["a", "b"]


def test_a_data_set_of_the_users_without_training_images_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "_target_: classifier_lens.data.image_folder.ImageFolder\npath: images\nseed: 3\n"
    )
    (config,) = begun(monkeypatch, "--config-dir", str(tmp_path), "data=mine", "task=npca_cf", f"outputs={tmp_path}")
    assert config["task"]["training"] == config["data"]


def begun(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Any]]:
    """The configurations of the runs that `python run.py <words>` begins."""
    seen: list[dict[str, Any]] = []

    def build(config: dict[str, Any]) -> None:
        seen.append(config)
        raise UserError("seen")

    with monkeypatch.context() as patched:
        patched.setattr("classifier_lens.runner.command.build", build)
        assert Cli.code(*words, "logger=none") == 2
    return seen


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "task=neuron_vis", "data=folder", "data.path=a,b", "seed=3"],
        ["-m", "task=npca_cf", "data=cifar10,planted", "limit=2,3", "limit=4"],
        ["experiment=dig_in/fig10", "training.path=a", "classifier.checkpoint=b", "imagenet_samples=c"],
    ],
    ids=" ".join,
)
def test_a_job_has_the_same_key_however_it_is_started(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, f"outputs={tmp_path}"]
    keys = [run_key(config, []) for config in begun(monkeypatch, *words)]
    assert keys == [run_key(compose_config([*job, "logger=none"]), []) for job in expand_sweep(words)]
    assert len(set(keys)) == len(keys)
    checked: list[str] = []

    def recorded(job: list[str]) -> dict[str, Any]:
        config = compose_config(job)
        checked.append(run_key(config, []))
        return config

    monkeypatch.setattr(submit, "compose_config", recorded)
    assert submit.check_command(words) == tmp_path
    assert set(checked) <= set(keys)


def test_several_values_are_a_sweeps_alone() -> None:
    with pytest.raises(UserError, match="data=cifar10,planted: this value has to be quoted"):
        expand_sweep(["data=cifar10,planted"])


def test_images_of_another_world_are_refused() -> None:
    check_training_images(Labelled("cat", "Fiddler Crab"), Labelled(*CLASSES))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="training: its classes are fiddler crab, .*none of .*cat, dog.*training.path="):
        check_training_images(Labelled("cat", "dog"), Labelled(*CLASSES))  # type: ignore[arg-type]


def test_small_generators_say_what_they_draw() -> None:
    from classifier_lens.data import cifar10

    assert compose_config([])["generator"]["known_classes"] == list(CLASSES)
    assert compose_config(["domain=cifar10", "sampler=lcm"])["generator"]["known_classes"] == list(cifar10.CLASSES)
    assert LatentDiffusion.known_classes is None


def test_a_job_of_hydras_launcher_has_the_limits_of_submit_yaml() -> None:
    defaults = OmegaConf.load(CONFIG_FOLDER / "submit.yaml")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_FOLDER)):
        launcher = compose("config", overrides=["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert (launcher.timeout_min, launcher.signal_delay_s) == (defaults.minutes, defaults.signal)
    assert (launcher.mem_gb, launcher.cpus_per_task, launcher.name) == (defaults.mem_gb, defaults.cpus, defaults.name)
