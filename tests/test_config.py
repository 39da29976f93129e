"""Every option and every experiment composes, and what it names can be called with what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from classifier_lens.data.no_dataset import NoDataset
from classifier_lens.models.captioner.clip_ranking import ClipRankingCaptioner
from classifier_lens.models.classifier.loaders.class_names import imagenet_labels
from classifier_lens.models.clip import ZeroShotClassifier
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.runner.configuration.compose import build, compose_config, expand_sweep
from classifier_lens.runner.configuration.runner_settings import Settings
from classifier_lens.runner.configuration.schema import check_settings
from classifier_lens.runner.results.run_folder import run_key
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.prompts.target_rules import TARGET_RULES

CONF = Path(__file__).resolve().parent.parent / "conf"
# What an option cannot do without: values that only the user knows.
NEEDED = {
    "overlay=function": ["overlay.function.phrase=a logo", "overlay.function.transform.target=mine:add_logo"],
    "classifier=callable": ["classifier.target=mine:network", "classifier.labels=names.txt"],
    "data=image": ["data.path=x.jpg", "data.label=goldfish"],
    "data=folder": ["data.path=pictures"],
    "data=imagenet": ["data.path=imagenet/val"],
    "data=hf": ["data.name=ethz/food101", "data.count=500"],
    "classifier=trained": ["classifier.path=outputs/train/mine"],
    "classifier=robust": ["classifier.name=resnet50.tv_in1k", "classifier.checkpoint=robust.pt"],
    "classifier=singh2023_vit_s": ["classifier.checkpoint=robust.pt"],
    "classifier=singh2023_vit_b": ["classifier.checkpoint=robust.pt"],
    "classifier=robust_vit_s": ["classifier.checkpoint=robust.safetensors"],
    "classifier=robust_resnet50": ["classifier.checkpoint=robust.pt"],
    "classifier=transformers": ["classifier.path=google/vit-base-patch16-224"],
    "classifier=cal_resnet101": ["classifier.target=cal.py:load", "classifier.labels=cars.txt"],
}
MASK_KEYS = ("erode_kernel", "dilate_kernel", "blur_sigma", "blur_kernel")
# Defaults of the training scripts, which read them on their own.
ELSEWHERE = {"train"}
# The task that has a group, for groups that the default task has not.
TASK_OF_GROUP = {"overlay": "task=concept_effect"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ELSEWHERE)


EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in (CONF / "experiment").rglob("*.yaml")
)
COMMON = (
    "dig_in/published",
    "diffexplainer/published",
    "planted/object_preserved",
)  # that others inherit and that ask nothing themselves
EVERY = [f"{group}={option}" for group in groups() for option in options(group) if group != "hydra"]


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@cache
def plain(*overrides: str) -> dict[str, Any]:
    """The resolved configuration without Hydra's own part."""
    return resolved(own(composed(*overrides)))


def own(cfg: DictConfig) -> DictConfig:
    """A configuration without Hydra's own part."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def resolved(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def choices(*overrides: str) -> dict[str, str]:
    return dict(composed(*overrides).hydra.runtime.choices)


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All parts of a configuration that name what they build."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, inner in value.items():
            yield from nodes(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, inner in enumerate(value):
            yield from nodes(inner, f"{path}[{i}]")


def check(config: dict[str, Any]) -> None:
    """Raise UserError for a key or a value that a run would not take."""
    check_settings(Settings, {key: value for key, value in config.items() if key != "panel"})


def test_a_model_that_several_parts_look_through_is_loaded_once() -> None:
    parts = build(compose_config(["classifier=planted_clip", "captioner=clip_rank"]))
    judge, captioner = parts.classifier, parts.task.captioner
    assert isinstance(judge, ZeroShotClassifier) and isinstance(captioner, ClipRankingCaptioner)
    assert captioner.clip is judge.clip


def test_a_dataclass_that_stands_twice_stays_one() -> None:
    both, sizes = ("latents", "pixels"), {"erode_kernel": 0, "dilate_kernel": 3, "blur_sigma": 1.0, "blur_kernel": 5}
    same = [f"generator.mask_postprocess.{kind}.{size}={value}" for kind in both for size, value in sizes.items()]
    generator = build(compose_config(same)).generator
    assert isinstance(generator, LatentDiffusion)
    assert isinstance(generator.mask_postprocess["latents"], MaskPostprocess)
    assert generator.mask_postprocess["latents"] is generator.mask_postprocess["pixels"]


@pytest.mark.parametrize("choice", EVERY)
def test_every_option_composes_and_binds(choice: str) -> None:
    group, option = choice.split("=")
    needed = NEEDED.get(choice, []) + (NEEDED["data=imagenet"] if choice == "domain=imagenet" else [])
    if group in TASK_OF_GROUP:
        needed = [*needed, TASK_OF_GROUP[group]]
    config = plain(choice, *needed)
    assert choices(choice, *needed)[group] == option
    check(config)


@pytest.mark.parametrize("classifier", options("classifier"))
def test_every_classifier_finds_its_generator_and_data(classifier: str) -> None:
    choice = f"classifier={classifier}"
    chosen = choices(choice, *NEEDED.get(choice, []))
    domain = chosen["domain"]
    assert chosen["generator"] == f"{domain}_{chosen['sampler']}" and chosen["data"] == domain
    rule = "nearest" if domain == "planted" else "confusion"
    assert plain(choice, *NEEDED.get(choice, []))["task"]["target"] == rule


@cache
def configured(experiment: str) -> list[dict[str, Any]]:
    """The configurations of the runs that an experiment starts, one or those of its own sweep."""
    return [filled(composed(*job)) for job in expand_sweep([f"experiment={experiment}"])]


def filled(cfg: DictConfig) -> dict[str, Any]:
    """A resolved configuration without Hydra's own part, in which everything that was missing is `x`."""
    given = own(cfg)
    for key in OmegaConf.missing_keys(given):
        OmegaConf.update(given, key, "x")
    return resolved(given)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_run_of_an_experiment_composes_and_binds(experiment: str) -> None:
    configs = configured(experiment)
    for config in configs:
        check(config)
    assert len({str(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_classes_of_an_experiment_are_known(experiment: str) -> None:
    for config in configured(experiment):
        task, data = config["task"], config["data"]
        named = {task.get("label"), task.get("target"), data.get("label")} - {None, *TARGET_RULES}
        lists = [task.get(key) or () for key in ("classes", "components")]
        named |= {name for names in lists if not isinstance(names, str) for name in names}  # not `stratified:15`
        if config["classifier"].get("labels") == "imagenet":
            assert named <= set(imagenet_labels())


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e not in COMMON])
def test_an_experiment_says_what_to_expect(experiment: str) -> None:
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text().split("defaults:")[0]
    assert head.startswith("# @package _global_\n") and "\n# Expected" in head


def test_the_page_of_experiments_names_those_of_the_papers() -> None:
    page = (CONF.parent / "docs" / "guides" / "reproduce_the_papers.md").read_text()
    groups = ("dig_in", "diagnose", "diffexplainer")
    papers = {experiment for experiment in EXPERIMENTS if experiment.split("/")[0] in groups}
    assert set(re.findall(rf"experiment=((?:{'|'.join(groups)})/\w+)", page)) == papers


def test_disagreements_have_the_published_settings() -> None:
    """DiG-IN, B.1."""
    for config in configured("dig_in/fig05"):
        assert (config["generator"]["path"], config["generator"]["steps"]) == ("CompVis/stable-diffusion-v1-4", 25)
        clip = config["optimizer"]["gradient_clipping"]
        assert (clip["_target_"], clip["max_norm"]) == (
            "classifier_lens.runner.optimization.loop.clip_largest_element",
            0.05,
        )
        assert config["optimizer"]["steps"] == 15
        assert config["optimizer"]["min_lr"] == {"latent": 0.0025, "text": 0.0025, "null": 0.0025}
        assert (config["augment"]["crops"], config["augment"]["noise_std"]) == (16, 0.05)
        assert config["generator"]["guidance_scale"] == 3.0 and config["rival"]["name"].startswith("convnext_base")


def test_where_code_and_paper_differ_either_may_be_asked_for() -> None:
    code, paper = plain("experiment=dig_in/fig03"), plain("experiment=dig_in/fig03", "published=paper")
    found = [
        (c["generator"]["last_x0_predictions"], c["optimizer"]["keep_norm"], c["optimizer"]["min_lr"]["latent"])
        for c in (code, paper)
    ]
    assert found == [(3, True, 0.0025), (1, False, 0.0)]


def test_a_third_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="variants.book"):
        compose_config(["experiment=dig_in/fig03", "published=book"])


@pytest.mark.parametrize(
    "classifier", ["vit_b", "callable", "trained", "transformers", "planted_clean", "cifar10_resnet20"]
)
def test_the_published_settings_hold_for_every_classifier(classifier: str) -> None:
    """DiG-IN, D.1.5, whatever a classifier's domain is or whether it has one."""
    choice = f"classifier={classifier}"
    config = filled(composed("experiment=dig_in/published", choice))
    assert (config["optimizer"]["steps"], config["augment"]["noise_std"], config["augment"]["crops"]) == (20, 0.005, 16)
    assert config["optimizer"]["lr"]["latent"] == 0.001 and config["generator"]["lr_scale"]["latent"] == 1.0
    assert config["generator"]["path"] == "CompVis/stable-diffusion-v1-4" and config["task"]["target"] == "confusion"
    assert config["segmenter"]["path"] == "syscv-community/sam-hq-vit-huge"
    assert not config["generator"]["straight_through_clamp"] and config["generator"]["null_text"]["update_before_stop"]
    assert (
        config["augment"]["new_crops_per_prediction"]
        and config["augment"]["min_crop_fraction"] is None
        and config["select"]["center_crop"] == 0.8
    )
    assert choices("experiment=dig_in/published", choice)["data"] == "imagenet"


def test_a_prompts_pictures_are_shown_whole_in_the_published_setting() -> None:
    for classifier in ("robust_resnet50", "callable"):
        config = filled(composed("experiment=diffexplainer/published", f"classifier={classifier}"))
        assert (config["augment"]["crops"], config["augment"]["noise_std"], config["augment"]["power"]) == (1, 0.0, 0.0)
        assert config["generator"]["path"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_vit_b_selects_stable_diffusion_and_imagenet() -> None:
    chosen = choices("task=uvce", "classifier=vit_b")
    assert {key: chosen[key] for key in ("domain", "generator", "data", "task")} == {
        "domain": "imagenet", "generator": "imagenet_ddim", "data": "imagenet", "task": "uvce",
    }  # fmt: skip
    config = plain("task=uvce", "classifier=vit_b")
    assert config["generator"]["path"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (
        config["generator"]["resolution"] == 512
        and config["data"]["_target_"] == "classifier_lens.data.imagenet.ImageNet"
    )


@pytest.mark.parametrize("classifier", ["cifar10_resnet20", "cifar10_resnet32", "cifar10_resnet56"])
def test_cifar10_classifiers_select_photographs(classifier: str) -> None:
    config = plain(f"classifier={classifier}")
    assert (
        config["data"]["_target_"] == "classifier_lens.data.cifar10.Cifar10" and config["generator"]["resolution"] == 32
    )


def test_a_choice_on_the_command_line_wins() -> None:
    chosen = choices("classifier=vit_b", "generator=planted_ddim", "data=image", *NEEDED["data=image"])
    assert (chosen["generator"], chosen["data"], chosen["domain"]) == ("planted_ddim", "image", "imagenet")
    assert choices("data=planted", "classifier=cifar10_resnet20")["data"] == "planted"
    assert plain("classifier=vit_b", "generator.guidance_scale=2.0")["generator"]["guidance_scale"] == 2.0
    assert plain("domain=cifar10", "task.target=cat")["task"]["target"] == "cat"


def test_choices_win_in_a_multirun_too() -> None:
    """What `python run.py -m classifier=planted_clean,vit_b` composes for each of its jobs."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        jobs = {
            overrides: loader.load_sweep_config(master, list(overrides)).hydra.runtime.choices
            for overrides in [
                ("classifier=planted_clean",),
                ("classifier=vit_b",),
                ("classifier=vit_b", "generator=planted_ddim"),
                ("classifier=cifar10_resnet20", "data=planted"),
            ]
        }
    found = {overrides: (chosen["generator"], chosen["data"]) for overrides, chosen in jobs.items()}
    assert found == {
        ("classifier=planted_clean",): ("planted_ddim", "planted"),
        ("classifier=vit_b",): ("imagenet_ddim", "imagenet"),
        ("classifier=vit_b", "generator=planted_ddim"): ("planted_ddim", "imagenet"),
        ("classifier=cifar10_resnet20", "data=planted"): ("cifar10_ddim", "planted"),
    }


@pytest.mark.parametrize("domain", options("domain"))
def test_a_domain_has_a_segmenter_that_goes_by_words(domain: str) -> None:
    """It can be chosen like any other, and no part refers to it unless a task does."""
    needed = NEEDED["data=imagenet"] if domain == "imagenet" else []
    config = plain(f"domain={domain}", *needed)
    assert config["text_segmenter"]["_target_"] in (
        "classifier_lens.models.segmenter.clipseg.load",
        "classifier_lens.models.segmenter.grounded_sam.load",
    )
    other = plain(f"domain={domain}", "segmenter@text_segmenter=grounded_sam_hq", *needed)
    assert other["text_segmenter"] == plain("segmenter=grounded_sam_hq")["segmenter"] != config["text_segmenter"]
    assert run_key(other, []) == run_key(config, [])


def test_the_aliases_of_a_domain_are_the_generators_that_they_name() -> None:
    alias, named = plain("generator=imagenet_ddim"), plain("generator=sd15")
    assert alias["generator"] == named["generator"]


def test_defaults_of_the_published_counterfactuals() -> None:
    """DiG-IN, D.1.5; the small worlds, at other scales, have values of their own."""
    config = plain("classifier=vit_b")
    assert config["optimizer"]["steps"] == 20 and config["generator"]["steps"] == 20
    assert config["optimizer"]["lr"]["latent"] == 0.001 and config["optimizer"]["lr"]["text"] == 0.01
    assert (config["task"]["weights"]["latent_distance"], config["task"]["weights"]["pixel_distance"]) == (25, 250)
    assert config["generator"]["guidance_scale"] == 3.0
    assert (config["augment"]["crops"], config["augment"]["noise_std"]) == (16, 0.005)
    assert config["generator"]["prompt_to_prompt"] == {
        "cross_replace_steps": [0.3, 0.4, 0.5],
        "background_blend_steps": [0.0, 0.3],
    }
    assert config["generator"]["background_blend_start"] == 0
    assert {config["generator"]["lr_scale"][name] for name in ("latent", "text", "null")} == {1.0}
    soft = config["generator"]["mask_postprocess"]
    assert soft["latents"] == soft["pixels"] and [soft["pixels"][key] for key in MASK_KEYS] == [3, 20, 30.0, 45]


def test_the_small_worlds_keep_their_own_sizes() -> None:
    for domain, latents in (("planted", [0, 5, 1.5, 5]), ("cifar10", [0, 3, 1.0, 5])):
        generator = plain(f"domain={domain}")["generator"]
        assert [generator["mask_postprocess"]["latents"][key] for key in MASK_KEYS] == latents
        assert (
            generator["prompt_to_prompt"]["background_blend_steps"] == [0.0, 1.0]
            and generator["background_blend_start"] == 1
        )


@pytest.mark.parametrize("task", ["disagreement", "neuron_vis", "diffexplainer_class", "spurious_audit"])
def test_tasks_whose_images_are_drawn_ask_for_no_data_set(task: str) -> None:
    """Whatever the domain; who names one has it, and its training images."""
    for domain in ("planted", "cifar10", "imagenet"):
        assert plain(f"task={task}", f"domain={domain}")["data"] == {
            "_target_": "classifier_lens.data.no_dataset.NoDataset"
        }
    config = plain(f"task={task}", "data=folder", "data.path=images")
    assert (config["data"]["path"], config["training"]["path"]) == ("images", "images")
    assert len(NoDataset()) == 0 and NoDataset().indices("viaduct") == []
