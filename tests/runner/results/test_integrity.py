"""What is done is read whole before it is believed; what is not what was written counts as not done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier_lens.runner.files.atomic import DamagedFileError, read
from classifier_lens.runner.results import integrity, verified_files
from classifier_lens.runner.results.manifest import Manifest
from classifier_lens.runner.results.reader import read_config
from classifier_lens.runner.results.run_folder import RunFolder, write_png
from classifier_lens.runner.types import UserError
from tests.durability import damage

NAMES = ("a", "b", "c")
CONFIG = {"seed": 0, "task": {"x": [1, 2.5e-7]}, "command": "first"}


def summed(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"results": len(records)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two results of two images each, and a failure."""
    run = RunFolder(tmp_path / "run")
    for i, name in enumerate(NAMES[:2]):
        images = {key: f"images/{name}/{key}.png" for key in ("result", "mask")}
        for key, path in images.items():
            write_png(run.path / path, torch.full((3, 4, 4), i / 4 + len(key) / 8))
        run.write_result(name, {"name": name, "images": images, "ranks": {1: 2, 10: 3, 2: 0.1}, "seconds": 1.5})
    run.write_failure("c", "step 1: is not finite")
    run.write_config(CONFIG)
    run.write_manifest(Manifest({name: {} for name in NAMES}, {}, []))
    run.collect(NAMES, "done", "", summed)
    return run


def test_a_whole_run_has_no_damage(run: RunFolder) -> None:
    assert run.find_damage(NAMES) == {}
    assert run.find_damage([*NAMES, "never begun"]) == {}


# --- what is read again --------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to see whether they are whole; files of a moment ago are old already."""
    seen: list[Path] = []

    def counted(path: Path) -> bytes:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(integrity, "read", counted)
    monkeypatch.setattr(verified_files, "MIN_AGE_NS", -1_000_000_000)
    return seen


def test_what_was_found_whole_is_not_read_again_by_any_process(run: RunFolder, reads: list[Path]) -> None:
    run.repair(NAMES)
    assert len([path for path in reads if path.suffix == ".png"]) == 4
    reads.clear()
    for _ in range(2):
        RunFolder(run.path).repair([*NAMES, "never begun"])
    assert not [path for path in reads if path.parent.name in NAMES]
    run.write_failure("d", "step 1: is not finite")
    RunFolder(run.path).repair([*NAMES, "d"])
    assert {path.parent.name for path in reads} == {"never begun", "d"}, "one more problem is one more to read"


@pytest.mark.parametrize("harm", [damage.flipped, damage.zeros])
@pytest.mark.parametrize("name", ["result.png", "result.json"])
def test_damage_that_keeps_size_and_time_is_found(
    run: RunFolder, reads: list[Path], name: str, harm: damage.Harm
) -> None:
    run.repair(NAMES)
    path = run.path / "images/a" / name
    before = path.stat()
    harm(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    reads.clear()
    run.repair(NAMES)
    assert {path.parent.name for path in reads} == {"a"} and not run.is_done("a") and run.is_done("b")


def test_a_result_that_a_disk_has_changed_without_a_trace_is_found(
    run: RunFolder, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.repair(NAMES)
    noted = verified_files.load(run.path)
    assert sorted(noted) == list(NAMES)
    damage.flipped(run.path / "images/a/result.json")
    monkeypatch.setattr(verified_files, "_state", lambda place: noted[place.name])
    assert list(RunFolder(run.path).find_damage(NAMES)) == [run.path / "images/a/result.json"]


def test_what_was_written_a_moment_ago_is_read_again(run: RunFolder) -> None:
    """It may change once more within the same tick of the file system's clock."""
    run.repair(NAMES)
    assert not (run.path / verified_files.VERIFIED_FILE).exists()
    damage.flipped(run.path / "images/a/result.png")
    assert list(run.find_damage(NAMES)) == [run.path / "images/a/result.json"]


@pytest.mark.parametrize("harm", damage.ANY)
def test_damaged_notes_are_not_believed(run: RunFolder, reads: list[Path], harm: damage.Harm) -> None:
    run.repair(NAMES)
    harm(run.path / verified_files.VERIFIED_FILE)
    reads.clear()
    run.repair(NAMES)
    assert len([path for path in reads if path.suffix == ".png"]) == 4
    reads.clear()
    run.repair(NAMES)
    assert not [path for path in reads if path.parent.name in NAMES]


def test_a_copy_of_a_run_is_read_whole(run: RunFolder, reads: list[Path], tmp_path: Path) -> None:
    run.repair(NAMES)
    shutil.copytree(run.path, tmp_path / "copy")
    damage.flipped(tmp_path / "copy/images/a/result.png")
    assert list(RunFolder(tmp_path / "copy").find_damage(NAMES)) == [tmp_path / "copy/images/a/result.json"]


# --- damage --------------------------------------------------------------------------------------------------


def harms(file: str) -> list[damage.Harm]:
    """The kinds of damage that are told of a file; what is a number in JSON is so in an image's place, too."""
    return [harm for harm in damage.ANY if not (file == "failure.json" and harm in (damage.lengthened, damage.flipped))]


CASES = [
    (f"images/{name}/{file}", f"images/{name}/{told}", harm)
    for name, file, told in (
        ("a", "result.json", "result.json"), ("a", "result.png", "result.json"), ("b", "mask.png", "result.json"),
        ("c", "failure.json", "failure.json"),
    ) for harm in harms(file)
]  # fmt: skip


@pytest.mark.parametrize(("file", "damaged", "harm"), CASES)
def test_what_is_damaged_is_not_done_and_harms_no_other(
    run: RunFolder, file: str, damaged: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    harm(run.path / file)
    name = Path(file).parts[1]
    assert list(run.find_damage(NAMES)) == [run.path / damaged]
    run.repair(NAMES)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.path / damaged}: ")
    assert line.endswith(f"; renamed to {Path(damaged).name}.damaged and written again")
    assert [run.is_done(other) for other in NAMES] == [other != name for other in NAMES]
    status = run.collect(NAMES, "done", "", summed)
    assert status["pending"] == 1 and status["done"] + status["failed"] == 2
    assert run.find_damage(NAMES) == {}


@pytest.mark.parametrize("file", ["result.json", "result.png", "mask.png"])
def test_a_file_of_another_problem_is_none_of_its_own(run: RunFolder, file: str) -> None:
    shutil.copyfile(run.path / "images/b" / file, run.path / "images/a" / file)
    assert list(run.find_damage(NAMES)) == [run.path / "images/a/result.json"]


@pytest.mark.parametrize("file", ["result.png", "mask.png"])
def test_an_image_that_is_missing_is_told(run: RunFolder, file: str) -> None:
    (run.path / "images/a" / file).unlink()
    assert run.find_damage(NAMES) == {run.path / "images/a/result.json": f"images/a/{file} is missing"}


def test_an_edited_result_is_not_what_was_measured(run: RunFolder) -> None:
    path = run.path / "images/a/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ranks": {}}))
    assert list(run.find_damage(NAMES)) == [path]


@pytest.mark.parametrize("place", ["images", "state", "leases", "attempts", "images/a", "images/c"])
def test_a_file_in_a_folders_place_is_set_aside(run: RunFolder, place: str) -> None:
    shutil.rmtree(run.path / place, ignore_errors=True)
    (run.path / place).touch()
    run.repair(NAMES)
    assert (run.path / f"{place}.damaged").is_file() and not (run.path / place).exists()
    run.write_failure("a", "again")
    assert run.is_done("a") and run.is_done("b") is (place != "images")


def test_a_link_to_another_problems_folder_is_set_aside(run: RunFolder) -> None:
    shutil.rmtree(run.path / "images/a")
    (run.path / "images/a").symlink_to("b")
    run.repair(NAMES)
    assert (run.path / "images/a.damaged").is_symlink()
    assert not run.is_done("a") and run.is_done("b")


@pytest.mark.parametrize(
    "changes", [{"file_digests": 7}, {"file_digests": {"images/a/result.png": 7}}, {"images": [1]}, {"warnings": "x"}]
)  # fmt: skip
def test_a_result_of_another_kind_counts_as_not_done(run: RunFolder, changes: dict[str, Any]) -> None:
    path = run.path / "images/a/result.json"
    held = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    path.write_text(json.dumps(integrity.add_digest({**held, **changes})))
    assert list(run.find_damage(NAMES)) == [path]


@pytest.mark.parametrize("content", ["a: " + "[" * 5000, "a: " + "9" * 5000, "a: 1\na: 2\n", "a: !!python/name:os.x"])
def test_what_is_no_configuration_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(DamagedFileError, match="is no configuration"):
        integrity.parse_config(content.encode())
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("harm", [h for h in damage.ANY if h not in (damage.lengthened, damage.flipped)])
@pytest.mark.parametrize(
    "file", ["config.yaml", "manifest.json", "problems.txt", "results.jsonl", "summary.json", "status.json", ".lock"]
)
def test_what_follows_from_the_problems_is_written_anew(
    run: RunFolder, file: str, harm: Callable[[Path], None]
) -> None:  # fmt: skip
    before = (run.path / file).read_bytes()
    harm(run.path / file)
    run.repair(NAMES)
    run.write_config(CONFIG)
    run.write_manifest(Manifest({name: {} for name in NAMES}, {}, []))
    run.collect(NAMES, "done", "", summed)
    if file != ".lock":
        assert (run.path / file).read_bytes() == before
    assert len((run.path / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("harm", damage.ANY)
def test_a_noted_batch_that_is_no_number_is_chosen_again(run: RunFolder, harm: Callable[[Path], None]) -> None:
    assert run.store_batch_size(7) == 7
    harm(run.path / "batch")
    noted = run.stored_batch_size()
    assert run.store_batch_size(5) == (noted or 5) and (noted is None or noted > 0)


def test_of_equal_runs_only_the_seconds_differ(tmp_path: Path) -> None:
    for path, seconds in (("x", 1.0), ("y", 2.0)):
        RunFolder(tmp_path / path).write_result("a", {"name": "a", "seconds": seconds})
    read = [json.loads((tmp_path / path / "images/a/result.json").read_text()) for path in "xy"]
    assert read[0] | {"seconds": 2.0} == read[1]


def test_a_result_counts_and_not_the_failure_beside_it(run: RunFolder) -> None:
    run.write_failure("a", "before")
    status = run.collect(NAMES, "done", "", summed)
    assert (status["done"], status["failed"], status["pending"]) == (2, 1, 0)
