"""What a run's results follow from: the same inputs are the same run, others are another one or refused by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from classifier_lens.data.digests import HashedFiles, hash_example
from classifier_lens.data.image_folder import ImageFile, ImageFolder
from classifier_lens.data.image_selection import select_images
from classifier_lens.data.mask_files import FileSegmenter
from classifier_lens.data.planted import PlantedDataset
from classifier_lens.data.salient_imagenet import AnnotatedFeature, FeatureAnnotations
from classifier_lens.runner.configuration.compose import CONFIG_FOLDER, compose_config
from classifier_lens.runner.results.manifest import Manifest, file_digests, probe_logits, problem_digests
from classifier_lens.runner.results.run_folder import RunFolder, run_key
from classifier_lens.runner.run import fingerprint
from classifier_lens.runner.types import CaptionEdit, Example, Problem, UserError
from classifier_lens.tasks.neuron_cf import UnitCounterfactualProblem
from classifier_lens.tasks.problems.image_problems import image_fields
from classifier_lens.tasks.units.addressing import Unit
from tests.conftest import TinyClassifier

TASKS = CONFIG_FOLDER / "task"

PUSH = UnitCounterfactualProblem(
    name="crab-1-features-3-max",
    seed=7,
    edit=CaptionEdit.unchanged("a rock crab on sand", "rock crab"),
    mask_words="rock crab",
    load=torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).clone,
    image_name="crab-1",
    preserve="foreground",
    content_digest="of crab-1.png",
    mask=torch.zeros(1, 8, 8),
    unit=Unit("features", 3),
    direction="max",
    std=0.5,
    label=2,
)


def manifest(*names: str, answers: Sequence[float | None] | None = None, **changed: Any) -> Manifest:
    """Problems of these names, of which the last differs as `changed` says."""
    problems = {name: problem_digests(PUSH) for name in names}
    problems[names[-1]] = problem_digests(replace(PUSH, **changed))
    return Manifest(problems, {"classifier": answers or [0.0, 1.0]}, [])


def refused(own: Manifest, begun: Manifest, *texts: str) -> None:
    """One line that says all this, where the run began and what to do."""
    with pytest.raises(UserError) as error:
        own.check_compatible(begun, Path("outputs/uvce/x/0123"))
    line = str(error.value)
    for text in (*texts, "outputs/uvce/x/0123", "restore", "outputs="):
        assert text in line, (text, line)
    assert "\n" not in line


# --- problems ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"content_digest": "of another"}, "image"), ({"mask": torch.ones(1, 8, 8)}, "mask"), ({"mask": None}, "mask"),
        ({"edit": CaptionEdit.unchanged("a rock crab in snow", "rock crab")}, "prompt"),
        ({"mask_words": "sand"}, "prompt"),
        ({"prompt_check": ("a rock crab", 1)}, "prompt"), ({"unit": Unit("features", 4)}, "definition"),
        ({"label": 3}, "definition"), ({"direction": "min"}, "definition"), ({"seed": 8}, "definition"),
    ],
    ids=str,
)  # fmt: skip
def test_every_part_of_a_problem_is_told_by_its_name(change: dict[str, Any], part: str) -> None:
    before, after = problem_digests(PUSH), problem_digests(replace(PUSH, **change))
    assert {name for name in before if before.get(name) != after.get(name)} == {part}
    refused(manifest("a", "b", **change), manifest("a", "b"), f"b: its {part}")


def test_numbers_that_machines_may_round_differently_are_left_out() -> None:
    assert PUSH.image is not None
    other = replace(PUSH, std=0.5 + 1e-9, load=(PUSH.image + 1e-7).clone, load_top_example=torch.zeros(3, 8, 8).clone)
    assert problem_digests(other) == problem_digests(PUSH)


def test_an_image_without_a_digest_is_told_by_its_pixels() -> None:
    assert PUSH.image is not None
    bare = replace(PUSH, content_digest=None)
    assert problem_digests(replace(bare, load=PUSH.image.clone)) == problem_digests(bare)
    assert problem_digests(replace(bare, load=PUSH.image.flip(1).clone))["image"] != problem_digests(bare)["image"]
    assert "image" not in problem_digests(replace(bare, load=None))


# --- runs ----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_more_problems_and_with_fewer() -> None:
    for own in (manifest("a", "b"), manifest("a", "b", "c"), manifest("a")):
        own.check_compatible(manifest("a", "b"), Path("x"))


def test_other_problems_are_refused() -> None:
    refused(manifest("a", "c", "b"), manifest("a", "b"), "problem 1 is c, it was b")
    refused(manifest("b"), manifest("a", "b"), "problem 0 is b, it was a")
    refused(manifest("a", "b", content_digest="x", seed=1), manifest("a", "b"), "b: its image and definition")


def test_another_network_is_told_by_its_answers() -> None:
    begun = manifest("a", answers=[-10.0, 0.0, 10.0])
    manifest("a", answers=[-10.1, 0.1, 10.1]).check_compatible(begun, Path("x"))  # another machine
    for other in ([-10.0, 1.0, 10.0], [-10.0, 0.0, 10.0, 0.0]):
        refused(manifest("a", answers=other), begun, "classifier: its logits changed")


def test_answers_are_of_one_image_that_is_always_the_same(tiny_classifier: TinyClassifier) -> None:
    assert probe_logits(tiny_classifier) == probe_logits(TinyClassifier())
    other = TinyClassifier()
    other.weight = other.weight.flip(0)
    assert probe_logits(other) == probe_logits(tiny_classifier)[::-1]
    for size in (1, 7, 16):
        other.size = size
        assert len(probe_logits(other)) == 10


def test_an_answer_that_is_not_finite_is_none_and_stays_so(tiny_classifier: TinyClassifier) -> None:
    """What is not finite there may well be so in images: these tell it, each for itself."""
    other = TinyClassifier()
    other.weight = other.weight.clone()
    other.weight[2] = torch.nan
    answers, good = probe_logits(other), probe_logits(tiny_classifier)
    assert answers[2] is None and answers[:2] + answers[3:] == good[:2] + good[3:]
    again = Manifest.from_json(manifest("a", answers=answers).to_json().encode())
    manifest("a", answers=answers).check_compatible(again, Path("x"))
    refused(manifest("a", answers=good), again, "classifier: its logits changed")
    nothing = manifest("a", answers=[None] * 10)
    nothing.check_compatible(nothing, Path("x"))


def test_a_network_that_raises_an_error_is_named_in_one_line(tiny_classifier: TinyClassifier) -> None:
    def broken(images: Any) -> Any:
        raise RuntimeError("no\nmore")

    broken.size, broken.name = 8, "classifier.target=x"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^classifier.target=x: fails on a fixed image of noise.*RuntimeError: no\)"):
        probe_logits(broken)  # type: ignore[arg-type]


def test_a_folder_keeps_the_longest_list_and_refuses_another(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check_manifest(manifest("z"))  # nothing has begun
    for own in (manifest("a", "b"), manifest("a"), manifest("a", "b", "c"), manifest("a", "b")):
        folder.write_manifest(own)
    assert folder.stored_manifest() == manifest("a", "b", "c") and folder.problem_names() == ["a", "b", "c"]
    with pytest.raises(UserError, match="b: its image"):
        folder.write_manifest(manifest("a", "b", content_digest="another"))
    assert folder.stored_manifest() == manifest("a", "b", "c")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"problems": []}'])
def test_a_damaged_manifest_is_set_aside_and_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    folder.check_manifest(manifest("a"))
    folder.write_manifest(manifest("a"))
    assert folder.stored_manifest() == manifest("a") and len(capfd.readouterr().err.splitlines()) == 1
    assert (tmp_path / "manifest.json.damaged").read_text() == text


# --- the run's key -------------------------------------------------------------------------------------------


def test_files_are_found_wherever_settings_name_them(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    a, b, c = (str(tmp_path / name) for name in "abc")
    settings = {"labels": a, "n": 3, "deep": [{"path": b}, [c, "nothing", None, "x" * 5000]], "folder": str(tmp_path)}
    assert set(file_digests(settings)) == {a, b, c}


@pytest.mark.parametrize("part", ["classifier", "task", "data", "parametrization", "safety_checker"])
def test_what_a_named_file_holds_is_part_of_the_key(tmp_path: Path, part: str) -> None:
    file = tmp_path / "names.txt"
    config = {part: {"deep": {"file": str(file)}}}
    file.write_text("crab\nviaduct\n")
    before = run_key(config, [])
    os.utime(file, (1, 1))
    assert run_key(config, []) == before
    file.write_text("viaduct\ncrab\n")
    assert run_key(config, []) != before


def test_a_folder_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    keys = {run_key({"data": {"path": f"{tmp_path}{end}"}, "task": {"target": "a/"}}, []) for end in ("", "/", "/./")}
    assert len(keys) == 1 != len(keys | {run_key({"data": {"path": str(tmp_path)}, "task": {"target": "a"}}, [])})


def test_labels_and_their_order_are_part_of_a_classifiers_identity(tiny_classifier: TinyClassifier) -> None:
    before = fingerprint(tiny_classifier)
    tiny_classifier.labels = tiny_classifier.labels[::-1]
    assert fingerprint(tiny_classifier) != before
    tiny_classifier.labels, tiny_classifier.fingerprint = tiny_classifier.labels[::-1], "another size"
    assert fingerprint(tiny_classifier) != before


@pytest.mark.parametrize("task", sorted(p.stem for p in TASKS.glob("*.yaml") if "training:" in p.read_text()))
def test_training_images_are_among_what_a_tasks_answers_depend_on(task: str) -> None:
    config = compose_config(
        [f"task={task}", "captioner=template", "training.count=10", "baseline=[none,feature_attack]"]
    )
    built = instantiate({**config["task"], "segmenter": None} if "segmenter" in config["task"] else config["task"])
    assert any(part is built.training for part in built.dependencies)


# --- images and files ----------------------------------------------------------------------------------------


def image(path: Path, color: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), color).save(path)
    return path


def folder_of(path: Path) -> Path:
    for name, color in {"crab/a": "red", "crab/b": "green", "boat/c": "blue"}.items():
        image(path / f"{name}.png", color)
    return path


def later(path: Path) -> None:
    """Another time of change, as after a copy."""
    for file in path.rglob("*.png"):
        os.utime(file, (1, 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another image": lambda path: image(path / "crab" / "a.png", "black"),
    "exchanged": lambda path: (image(path / "crab" / "a.png", "green"), image(path / "crab" / "b.png", "red")),
    "one more": lambda path: image(path / "boat" / "d.png", "black"),
    "one less": lambda path: (path / "boat" / "c.png").unlink(),
    "another name": lambda path: (path / "crab" / "a.png").rename(path / "crab" / "z.png"),
    "another class": lambda path: (path / "crab").rename(path / "ship"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folders_digest_follows_from_its_images_and_their_names(tmp_path: Path, change: str) -> None:
    before = ImageFolder(folder_of(tmp_path / "a"), 0).digest
    assert ImageFolder(folder_of(tmp_path / "elsewhere"), 0).digest == before
    later(tmp_path / "a")
    assert ImageFolder(tmp_path / "a", 0).digest == before
    CHANGES[change](tmp_path / "a")
    assert ImageFolder(tmp_path / "a", 0).digest != before
    assert select_images(ImageFolder(tmp_path / "a", 0), None, [0]).digest != before


@pytest.mark.parametrize("limit", ["MAX_HASHED_FILES", "MAX_HASHED_BYTES"])
def test_of_a_large_folder_sizes_and_times_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:  # fmt: skip
    monkeypatch.setattr(f"classifier_lens.data.digests.{limit}", 2)
    folder = folder_of(tmp_path)
    before = ImageFolder(folder, 0).digest
    assert ImageFolder(folder, 0).digest == before
    later(folder)
    assert ImageFolder(folder, 0).digest != before


def test_the_content_of_an_image_is_its_files(tmp_path: Path) -> None:
    image(tmp_path / "x.png", "red")
    one = ImageFile(tmp_path / "x.png", "crab", None)[0]
    folder = ImageFolder(folder_of(tmp_path / "a"), 0)
    named = {example.name: hash_example(example) for example in folder}  # type: ignore[attr-defined]
    assert hash_example(one) == named["crab-a"] != named["crab-b"]
    result = image_fields(ImageFile(tmp_path / "x.png", "crab", None), 0, one, 16, "all", None)
    assert result["content_digest"] == hash_example(one)
    image(tmp_path / "x.png", "black")
    assert hash_example(one) != named["crab-a"]


def test_the_content_of_an_image_without_a_file() -> None:
    planted, again = (PlantedDataset("test", 2, 0, "independent", None) for _ in range(2))
    assert hash_example(planted[0]) == hash_example(again[0]) != hash_example(planted[1])
    assert hash_example(planted[0]) != hash_example(PlantedDataset("test", 2, 1, "independent", None)[0])
    red, blue = (Example("x", torch.full((3, 4, 4), value).clone, "crab") for value in (0.2, 0.4))
    assert hash_example(red) == hash_example(replace(red, name="y")) != hash_example(blue)


def test_drawn_masks_human_annotations_and_named_files_have_digests(tmp_path: Path) -> None:
    digests: list[str] = []
    for color in (0, 255):
        Image.new("L", (8, 8), color).save(tmp_path / "a.png")
        features = {3: [AnnotatedFeature(7, 1, color > 0)]}
        parts = FileSegmenter(str(tmp_path)), HashedFiles([tmp_path / "a.png"]), FeatureAnnotations(features, [[0, 5]])
        digests += [part.digest for part in parts]
        assert [part.digest for part in parts] == digests[-3:]
    assert len(set(digests)) == 6


def test_problems_of_a_plain_kind_have_digests() -> None:
    plain = Problem(name="a", seed=0, edit=CaptionEdit.unchanged("x", "x"), load=None, image_name="a", preserve="none")
    assert set(problem_digests(plain)) == {"prompt", "definition"}
    assert re.fullmatch(r"[0-9a-f]{16}", problem_digests(plain)["prompt"])
