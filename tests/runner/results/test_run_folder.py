"""What a run leaves behind is whole, ordered, and found again under the same name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from classifier_lens.runner.cluster.leases import Leases, Process
from classifier_lens.runner.files.atomic import read, remove_temporary_files, write_durable
from classifier_lens.runner.results import problem_status
from classifier_lens.runner.results.batch_names import batch_name, batch_span, batches_overlap
from classifier_lens.runner.results.run_folder import (
    RUN_KEY_SETTINGS,
    RunFolder,
    check_finite,
    quantize_8bit,
    read_png,
    run_key,
    write_png,
)
from classifier_lens.runner.run import Parts
from classifier_lens.runner.types import NonFiniteError

CONFIG: dict[str, Any] = {
    "seed": 0, "limit": 4, "lease": {"duration": 180.0}, "checkpoint": {"every": 5}, "device": "auto",
    "outputs": "outputs", "logger": {"mode": "offline"}, "command": "python run.py", "batch": 4,
    "generator": {
        "steps": 20, "device": "auto",
        "cache": {"_target_": "classifier_lens.models.tensor_cache.TensorCache", "folder": "a"},
    },
    "optimizer": {"lr": {"text": 0.01}},
    "task": {"clip": {"device": "auto", "path": "x"}, "items": [{"cache": "a"}, 1]},
    "clip": {"path": "x"}, "environment": {"torch": "2"}, "name": "uvce/x",
}  # fmt: skip


def summed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a task may summarise: a count, and a mean that is not defined for some records."""
    return {"results": len(records), "mean": None if len(records) < 2 else 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"clip": {"path": "y"}}, {"environment": {"torch": "3"}}, {"name": "y"}, {"a new key": 1},
        {"task": {"clip": {"device": "cpu", "path": "x"}, "items": [{"cache": "b"}, 1]}},
        {"limit": None}, {"lease": {"duration": 1.0}}, {"checkpoint": {"every": 1}}, {"logger": {}},
        {"device": "cpu", "generator": CONFIG["generator"] | {"device": "cpu"}}, {"command": "python run.py limit=1"},
        {"outputs": "x", "generator": CONFIG["generator"] | {"cache": CONFIG["generator"]["cache"] | {"folder": "x"}}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_does_not_change_a_result_is_no_part_of_the_key(change: dict[str, Any]) -> None:
    assert run_key(CONFIG | change, ["w"]) == run_key(CONFIG, ["w"])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"batch": 8}, {"optimizer": {"lr": {"text": 0.02}}}, {"generator": {"steps": 10}}, {"threads": 2},
        {"classifier": {"path": "x"}}, {"data": {"count": 3}}, {"augment": {"crops": 2}},
        {"select": {"classes": ["crab"], "indices": None}},
        {"task": {"clip": {"device": "auto", "path": "y"}, "items": [{"cache": "a"}, 1]}},
        {"task": {"clip": {"device": "auto", "path": "x"}, "items": [{"cache": "a"}, 2]}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_a_result_is(change: dict[str, Any]) -> None:
    assert run_key(CONFIG | change, ["w"]) != run_key(CONFIG, ["w"])
    assert set(change) <= set(RUN_KEY_SETTINGS)


def test_every_part_that_a_run_builds_is_in_the_key_or_changes_no_result() -> None:
    assert set(Parts.__dataclass_fields__) - set(RUN_KEY_SETTINGS) == {"logger"}


def test_the_weights_are_part_of_the_key_and_the_order_of_keys_is_not() -> None:
    assert run_key(CONFIG, ["v"]) != run_key(CONFIG, ["w"])
    assert run_key(dict(reversed(CONFIG.items())), ["w"]) == run_key(CONFIG, ["w"])


def test_images_come_back_within_half_a_level(tmp_path: Path) -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "a.png", image)
    assert (read_png(tmp_path / "a.png") - image).abs().max() <= 0.5 / 255 + 1e-6
    write_png(tmp_path / "b.png", torch.tensor([[[-1.0, 0.0, 1.0, 2.0]]]))
    assert read_png(tmp_path / "b.png").tolist() == [[[0.0, 0.0, 1.0, 1.0]]] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_and_not_written(tmp_path: Path, value: float) -> None:
    folder = RunFolder(tmp_path)
    for record, name in (
        ({"loss": {"total": value}}, "loss.total"), ({"r": value}, "r"), ({"shares": (0.5, value)}, "shares.1"),
        ({"confidence_after": {"viaduct": value}}, "confidence_after.viaduct"),
        ({"history": [{"step": 0, "total": value}]}, "history.0.total"),
    ):  # fmt: skip
        with pytest.raises(NonFiniteError, match=rf"^{re.escape(name)} is not finite$"):
            folder.write_result("a", {"name": "a", **record})
    assert not folder.is_done("a")
    check_finite({"auc": None, "b": (2, "x", True, [0.0, 1e300])})  # what is undefined by design is None


def test_failures_that_were_raised_are_tried_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_failure("a", "step 3: the term total is not finite")
    folder.write_failure("b", "ValueError: no", "Traceback ...")
    assert [f["error"] for f in folder.failures(["a", "b"])] == [
        "step 3: the term total is not finite", "ValueError: no",
    ]  # fmt: skip
    folder.clear_failures(["a", "b", "c"], lambda name: False)
    assert folder.is_done("a") and not folder.is_done("b")


def test_a_failure_stays_while_the_process_that_met_it_is_at_work(tmp_path: Path) -> None:
    """Its name may stand in no failure, as in what an older version wrote."""
    folder = RunFolder(tmp_path)
    for problem, by in (("a", "here-1"), ("b", "there-2"), ("c", "")):
        folder.write_failure(problem, "ValueError: no", "Traceback ...", by)
    folder.clear_failures(["a", "b", "c"], lambda name: name == "there-2")
    assert [folder.is_done(name) for name in "abc"] == [False, True, False]


def test_the_states_of_a_batch_and_its_parts_are_dropped_together(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = {batch_name(start, count) for start, count in ((0, 4), (4, 4), (4, 2), (7, 1), (8, 4))}
    for name in names:
        write_durable(folder.checkpoint_path(name), b"x")
    folder.remove_checkpoints(batch_name(4, 4))
    assert {path.stem for path in (tmp_path / "state").iterdir()} == {batch_name(0, 4), batch_name(8, 4)}


FOREIGN = (
    ".DS_Store", "Thumbs.db", "notes.txt", "x.tmp", "0000-0001~", ".nfs000000000123", "desktop.ini", "problems-.1",
    "problems-a-b.1", "problems-00000-00004.safetensors~", "problems-notes-00004.safetensors", "problems-1-2-3.1",
    "._problems-00000-00004.safetensors", "problems-00000-00004 (copy).safetensors", ".notes.tmp", ".a.png.tmp",
)  # fmt: skip


def test_what_others_left_in_a_run_folder_is_left_alone(tmp_path: Path) -> None:
    """A file manager's notes, an editor's copies, what a network's file system has renamed; folders, too."""
    folder = RunFolder(tmp_path)
    folder.write_result("a", {"name": "a"})
    for part in (".", "state", "leases", "attempts", "images", "images/a"):
        (tmp_path / part).mkdir(exist_ok=True)
        for name in FOREIGN:
            (tmp_path / part / name).write_bytes(b"\x00Bud1")
        (tmp_path / part / "problems-00000-00001.safetensors").mkdir()
        (tmp_path / part / ".b.png.12345678.tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    own = Leases(tmp_path / "leases", 10.0, Process("here", 1, None))
    folder.repair(["a", "b"])
    folder.clear_failures(["a", "b"], own.is_active)
    with own.announce(), own.acquire(batch_name(0, 4)) as claim:
        assert claim is not None
        claim.check()
    own.clear(batch_name(0, 4))
    folder.remove_checkpoints(batch_name(0, 4))
    for place in (tmp_path / "state", folder.problem_folder("a")):
        remove_temporary_files(place)
    assert not folder.is_unused(Process("here", 1, None)) and folder.is_done("a") and not folder.is_done("b")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_batch_is_called_by_its_problems() -> None:
    assert batch_span(batch_name(4, 3)) == range(4, 7) and batch_span(batch_name(99_998, 4)) == range(99_998, 100_002)
    assert not any(map(batch_span, (*FOREIGN, "", f"problems-00000-{10**12}")))
    assert batches_overlap(batch_name(0, 4), batch_name(0, 2)) and batches_overlap(batch_name(3, 1), batch_name(0, 4))
    assert not batches_overlap(batch_name(0, 4), batch_name(4, 4)) and not batches_overlap("notes", batch_name(0, 4))


def test_results_stand_in_problem_order_and_the_status_counts_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name in ("c", "a"):  # finished in another order than they stand in
        folder.write_result(name, {"name": name, "confidence": None})
    folder.write_failure("b", "step 3: the term x is not finite")
    status = folder.collect(["a", "b", "c", "d"], "running", "", summed)
    lines = [json.loads(line) for line in (folder.path / "results.jsonl").read_text().splitlines()]
    assert [(line["name"], line["confidence"]) for line in lines] == [("a", None), ("c", None)]
    assert status == json.loads((folder.path / "status.json").read_text())
    assert (status["done"], status["failed"], status["pending"], status["state"]) == (2, 1, 1, "running")
    assert status["failures"] == [{"name": "b", "error": "step 3: the term x is not finite"}]
    assert [folder.is_done(name) for name in "abcd"] == [True, True, True, False]
    assert json.loads((folder.path / "summary.json").read_text()) == {"results": 2, "mean": 0.5}
    assert not list(folder.path.rglob("*.tmp"))


def test_the_summary_is_of_the_finished_problems_in_their_order(tmp_path: Path) -> None:
    folder, seen = RunFolder(tmp_path), list[list[str]]()

    def watched(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seen.append([record["name"] for record in records])
        return summed(records)

    folder.collect(["a", "b"], "running", "", watched)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"results": 0, "mean": None}
    for name in ("b", "a"):
        folder.write_result(name, {"name": name})
        folder.collect(["a", "b"], "running", "", watched)
    assert seen == [[], ["b"], ["a", "b"]]
    folder.write_result("c", {"name": "c"})  # of a longer run in the same folder
    assert folder.collect(["a", "b"], "done", "", watched)["state"] == "done" and seen[-1] == ["a", "b"]


def test_each_result_is_read_once_however_often_they_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names, seen = RunFolder(tmp_path), [f"p{i}" for i in range(9)], list[Path]()

    def counted(path: Path) -> bytes:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(problem_status, "read", counted)
    for i, name in enumerate(reversed(names)):
        if i % 3 == 2:
            folder.write_failure(name, "step 1: is not finite")
        else:
            folder.write_result(name, {"name": name, "history": [{"step": 0, "total": i / 7}]})
        status = folder.collect(names, "running", "", summed)
    assert len(seen) == len(names) and (status["done"], status["failed"], status["pending"]) == (6, 3, 0)
    before = {file: (tmp_path / file).read_bytes() for file in ("results.jsonl", "summary.json", "status.json")}
    RunFolder(tmp_path).collect(names, "running", "", summed)
    assert before == {file: (tmp_path / file).read_bytes() for file in before}

    seen.clear()
    folder.write_result("p4", {"name": "p4", "success": True})
    (folder.problem_folder("p5") / "result.json").unlink()
    assert folder.collect(names, "running", "", summed)["pending"] == 1
    assert seen == [folder.problem_folder("p4") / "result.json"]
    assert [record["name"] for record in folder.results(names)] == ["p1", "p2", "p4", "p7", "p8"]


def test_summaries_are_made_of_results_without_their_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result("a", {"name": "a", "success": True, "history": [{"step": 0, "total": 0.1}]})

    def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"keys": sorted(records[0])}

    folder.collect(["a"], "done", "", summarise)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "keys": ["digest", "file_digests", "name", "success"]
    }
    assert json.loads((tmp_path / "results.jsonl").read_text())["history"] == [{"step": 0, "total": 0.1}]


def test_an_image_with_one_channel_is_saved_as_one(tmp_path: Path) -> None:
    mask = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    write_png(tmp_path / "m.png", mask)
    assert Image.open(tmp_path / "m.png").mode == "L"
    assert (read_png(tmp_path / "m.png") - mask).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(read_png(tmp_path / "m.png")[:1], quantize_8bit(mask))


def test_the_first_command_stays_in_the_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"command": "first", "limit": None})
    folder.write_config({"command": "second", "limit": 4})
    assert "first" in (tmp_path / "config.yaml").read_text()
