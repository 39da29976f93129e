"""Every task with every family of classifiers, and the laws of runs for each task, on a tiny generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.results.run_folder import run_key
from tests.cli import CONSISTENCY, ROOT, Cli
from tests.test_docs import generator

FAMILIES = {"ResNet": "planted_clean", "SE-ResNet": "planted_seresnet", "ViT": "planted_vit", "CLIP": "planted_clip"}
TRAINED = ("training.count=20",)  # images that units are ranked on and components computed from
BOTH = "task.objective=both"
# Few pictures of the tiny consistency model.
SMALL = (
    "generator.unet={student}",
    "parametrization.num_initializations=2",
    "parametrization.images_per_step=1",
    "parametrization.validation_images=2",
    "parametrization.images_per_result=3",
    "task.images_per_prompt=2",
)
TASKS: dict[str, tuple[str, ...]] = {
    "uvce": ("task=uvce",),
    "seeds": ("task=uvce", "task.num_seeds=2"),
    "error": ("task=uvce", "task.mode=error", "data.count=400"),
    "classifier_guidance": ("task=uvce", "task.baseline=classifier_guidance"),
    "disagreement": ("task=disagreement", "classifier@rival=planted_shortcut", "task.mode=margin"),
    "neuron_vis": (
        "task=neuron_vis",
        "task.units=top:2",
        "task.images_per_object=1",
        "task.max_objects=2",
        "task.num_seeds=2",
        *TRAINED,
    ),
    "neuron_cf": ("task=neuron_cf", "task.units=[3]", "task.feature_attack.steps=1", *TRAINED),
    "npca_cf": ("task=npca_cf", "task.components={viaduct:[0]}", *TRAINED),
    "npca_cf drawn": ("task=npca_cf", "task.components={viaduct:[0]}", "task.start_images=generated", *TRAINED),
    "attention_maps": ("task=attention_maps", "optimizer.steps=0"),
    "input_gradients": ("task=input_gradients", "optimizer.steps=0"),
    "diffexplainer_class": ("task=diffexplainer_class", BOTH, *SMALL, *TRAINED),
    "spurious_audit": (
        "task=spurious_audit",
        "task.features_per_class=2",
        "task.objectives=[both,unit]",
        *SMALL[:-1],
        *TRAINED,
    ),
    "hard prompts": (
        "task=diffexplainer_class",
        "parametrization=hard_prompt",
        "task.classes=[viaduct]",
        "task.num_seeds=4",
        *SMALL,
        *TRAINED,
    ),
}


def answers(cli: Cli) -> list[dict[str, Any]]:
    """What the one run folder says, apart from what may differ between equal runs."""
    lines = (cli.folder / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def words(cli: Cli, task: str, classifier: str, *more: str) -> list[str]:
    # The tiny generator's pictures are 16 px, the smallest that the shipped networks can be shown.
    own = (*generator(cli, [*TASKS[task], *more]), "logger=none", "threads=1", f"outputs={cli.outputs}")
    inverted = not (CONSISTENCY | {"task=input_gradients"}) & {*TASKS[task], *more}
    inverting = ("generator.null_text.inner_steps=2",) if inverted else ()
    said = [f"classifier={classifier}", *own, *inverting, *TASKS[task], *more]
    return [word.replace("{student}", str(cli.student)) for word in said]


NOTHING_TO_SUCCEED = {"attention_maps", "input_gradients", "spurious_audit"}
# Tasks that read more of a classifier than its probabilities: layers, features, maps.
INSIDE = {"neuron_vis", "neuron_cf", "npca_cf", "spurious_audit", "diffexplainer_class"}
# Tasks that are prompts of a consistency model anyway.
PROMPTS = {task for task in TASKS if SMALL[0] in TASKS[task]}


class Runs:
    """Finished runs that several tests read, each in outputs of its own: with the first use it is run."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli

    def __call__(self, key: str, task: str, classifier: str, *more: str) -> Cli:
        cli = replace(self.cli, outputs=self.cli.outputs / key)
        if not cli.outputs.is_dir():
            assert cli.code(*words(cli, task, classifier, *more)) == 0
        return cli


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs in a folder of the module."""
    return Runs(Cli.at(tmp_path_factory.mktemp("runs"), tiny_folder, tiny_student))


@pytest.fixture
def finished(runs: Runs) -> Callable[[str], Cli]:
    """A run of a task with two batches of one problem, of uvce with two batches of two."""

    def run(task: str) -> Cli:
        return runs(task, task, guide_of(task), f"limit={2 * batch_of(task)}", f"batch={batch_of(task)}")

    return run


def guide_of(task: str) -> str:
    """The classifier of a task's finished run: for errors it needs one that makes some."""
    return "planted_weak" if task == "error" else "planted_seresnet"


def batch_of(task: str) -> int:
    return 2 if task == "uvce" else 1


def check_results(cli: Cli, task: str, count: int) -> list[dict[str, Any]]:
    """The results of a run, once all its files have been looked at."""
    results = answers(cli)
    assert len(results) == count
    for record in results:  # where nothing can succeed there is no success; what one is has its numbers
        assert ("success" in record) == ("criterion" in record) == (task not in NOTHING_TO_SUCCEED)
        for name, path in record["images"].items():
            size = (16, 16) if name != "class_region" else (52, 18)  # three images and their borders
            with Image.open(cli.folder / path) as image:
                assert image.size == size, name
    assert json.loads((cli.folder / "summary.json").read_text())
    assert (cli.folder / "index.html").is_file()
    return results


FAMILY_IN_TURN = {task: [*FAMILIES][i % len(FAMILIES)] for i, task in enumerate(TASKS)}


@pytest.mark.parametrize(
    ("task", "family"),
    [
        pytest.param(task, family, marks=() if task in INSIDE and family in ("ViT", "CLIP") else pytest.mark.slow)
        for task in TASKS
        for family in FAMILIES
    ],
)
def test_every_task_runs_with_every_family(task: str, family: str, capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    classifier = "planted_weak" if (task, family) == ("error", "ResNet") else FAMILIES[family]
    outcome = cli.plain(capfd, *words(cli, task, classifier, "limit=1"))
    assert outcome.code == 0, outcome
    check_results(cli, task, 1)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in PROMPTS])
def test_every_task_runs_with_a_consistency_model(task: str, capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    """And with one family of classifiers after the other."""
    classifier = "planted_weak" if task == "error" else FAMILIES[FAMILY_IN_TURN[task]]
    student = () if task == "input_gradients" else ("generator.unet={student}",)
    outcome = cli.plain(capfd, *words(cli, task, classifier, "limit=2", "batch=2", "sampler=lcm", *student))
    assert outcome.code == 0, outcome
    generator = "planted_lcm" if student else "none"
    assert cli.folder.parent.name == f"{generator}-{classifier}"
    check_results(cli, task, 2)


def test_a_portrait_asks_a_table_of_pictures_for_labels_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], cli: Cli
) -> None:  # fmt: skip
    """As a classifier of faces is explained: its own folder, and pictures that nobody captioned."""
    for name in "ab":
        Image.effect_noise((64, 64), 60).save(tmp_path / f"{name}.png")
    for split in ("train", "val"):
        (tmp_path / f"fairface_label_{split}.csv").write_text("file,age\na.png,viaduct\nb.png,rock crab\n")
    pictures = ("data=fairface", f"data.path={tmp_path}", "data@training=fairface_train", f"training.path={tmp_path}")
    told = (*pictures, "classifier.path=planted_clean", "task.classes=[viaduct]", "task.num_seeds=1")
    asked = [word for word in words(cli, "diffexplainer_class", "trained", *told) if word not in (*TRAINED, BOTH)]
    outcome = cli.plain(capfd, *asked)
    assert outcome.code == 0, outcome
    (answer,) = answers(cli)
    assert answer["target"] == "viaduct" and set(answer["baseline_prompts"]) == {"class_name", "caption"}
    chosen = answer["history"][answer["best_step"]]
    assert chosen["total"] == min(step["total"] for step in answer["history"]), "on the pictures that choose"
    assert answer["loss"]["total"] == pytest.approx(answer["loss"]["class_log_prob"]) != chosen["total"], "on others"


BASELINES = sorted(path.stem for path in (ROOT / "conf" / "baseline").glob("*.yaml"))
PAPERS = ("yosinski", "mahendran_vedaldi", "feature_attack", "generator_prior")


def with_baseline(task: str, baseline: str) -> tuple[str, ...]:
    """The words of a baseline in three steps, if there is a descent; for a prompt with two images, if it may choose."""
    steps = (f"baseline.{baseline}.steps=3",) if baseline in PAPERS else ()
    chooses = task == "diffexplainer_class" and baseline not in ("start_only", "feature_attack")
    most = (f"baseline.{baseline}.max_images=2",) if chooses else ()
    return (f"task.baseline={baseline}", *steps, *most)


@pytest.fixture
def answered(runs: Runs) -> Callable[..., Cli]:
    """A finished run of one problem with a baseline."""

    def run(task: str, baseline: str, *more: str) -> Cli:
        settings = ("batch=1", "limit=1", *with_baseline(task, baseline), *more)
        return runs(f"{task} {baseline}", task, "planted_seresnet", *settings)

    return run


@pytest.mark.parametrize(
    "baseline", [baseline for baseline in BASELINES if baseline not in ("classifier_guidance", "none")]
)
def test_every_baseline_answers_for_a_portrait(baseline: str, answered: Callable[..., Cli]) -> None:
    """With as many pictures as its settings say, and the score says how many."""
    found = answers(answered("diffexplainer_class", baseline))
    count = {"start_only": 3, "feature_attack": 1}.get(baseline, 2)
    for record in found:
        assert record["images"].keys() - {"start", "difference"} == {"result", "sample_01", "sample_02"} - {
            f"sample_{i:02}" for i in range(count, 3)
        }
        assert 0 <= record["activation_score"] <= 1 and record["activation_score"] * count % 1 == pytest.approx(0)
        assert record["prompt"] if baseline == "start_only" else record["prompt"] == ""
        assert record["max_steps"] == (3 if baseline in PAPERS else 0 if baseline == "start_only" else 1)
        assert baseline == "start_only" or record["loss"]["total"] <= record["history"][0]["total"]


@pytest.mark.parametrize(
    ("task", "baseline"),
    [*product(["neuron_vis"], [*PAPERS, "pixels", "classifier_guidance"]), ("neuron_cf", "generator_prior")],
)
def test_baselines_answer_for_units(task: str, baseline: str, answered: Callable[..., Cli]) -> None:
    (record,) = answers(answered(task, baseline))
    assert not any(name.startswith("sample_") for name in record["images"])
    assert record["loss"]["total"] <= record["history"][0]["total"]


def test_an_attack_as_baseline_is_the_one_that_stands_beside(answered: Callable[..., Cli]) -> None:
    """Fig. 10: from the original picture, of which the one beside knows the file."""
    (record,) = answers(answered("neuron_cf", "feature_attack", "task.feature_attack.steps=3"))
    risen, beside = (record[name] - record["activation_before"] for name in ("activation_after", "activation_attack"))
    assert record["direction"] == "max" and risen > 0 and risen == pytest.approx(beside, rel=0.2)


@pytest.mark.parametrize("baseline", ["mahendran_vedaldi", "generator_prior"])
def test_baselines_in_parts_leave_what_one_run_leaves(
    baseline: str, capfd: pytest.CaptureFixture[str], cli: Cli, answered: Callable[..., Cli]
) -> None:
    parts = answered("diffexplainer_class", baseline)
    settings = ("batch=1", "limit=2", *with_baseline("diffexplainer_class", baseline))
    for place in (parts, cli):
        assert place.plain(capfd, *words(place, "diffexplainer_class", "planted_seresnet", *settings)).code == 0
    assert cli.folder.name == parts.folder.name and answers(cli) == answers(parts) and len(answers(cli)) == 2


def test_a_baselines_settings_are_part_of_its_run_alone() -> None:
    def key(*overrides: str) -> str:
        return run_key(compose_config([*overrides]), [])

    changed, chosen = "baseline.yosinski.lr=0.25", "task.baseline=yosinski"
    assert key() == key(changed) != key(chosen) != key(chosen, changed) != key()


@pytest.mark.parametrize("task", ["diffexplainer_class", "hard prompts"])
def test_a_portrait_is_many_pictures_and_what_makes_them_again(task: str, finished: Callable[[str], Cli]) -> None:
    cli = finished(task)
    for record in answers(cli):
        kept = load_file(cli.folder / record["controls_file"])
        assert list(kept) == (["tokens"] if task == "diffexplainer_class" else ["logits"])
        shown = {name for name in record["images"] if name == "result" or name.startswith("sample_")}
        assert shown == {"result", "sample_01", "sample_02"}
        assert set(record["baseline_prompts"]) == {"class_name", "caption"} and 0 <= record["activation_score"] <= 1


def test_an_answer_is_shown_again_from_what_was_kept(
    capfd: pytest.CaptureFixture[str], cli: Cli, finished: Callable[[str], Cli]
) -> None:
    """Its tokens alone, without a descent, give its pictures to the last bit."""
    task, first = "diffexplainer_class", finished("diffexplainer_class")
    record = answers(first)[0]
    kept = f"parametrization.tokens.load_path={first.folder / record['controls_file']}"
    shown = words(cli, task, guide_of(task), "limit=1", "batch=1", "optimizer.steps=0", kept)
    assert cli.plain(capfd, *shown, "parametrization.num_initializations=1").code == 0
    for path in ("result", "sample_01", "sample_02"):
        files = [(c.folder / record["images"][path]).read_bytes() for c in (first, cli)]
        assert files[0] == files[1], path


def test_attributes_are_asked_of_clip_alone(capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    asked = (*words(cli, "uvce", "planted_clip"), "task.mode=attribute", "limit=1")
    outcome = cli.plain(capfd, *asked)
    assert outcome.code == 0, outcome
    (record,) = answers(cli)
    assert record["target"] == "on sand" and record["prompt"].replace("on sand", "in snow") == record["caption"]
    assert sum(record["confidence_after"].values()) == pytest.approx(1)


def test_both_directions_start_from_the_same_drawn_picture(capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    """Whatever words they are given: what stands beside them as the original is the picture of the class alone."""
    asked = words(cli, "npca_cf drawn", "planted_seresnet", "limit=2", "optimizer.steps=0")
    assert cli.plain(capfd, *asked, "task.context_search.context_phrases=[[on sand, in snow]]").code == 0
    up, down = answers(cli)
    assert {up["direction"], down["direction"]} == {"max", "min"} and up["prompt"] != down["prompt"]
    assert up["contribution_before"] == down["contribution_before"]
    shown = [(cli.folder / r["images"]["original"]).read_bytes() for r in (up, down)]
    assert shown[0] == shown[1] != (cli.folder / up["images"]["start"]).read_bytes()


# As "uvce" and "npca_cf", as far as it concerns what a run keeps.
VARIANTS = ("seeds", "classifier_guidance", "npca_cf drawn")


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in VARIANTS else ()) for task in TASKS]
)
def test_a_run_in_two_commands_leaves_what_one_leaves(
    task: str, capfd: pytest.CaptureFixture[str], cli: Cli, finished: Callable[[str], Cli]
) -> None:
    whole, batch = finished(task), batch_of(task)
    for limit in (batch, 2 * batch):
        assert cli.plain(capfd, *words(cli, task, guide_of(task), f"batch={batch}", f"limit={limit}")).code == 0
    assert whole.folder.name == cli.folder.name
    assert check_results(whole, task, 2 * batch) == check_results(cli, task, 2 * batch)


BAD = {
    "a unit out of range": (
        ("neuron_cf", "task.units=[99]"),
        "task.units=features:99: allowed are features:0 … features:63",
    ),
    "no such module": (("neuron_cf", "task.units=[layer5:0]"), "no module layer5; nearest are layer"),
    "a rival with other labels": (
        (
            "disagreement",
            "classifier@rival=callable",
            "rival.target={network}:network",
            "rival.size=16",
            "rival.labels=[a,b,c,d,e,f,g,h,i,j]",
        ),
        "both need the same classes in the same order",
    ),
    "a component that is not computed": (("npca_cf", "task.components={viaduct:[64]}"), "allowed are 0 … 63"),
    "a mask of another size": (("uvce", "task.mask={mask}"), "task.mask={mask}: 5 x 4 pixels; expected a gray PNG"),
    "an attribute without CLIP": (("uvce", "task.mode=attribute"), "needs a zero-shot classifier"),
    "a prompt without a free token": (("diffexplainer_class", "task.prompt=a picture"), "needs free tokens, as *4"),
    "free tokens under guidance": (
        ("diffexplainer_class", "task.baseline=classifier_guidance"),
        "hard_prompt have free tokens",
    ),
    "a scale that nobody is told": (
        ("uvce", "sampler=lcm", "generator.unet=null"),
        "generator.guidance_scale=3.0: this UNet has no guidance scale",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, capfd: pytest.CaptureFixture[str], cli: Cli, tmp_path: Path
) -> None:
    (task, *overrides), said = BAD[case]
    mask = tmp_path / "mask.png"
    Image.new("L", (5, 4), 255).save(mask)
    places = {"{mask}": str(mask), "{network}": str(cli.network)}
    for name, place in places.items():
        overrides = [override.replace(name, place) for override in overrides]
    outcome = cli.plain(capfd, *words(cli, task, "planted_seresnet", *overrides))
    assert outcome.code == 2, outcome
    assert len(outcome.lines) == 1 and said.replace("{mask}", str(mask)) in outcome.lines[0], outcome.err
    assert not list(cli.outputs.glob("*/*/*/status.json"))
