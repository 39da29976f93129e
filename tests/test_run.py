"""The command line, end to end on the tiny pipeline."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import classifier_lens.runner.run
from classifier_lens.data.planted import CLASSES, PAIRS
from classifier_lens.runner.cluster.leases import Process
from classifier_lens.runner.files.atomic import UnwritableError
from classifier_lens.runner.results import run_folder
from tests.cli import ROOT, Cli, Outcome

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("frozen_objects")
PICTURES = {"original.png", "start.png", "result.png", "mask.png", "difference.png"}
RESULT_KEYS = {
    "name", "success", "source", "target", "predicted_before", "predicted_after", "confidence_before",
    "confidence_after", "loss", "max_steps", "seconds", "images", "image_name", "preserve", "warnings",
    "caption", "prompt",
}  # fmt: skip


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "status.json").read_text())
    assert isinstance(found, dict)
    return found


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results(folder)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


# --- what a run leaves behind --------------------------------------------------------------------------------


def test_a_run_and_the_same_command_again(cli: Cli, capfd: Capture) -> None:
    first = cli.here(capfd, "limit=2")
    assert first.code == 0, first
    folder = cli.folder
    assert re.fullmatch(r"uvce/planted_ddim-callable: 2 of 512 problems -> \S+", first.out.splitlines()[0])
    assert folder.relative_to(cli.outputs).parts[:2] == ("uvce", "planted_ddim-callable")
    *_, headline, page = first.out.splitlines()
    assert page == f"page: {folder / 'index.html'}"

    lines = results(folder)
    assert headline.startswith(f"{sum(line['success'] for line in lines)} of 2 images")
    assert len(lines) == 2 and all(set(line) >= RESULT_KEYS for line in lines)
    for line in lines:
        place = folder / "images" / line["name"]
        assert {path.name for path in place.iterdir()} == PICTURES | {"result.json"}
        assert {str(Path(p).name) for p in line["images"].values()} == PICTURES
        assert all(Image.open(folder / p).size == (16, 16) for p in line["images"].values())
        assert (line["source"], line["target"]) in {*PAIRS, *(pair[::-1] for pair in PAIRS)}
        assert line["success"] is (line["predicted_after"] == line["target"])
        assert len(line["history"]) == 4 and line["max_steps"] == 3
        totals = [entry["total"] for entry in line["history"]]
        assert line["loss"]["total"] == min(totals) and line["best_step"] == totals.index(min(totals))
        assert json.loads((place / "result.json").read_text()) == line
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    files -= {file for file in files if file.startswith("images/")}
    (attempt,) = (file for file in files if file.startswith("attempts/"))
    assert files == {
        "config.yaml", "manifest.json", "problems.txt", "results.jsonl", "summary.json", "status.json", "index.html",
        ".lock", attempt,
    }  # fmt: skip
    assert (folder / "problems.txt").read_text().split() == [line["name"] for line in lines]
    noted = json.loads((folder / attempt).read_text())
    assert (noted["state"], noted["reason"], noted["pid"]) == ("done", "", os.getpid())
    successes = sum(line["success"] for line in lines)
    assert json.loads((folder / "summary.json").read_text()).items() >= {"results": 2, "successes": successes}.items()
    assert {key: status(folder)[key] for key in ("state", "done", "failed", "pending", "reason")} == {
        "state": "done", "done": 2, "failed": 0, "pending": 0, "reason": "",
    }  # fmt: skip
    assert "limit=2" in (folder / "config.yaml").read_text()

    before = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*") if path.is_file()}
    text = (folder / "results.jsonl").read_text()
    again = cli.here(capfd, "limit=2")
    assert again.code == 0 and (folder / "results.jsonl").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in before} == before

    more = cli.here(capfd, "limit=3", "batch=4")  # the same run, one problem longer
    assert more.code == 0 and [line["name"] for line in results(cli.folder)][:2] == [line["name"] for line in lines]
    assert len(results(cli.folder)) == 3 and {p: p.stat().st_mtime_ns for p in before} == before

    fewer = cli.here(capfd, "limit=1")  # what is done stays
    assert fewer.code == 0 and len(results(cli.folder)) == 3
    assert (status(cli.folder)["done"], status(cli.folder)["pending"], status(cli.folder)["state"]) == (3, 0, "done")
    assert all(f">{line['name']}<" in (cli.folder / "index.html").read_text() for line in results(cli.folder))


# --- a run's identity ----------------------------------------------------------------------------------------


def folder_of(path: Path) -> list[str]:
    """Three pictures of two classes in a folder, and the words that ask about the first two."""
    for name, colour in {"viaduct/a": "red", "viaduct/b": "green", "lifeboat/c": "blue"}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(path / f"{name}.png")
    return ["data=folder", f"data.path={path}", "task.target=fireboat", "optimizer.steps=0", "limit=2"]


def refused_by_name(outcome: Outcome, folder: Path, *said: str) -> None:
    """Exit code 2 and one line that says all this, which folder was begun otherwise, and what to do."""
    assert outcome.code == 2 and len(outcome.lines) == 1, outcome
    for text in (*said, str(folder), "restore", "outputs="):
        assert text in outcome.lines[0], (text, outcome.lines[0])


def test_other_images_behind_the_same_names_are_refused(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    """Each is named, nothing of the old answers changes, and with the old image back the same command goes on."""
    words = folder_of(tmp_path / "images")
    assert cli.here(capfd, *words).code == 0
    before = (cli.folder / "results.jsonl").read_bytes()
    first = results(cli.folder)[0]["image_name"]
    file = next(f for f in (tmp_path / "images").rglob("*.png") if f"{f.parent.name}-{f.stem}" == first)
    old = file.read_bytes()
    os.utime(file, (1, 1))
    assert cli.here(capfd, *words).code == 0, "another time alone is the same image"
    Image.new("RGB", (20, 20), "black").save(file)
    refused_by_name(cli.here(capfd, *words), cli.folder, f"{first}-fireboat: its image changed")
    file.write_bytes(old)
    extra = file.with_name("extra.png")
    extra.write_bytes(old)
    refused_by_name(cli.here(capfd, *words, "limit=3"), cli.folder, "problem ")
    extra.unlink()
    assert cli.here(capfd, *words).code == 0 and (cli.folder / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("kind", ["image", "mask", "labels", "captions", "training"])
def test_another_file_of_the_same_name_is_another_run(cli: Cli, capfd: Capture, tmp_path: Path, kind: str) -> None:
    words = [*folder_of(tmp_path / "images")[:-1], "limit=1"]
    picture, mask, captions, training = (tmp_path / n for n in ("own.png", "mask.png", "captions.csv", "training"))
    folder_of(training)
    for file, colour in ((picture, 0), (mask, 255)):
        Image.new("L", (16, 16), colour).save(file)
    captions.write_text(
        "name,caption\n" + "".join(f"{n},a {n[:-2]}\n" for n in ("viaduct-a", "viaduct-b", "lifeboat-c"))
    )
    words = {
        "image": ["data=image", f"data.path={picture}", "data.label=viaduct", *words[2:4]],
        "mask": [*words, f"task.mask={mask}"], "labels": words,
        "captions": [*words, "captioner=file", f"captioner.path={captions}"],
        "training": [
            *words[:2], "data@training=folder", f"training.path={training}", "task=neuron_cf", "limit=1",
            "optimizer.steps=0", "task.feature_attack.steps=1",
        ],
    }[kind]  # fmt: skip
    assert cli.here(capfd, *words).code == 0
    before = cli.folder
    assert cli.here(capfd, *words).code == 0 and cli.folder == before
    if kind in ("image", "mask"):
        Image.new("L", (16, 16), 200).save(picture if kind == "image" else mask)
    elif kind == "labels":
        cli.labels.write_text("\n".join(reversed(cli.labels.read_text().split("\n"))))
    elif kind == "captions":
        captions.write_text(captions.read_text().replace("a viaduct", "a red viaduct"))
    else:
        Image.new("RGB", (20, 20), "white").save(training / "lifeboat" / "c.png")
    assert cli.here(capfd, *words).code == 0
    assert len(list(cli.outputs.glob("*/*/*/status.json"))) == 2


HIDDEN = """
import torch
from pathlib import Path

class Hidden:
    def weights(self):
        return torch.load(Path(__file__).with_name("weights.pt"))

hidden = Hidden()

def logits(x):
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ hidden.weights()
"""


def test_weights_that_cannot_be_seen(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    """It is said once; other weights are refused; with their file named they are another run."""
    cli.network.write_text(HIDDEN)
    file = cli.network.with_name("weights.pt")
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(12, 10, generator=draw) for _ in range(2))
    words = [f"classifier.target={cli.network}:logits", "limit=1", "optimizer.steps=0"]
    torch.save(one, file)
    first = cli.here(capfd, *words)
    assert first.code == 0 and len(re.findall("classifier.extra_files=", first.out)) == 1
    assert "classifier.extra_files=" in (cli.folder / "index.html").read_text()
    torch.save(other, file)
    refused_by_name(cli.here(capfd, *words), cli.folder, "classifier: its logits changed")
    named = replace(cli, outputs=tmp_path / "named")
    for weights, runs in ((one, 1), (one, 1), (other, 2)):
        torch.save(weights, file)
        outcome = named.here(capfd, *words, f"classifier.extra_files=[{file}]")
        assert outcome.code == 0 and "classifier.extra_files=" not in outcome.out
        assert len(list(named.outputs.glob("*/*/*/status.json"))) == runs


def test_a_run_that_fails_before_its_first_problem_leaves_no_folder(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    outcome = cli.here(capfd, "limit=1", "segmenter=file", f"segmenter.path={tmp_path / 'masks'}")
    assert outcome.code == 2 and "no such file" in outcome.err
    assert not [path for path in cli.outputs.rglob("*") if cli.outputs / "cache" not in (path, *path.parents)]


def test_a_batch_by_memory_stays_what_the_first_process_chose(cli: Cli, capfd: Capture) -> None:
    first = cli.here(capfd, "limit=3", "batch=auto", "optimizer.steps=1", "generator.gradient_checkpointing=auto")
    assert first.code == 0, first
    said = r"batch=auto: 3 at once, gradient_checkpointing=none: \d+\.\d GiB predicted of \d+\.\d GiB free"
    assert re.fullmatch(said, first.out.splitlines()[1]), first.out
    assert (cli.folder / "batch").read_text() == "3\n"
    before = untimed(cli.folder)
    for place in (cli.folder / "images").iterdir():
        (place / "result.json").unlink()
    (cli.folder / "batch").write_text("2\n")
    again = cli.here(capfd, "limit=3", "batch=auto", "optimizer.steps=1", "generator.gradient_checkpointing=auto")
    assert again.code == 0 and re.findall(r"^batch of (\d)", again.out, re.MULTILINE) == ["2", "1"]
    assert [r["predicted_after"] for r in untimed(cli.folder)] == [r["predicted_after"] for r in before]


def test_what_is_reported_is_measured_on_the_saved_picture(cli: Cli, capfd: Capture) -> None:
    from classifier_lens.models.classifier.loaders.user_network import callable_classifier

    assert cli.here(capfd, "limit=1").code == 0
    (line,) = results(cli.folder)
    classifier = callable_classifier(
        f"{cli.network}:network", str(cli.labels), 16, [0] * 3, [1] * 3, "bilinear", "planted"
    )
    for key, file in (("confidence_before", "original"), ("confidence_after", "result")):
        with torch.no_grad():
            picture = run_folder.read_png(cli.folder / line["images"][file])
            confidence = classifier(picture[None]).logits.softmax(dim=1)[0]
        for name, value in line[key].items():
            assert value == pytest.approx(confidence[CLASSES.index(name)].item(), abs=1e-5)


def test_another_seed_draws_others(cli: Cli, capfd: Capture) -> None:
    seen: list[tuple[Path, int, dict[str, bytes]]] = []
    for seed in (0, 1):
        assert cli.here(capfd, "limit=1", "optimizer.steps=1", f"seed={seed}").code == 0
        (folder,) = {path.parent for path in cli.outputs.glob("*/*/*/status.json")} - {known for known, *_ in seen}
        seen.append((folder, results(folder)[0]["seed"], pictures(folder)))
    assert seen[0][1] != seen[1][1] and seen[0][2] != seen[1][2]


def test_a_baseline_without_a_generator(cli: Cli, capfd: Capture) -> None:
    assert cli.here(capfd, "limit=1", "task.baseline=pixels").code == 0
    (line,) = results(cli.folder)
    assert line["max_steps"] == 3 and {Path(p).name for p in line["images"].values()} == PICTURES
    assert line["loss"]["total"] < line["history"][0]["total"] and line["history"][0]["pixel_distance"] == 0


def test_guidance_without_strength_leaves_the_pictures_of_the_start_alone(
    cli: Cli, capfd: Capture, tmp_path: Path
) -> None:
    words = ("limit=1", "task.baseline=classifier_guidance", "optimizer.lr.classifier_guidance=0.0")
    other = replace(cli, outputs=tmp_path / "start_only")
    assert cli.here(capfd, *words).code == 0 and other.here(capfd, "limit=1", "task.baseline=start_only").code == 0
    assert pictures(cli.folder) == pictures(other.folder)
    for (line,) in (results(cli.folder), results(other.folder)):
        assert line["max_steps"] == 0 and {Path(p).name for p in line["images"].values()} == PICTURES


@pytest.mark.parametrize("keep", ["foreground", "all", "none"])
def test_a_mask_is_saved_where_there_is_one(cli: Cli, capfd: Capture, keep: str) -> None:
    assert cli.here(capfd, "limit=1", "optimizer.steps=0", f"task.preserve={keep}").code == 0
    (line,) = results(cli.folder)
    assert line["preserve"] == keep
    names = {Path(p).name for p in line["images"].values()}
    assert names == (PICTURES if keep == "foreground" else PICTURES - {"mask.png"})


def test_a_mask_of_the_users_own_is_what_is_free(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    Image.new("L", (16, 16), 255).save(tmp_path / "all.png")
    words = ("limit=1", "optimizer.steps=0", f"task.mask={tmp_path / 'all.png'}")
    assert cli.here(capfd, *words).code == 0
    (line,) = results(cli.folder)
    assert (run_folder.read_png(cli.folder / line["images"]["mask"]) == 1).all()
    assert any("covers everything" in warning for warning in line["warnings"])


def test_several_answers_to_one_question(cli: Cli, capfd: Capture) -> None:
    """The seed decides what an answer's crops and noise are: with a single one the answers would be alike."""
    assert cli.here(capfd, "limit=2", "task.num_seeds=2").code == 0
    first, second = results(cli.folder)
    assert (first["image_name"], first["target"]) == (second["image_name"], second["target"])
    assert first["name"].endswith("-0") and second["name"] == first["name"].removesuffix("0") + "1"
    assert first["seed"] != second["seed"] and first["history"][0] == second["history"][0]
    assert first["history"][1] != second["history"][1]
    summary = json.loads((cli.folder / "summary.json").read_text())
    spread = abs(first["confidence_after"][first["target"]] - second["confidence_after"][second["target"]]) / 2
    assert summary["mean_confidence_std"] == pytest.approx(spread) and summary["results"] == 2


def test_errors_are_taken_back_to_their_label(cli: Cli, capfd: Capture) -> None:
    outcome = cli.here(capfd, "limit=2", "task.mode=error", "optimizer.steps=1")
    assert outcome.code == 0 and ": 2 problems -> " in outcome.out.splitlines()[0], "how many there are is not known"
    for line in results(cli.folder):
        assert line["predicted_before"] == line["source"] != line["target"]
        assert (
            line["caption"] == line["prompt"] and line["target"] in line["caption"] and line["cross_replace_steps"] == 0
        )


def test_doubts_stand_in_the_record_and_are_said(cli: Cli, capfd: Capture) -> None:
    """The tiny generator draws nothing of what it is told, and a rate of nearly zero moves nothing."""
    still = [f"optimizer.lr.{control}=1e-9" for control in ("latent", "text", "null")]
    outcome = cli.here(capfd, "limit=1", *still)
    assert outcome.code == 0
    (line,) = results(cli.folder)
    assert any("hardly moved" in w or "no step is better" in w for w in line["warnings"])
    assert any("the generator's image of" in w for w in line["warnings"])
    assert [f"  {line['name']}: {warning}" for warning in line["warnings"]] == [
        said for said in outcome.out.splitlines() if said.startswith(f"  {line['name']}: ")
    ]


def test_a_target_by_another_rule(cli: Cli, capfd: Capture) -> None:
    """All rules: tests/tasks/prompts/test_target_rules.py; a class by its name: `test_the_users_own_picture`."""
    assert cli.here(capfd, "limit=1", "optimizer.steps=0", "task.target=confusion").code == 0
    (line,) = results(cli.folder)
    assert line["target"] != line["source"]


def test_the_users_own_picture(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "boat.png")
    words = ("data=image", f"data.path={tmp_path / 'boat.png'}", "data.label=Lifeboat", "task.target=fireboat")
    assert cli.here(capfd, *words).code == 0
    (line,) = results(cli.folder)
    assert (line["source"], line["target"]) == ("lifeboat", "fireboat")
    assert line["caption"] == "a photograph of a lifeboat" and line["prompt"] == "a photograph of a fireboat"


# --- bad input -----------------------------------------------------------------------------------------------


def refused(outcome: Outcome, outputs: Path, *said: str) -> None:
    """Exit code 2, one line on the error stream that says all this, and nothing written."""
    assert outcome.code == 2, outcome
    (line,) = outcome.lines
    for text in said:
        assert text in line, (text, line)
    assert not list(outputs.rglob("*")), "nothing half-written"


# Values that a key's type does not allow are in tests/test_wrong_values.py, but for two.
BAD: dict[str, tuple[list[str], list[str]]] = {
    "class": (["task.target=viadukt"], ["task.target=viadukt", "nearest are viaduct"]),
    "guidance": (["generator.guidance_scale=1"], ["generator.guidance_scale=1", "above 1"]),
    "lease": (["lease.duration=0"], ["lease.duration=0", "above 0"]),
    "baseline": (["task.baseline=magic"], ["task.baseline=magic", "none, start_only, pixels, classifier_guidance, y"]),
    "attribute": (["task.mode=attribute"], ["task.mode=attribute", "zero-shot classifier"]),
    "mask": (["task.mask=nowhere.png"], ["task.mask=nowhere.png", "no such file"]),
    "prompt": (["task.class_name_prompt='a {lable}'"], ["a {lable}", "{article} and {label}"]),
    "side": (["generator.attention_maps.resolution=5"], ["generator.attention_maps.resolution=5", "4, 8"]),
    "resolution": (["generator.resolution=17"], ["generator.resolution=17", "multiples of 2"]),
    "weights": (["generator.path=nowhere"], ["generator.path=nowhere", "`python run.py` alone needs none"]),
    "split": (["data.split=tset"], ["data.split=tset", "train, validation, test"]),
    "template": (["segmenter=planted", "segmenter.template=x"], ["segmenter.template=x", "{words}"]),
    "text template": (
        ["task=spurious_audit", "sampler=ddim", "text_segmenter.template=x"],
        ["text_segmenter.template=x", "{words}"],
    ),
    "rival": (
        ["task=disagreement", "classifier@rival=trained", "rival.path=nowhere"],
        ["rival.path=nowhere", "does not exist; shipped are"],
    ),
    "no part": (["parametrization=[]"], ["parametrization: no option is selected; allowed are ", "soft_prompt"]),
    "no value": (["classifier=trained"], ["classifier.path: is missing"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_end_in_one_line(cli: Cli, capfd: Capture, case: str) -> None:
    words, said = BAD[case]
    refused(cli.here(capfd, "limit=1", *words), cli.outputs, *said)


def damaged(path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:600])


PICTURES_MADE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "absent": (lambda path: None, ["no such file"]),
    "unreadable": (lambda path: path.write_text("not a picture"), ["cannot be read"]),
    "truncated": (damaged, ["cannot be read", "runcated"]),
    "small": (lambda path: Image.new("RGB", (15, 40)).save(path), ["15 x 40", "16 x 16"]),
}


@pytest.mark.parametrize("kind", PICTURES_MADE)
def test_bad_pictures_end_in_one_line(cli: Cli, capfd: Capture, tmp_path: Path, kind: str) -> None:
    make, said = PICTURES_MADE[kind]
    path = tmp_path / "x.jpg"
    make(path)
    outcome = cli.here(capfd, "data=image", f"data.path={path}", "data.label=viaduct", "task.target=lifeboat")
    refused(outcome, cli.outputs, f"data.path={path}", *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.label=viadukt", "task.target=lifeboat"], ["data.label=viadukt", "nearest are viaduct"]),
        (["data.label=viaduct", "task.target=viaduct"], ["task.target=viaduct", "already"]),
        (["data.label=viaduct", "task.target=nearest"], ["task.target=nearest", "confusion"]),
        (["task.target=viaduct"], ["data.label is missing"]),
        (
            ["data.label=viaduct", "task.target=lifeboat", "data.caption='a photograph of a bridge'"],
            ["a photograph of a bridge", "does not contain 'viaduct'"],
        ),
        (
            ["data.label=viaduct", "task.target=lifeboat", f"data.caption='{'viaduct ' * 30}'"],
            ["tokens: allowed are 40"],
        ),
    ],
    ids=["label", "same", "nearest", "no-label", "caption", "long"],
)
def test_bad_words_about_a_picture_end_in_one_line(
    cli: Cli, capfd: Capture, tmp_path: Path, words: list[str], said: list[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    refused(cli.here(capfd, "data=image", f"data.path={tmp_path / 'x.png'}", *words), cli.outputs, *said)


def test_a_network_that_does_not_fit_its_labels(cli: Cli, capfd: Capture) -> None:
    cli.labels.write_text("\n".join(CLASSES[:9]))
    refused(cli.here(capfd), cli.outputs, "classifier.target=", "output size 10", "9 labels")


def published_classifier(folder: Path, outputs: Path) -> list[str]:
    """The words that explain a black image by ViT-B/16."""
    Image.new("RGB", (64, 64)).save(folder / "x.jpg")
    return [
        "task=uvce", "classifier=vit_b", "data=image", f"data.path={folder / 'x.jpg'}", "data.label=goldfish",
        f"outputs={outputs}", "logger=none",
    ]  # fmt: skip


def test_missing_weights_of_a_published_classifier(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("classifier_lens.models.hub.get_session", lambda: SimpleNamespace(head=unreachable))
    outcome = cli.plain(capfd, *published_classifier(tmp_path, cli.outputs))
    refused(outcome, cli.outputs, "the hub cannot be reached", "fetch_weights.py", "python run.py")


@pytest.mark.slow
def test_missing_weights_where_the_environment_forbids_the_network(cli: Cli, tmp_path: Path) -> None:
    """A process of its own: whether the hub is used is decided when its package is imported."""
    words = published_classifier(tmp_path, cli.outputs)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    end = subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    refused(Outcome(end.returncode, end.stdout, end.stderr), cli.outputs, "fetch_weights.py", "python run.py")


def test_an_unknown_option_lists_the_known_ones(cli: Cli, capfd: Capture) -> None:
    outcome = cli.here(capfd, "optimizer=adm")
    assert outcome.code != 0 and "adam_uvce" in outcome.err and not cli.outputs.exists()


# --- runs that end early -------------------------------------------------------------------------------------


STOPS = {"SIGINT": 130, "SIGUSR2": 143}  # of all signals: tests/runner/cluster/test_signals.py


def signalled(number: str, before: Callable[..., Any]) -> Callable[..., Any]:
    """The call, once a signal has come."""

    def call(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), signal.Signals[number])
        return before(*arguments, **settings)

    return call


@pytest.mark.parametrize(("number", "code"), STOPS.items())
def test_a_signal_ends_a_run_in_good_order(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch, number: str, code: int
) -> None:
    from classifier_lens.runner import batch

    monkeypatch.setattr(batch, "report_progress", signalled(number, batch.report_progress))
    outcome = cli.here(capfd, "limit=2", "batch=2", "optimizer.steps=20", "checkpoint.every=1", "task.baseline=pixels")
    assert (outcome.code, outcome.err) == (code, f"stopped by {number}; the same command continues the run\n")
    found = status(cli.folder)
    assert (found["state"], found["pending"], found["reason"]) == ("stopped", 2, outcome.err.strip())
    (attempt,) = cli.folder.glob("attempts/*.json")
    assert json.loads(attempt.read_text())["state"] == "stopped"
    assert results(cli.folder) == [] and list(cli.folder.glob("state/*.safetensors"))
    assert not list(cli.folder.glob("leases/*"))


@pytest.mark.parametrize(
    "where", ["classifier_lens.runner.configuration.compose.select_images", "classifier_lens.runner.run.make_problems"]
)
def test_a_signal_before_the_first_problem_leaves_nothing(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Of a sweep no further run begins."""
    module, _, name = where.rpartition(".")
    monkeypatch.setattr(where, signalled("SIGINT", getattr(sys.modules[module], name)))
    outcome = cli.plain(capfd, "-m", *cli.arguments("seed=0,1", "limit=1"))
    assert (outcome.code, outcome.err) == (130, "stopped by SIGINT; the same command continues the run\n")
    assert not list(cli.outputs.glob("uvce"))


def test_a_signal_while_others_work_ends_the_waiting(cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from classifier_lens.runner.cluster import batch_sharing

    monkeypatch.setattr("classifier_lens.runner.cluster.leases.Leases.acquire", lambda *_: nullcontext())
    monkeypatch.setattr("classifier_lens.runner.cluster.leases.Leases.owner", lambda *_: Process("elsewhere", 1, None))
    monkeypatch.setattr(batch_sharing.time, "sleep", signalled("SIGHUP", time.sleep))
    outcome = cli.here(capfd, "limit=1", "task.baseline=pixels")
    assert (outcome.code, outcome.err) == (129, "stopped by SIGHUP; the same command continues the run\n")
    assert status(cli.folder)["state"] == "stopped" and "waiting for 1 batches of other processes" in outcome.out


def spoil(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the `at`-th evaluation on, the pixel distance of the second sample is not a number."""
    from classifier_lens.tasks.objectives import distances

    original, calls = distances.pixel_distance, [0]

    def pixel_distance(reference: Any) -> Callable[[Any], torch.Tensor]:
        term = original(reference)

        def spoilt(scene: Any) -> torch.Tensor:
            calls[0] += 1
            value = term(scene)
            return value * torch.where(torch.arange(len(value)) == 1, torch.nan, 1.0) if calls[0] > at else value

        return spoilt

    monkeypatch.setattr(distances, "pixel_distance", pixel_distance)


def test_an_error_in_the_middle_of_a_run_fails_its_problem_alone(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command tries that problem again, and no other."""
    from classifier_lens.runner.batch import Solver

    begin = Solver.initialize

    def start(self: Solver, problems: Any, *origin: Any) -> Any:
        if any(problem.name.startswith("test-00001") for problem in problems):
            raise RuntimeError("wrong shape")
        return begin(self, problems, *origin)

    words = ("limit=5", "batch=3", "task.baseline=pixels", "optimizer.steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(Solver, "initialize", start)
        outcome = cli.here(capfd, *words)
    (line,) = outcome.lines
    assert outcome.code == 1 and re.match(
        r"failed: test-00001-\S+: RuntimeError: wrong shape \(.*test_run.py:\d+\)$", line
    )
    found = status(cli.folder)
    assert (found["done"], found["failed"], found["pending"]) == (4, 1, 0) and set(found["failures"][0]) == {
        "name",
        "error",
    }
    (failure,) = cli.folder.glob("images/test-00001-*/failure.json")
    assert "raise RuntimeError" in json.loads(failure.read_text())["traceback"]
    first, third, *others = results(cli.folder)
    for alone in (first, third):
        assert any(note.startswith("its batch of 3 failed (RuntimeError: wrong shape") for note in alone["warnings"])
    assert not any("its batch" in note for other in others for note in other["warnings"])
    assert not list(cli.folder.glob("state/*"))
    again = cli.here(capfd, *words)
    assert again.code == 0 and "batch of 3: " in again.out and "batch of 2: " not in again.out
    assert [r for r in results(cli.folder) if not r["name"].startswith("test-00001")] == [first, third, *others]


def test_an_image_that_cannot_be_asked_about_fails_its_problem_alone(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its batch is solved at once without it."""
    from classifier_lens.tasks.prompts import target_rules

    confusion = target_rules.TARGET_RULES["confusion"]

    def picky(choice: Any) -> list[str]:
        if choice.example.name.startswith("test-00001"):
            raise RuntimeError("wrong shape")
        return confusion(choice)

    monkeypatch.setitem(target_rules.TARGET_RULES, "confusion", picky)
    words = ("limit=3", "batch=3", "task.baseline=pixels", "optimizer.steps=1", "task.target=confusion")
    outcome = cli.here(capfd, *words)
    (line,) = outcome.lines
    assert outcome.code == 1 and re.match(
        r"failed: test-00001\S*: RuntimeError: wrong shape \(.*test_run.py:\d+\)$", line
    )
    assert "batch of 2: " in outcome.out and (status(cli.folder)["done"], status(cli.folder)["failed"]) == (2, 1)
    (failure,) = cli.folder.glob("images/test-00001*/failure.json")
    assert "raise RuntimeError" in json.loads(failure.read_text())["traceback"]
    assert not any("its batch" in note for record in results(cli.folder) for note in record["warnings"])


def test_a_measured_value_that_is_not_finite_fails_its_problem_by_name(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from classifier_lens.tasks.uvce import Uvce

    measure = Uvce.measure

    def spoilt(self: Uvce, problem: Any, *given: Any) -> Any:
        found = measure(self, problem, *given)
        if problem.name.startswith("test-00001"):
            found["confidence_after"] = dict.fromkeys(found["confidence_after"], float("nan"))
        return found

    monkeypatch.setattr(Uvce, "measure", spoilt)
    outcome = cli.here(capfd, "limit=2", "batch=2", "task.baseline=pixels", "optimizer.steps=1")
    (line,) = outcome.lines
    assert outcome.code == 1
    assert re.match(r"failed: test-00001-\S+: confidence_after\.[\w ]+ is not finite$", line)
    assert len(results(cli.folder)) == 1 and status(cli.folder)["failed"] == 1


def test_a_loss_that_is_not_finite_fails_its_problem_alone(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = (
        "limit=3",
        "generator.prompt_to_prompt.cross_replace_steps=[0.3]",
        "generator.prompt_to_prompt.background_blend_steps=[0.0]",
    )
    good = replace(cli, outputs=tmp_path / "good")
    assert good.here(capfd, *words).code == 0
    spoil(monkeypatch, at=2)  # evaluations come in pairs: the next one is step 1's
    outcome = cli.here(capfd, *words)
    assert outcome.code == 1, outcome
    first, bad, last = (line["name"] for line in results(good.folder))
    (failure,) = status(cli.folder)["failures"]
    assert failure == {"name": bad, "error": "step 1: the term pixel_distance is not finite"}
    assert (status(cli.folder)["done"], status(cli.folder)["failed"], status(cli.folder)["pending"]) == (2, 1, 0)
    assert outcome.lines[-1] == f"failed: {bad}: step 1: the term pixel_distance is not finite"
    assert untimed(cli.folder) == [line for line in untimed(good.folder) if line["name"] in (first, last)]
    assert not (cli.folder / "images" / bad / "result.png").exists()
    again = cli.here(capfd, *words)
    assert again.code == 1 and again.lines[-1] == outcome.lines[-1], "the same command says so again"


def test_a_finished_run_is_shown_where_nothing_can_be_written(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("limit=1", "optimizer.steps=1")
    assert cli.here(capfd, *words).code == 0

    def refuse(folder: Path) -> None:
        raise UnwritableError(f"{folder}: cannot be written: Read-only file system")

    def forbid(*given: object) -> None:
        raise AssertionError("nothing is written")

    monkeypatch.setattr(classifier_lens.runner.run, "check_writable", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", forbid)
        shown = cli.here(capfd, *words)
    assert shown.code == 0 and shown.out.splitlines()[-1] == f"page: {cli.folder / 'index.html'}"
    more = cli.here(capfd, "limit=2", "optimizer.steps=1")
    (line,) = more.lines
    assert more.code == 2 and line.endswith("Read-only file system; 1 of 2 problems are not done there")


@pytest.mark.parametrize("after", [0, 9])
def test_a_full_disk_ends_in_one_line(
    cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:  # fmt: skip
    """From the `after`-th file on, nothing can be put in place any more."""
    written, replace = [0], os.replace

    def full(source: Any, target: Any) -> None:
        written[0] += 1
        if written[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = cli.here(capfd, "limit=1", "optimizer.steps=0")
    assert outcome.code == 1
    (line,) = outcome.lines
    assert line.startswith("disk full: ") and f"outputs={cli.outputs}" in line
    monkeypatch.undo()
    assert cli.here(capfd, "limit=1", "optimizer.steps=0").code == 0, "with room again the same command finishes"
    assert status(cli.folder)["done"] == 1
