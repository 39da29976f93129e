"""User studies of all kinds: what holds for every page and every file of answers, and the command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study.pages import make_pages
from classifier_lens.scripts.user_study import STUDIES, main
from tests.cli import ROOT
from tests.scripts.study.studies import Fieldset, Page, audit, counterfactuals, make_study, portraits, save

FOLDERS: dict[str, Callable[[Path], list[Path]]] = {
    "preference": lambda root: [counterfactuals(root, method) for method in "AB"],
    "resemblance": lambda root: [audit(root, method) for method in "AB"],
    "content": lambda root: [portraits(root), audit(root)],
}


@dataclass(frozen=True)
class Made:
    """A study's pages and key."""

    out: Path
    pages: list[Path]
    key: dict[str, Any]


def study(tmp_path: Path, kind: str, out: str = "out", **changes: Any) -> Made:
    options: Any = STUDIES[kind].options
    chosen = options(out=str(tmp_path / out), **changes)
    return Made(tmp_path / out, *make_study(STUDIES[kind].build_study, FOLDERS[kind](tmp_path), chosen))


def first(asked: Fieldset) -> Any:
    """The first choice of a question."""
    return asked.values[:1] if asked.several else asked.values[0]


every_kind = pytest.mark.parametrize("kind", STUDIES)


# --- pages ---------------------------------------------------------------------------------------------------


@every_kind
def test_a_page_shows_every_picture_that_lies_beside_it_and_no_other(tmp_path: Path, kind: str) -> None:
    made = study(tmp_path, kind)
    page = Page(made.pages[0])
    files = {path.stem: path for path in (made.out / "images").iterdir()}
    assert set(page.pictures) == set(files) and made.key["images"].keys() <= files.keys()
    for name, path in files.items():
        assert re.fullmatch(r"[0-9a-f]{12}\.png", path.name), name
        with Image.open(path) as picture:
            picture.load()
            assert not picture.info


@every_kind
def test_a_page_needs_no_network_and_tells_nothing_of_the_runs(tmp_path: Path, kind: str) -> None:
    made = study(tmp_path, kind)
    text = made.pages[0].read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    secrets = ["secret", "planted", "method", "_audit", "diffexplainer", "uvce", "test-0", "-both", str(tmp_path)]
    secrets += ["biased", *made.key["runs"].values(), *(f"“{name}”" for name in made.key["runs"])]
    for secret in secrets:
        assert secret not in text, secret
    assert {path.name for path in made.out.iterdir()} == {"images", "study-1.html"}
    assert (tmp_path / "out-key.json").is_file()
    times = [path.stat().st_mtime_ns for path in sorted((made.out / "images").iterdir())]
    assert times == sorted(times)  # copied by neutral name, so that times tell no runs apart either


@every_kind
def test_every_question_can_be_read_and_reached(tmp_path: Path, kind: str) -> None:
    """A legend, labels (see `Page`), and names that make groups of their own; every picture has an alternative text."""
    page = Page(study(tmp_path, kind).pages[0])
    assert page.questions and all(alt for box in page.boxes for _, alt in box)
    names: list[str | None] = []
    for asked in page.questions:
        assert asked.legend.strip()
        own = {given["name"] for given in asked.inputs}
        assert len(own) == 1 and len(asked.inputs) >= 2
        assert {given["type"] for given in asked.inputs} == {"checkbox" if asked.several else "radio"}
        alone = ["data-alone" in given for given in asked.inputs]
        assert alone == [asked.several and given is asked.inputs[-1] for given in asked.inputs]
        names += own
    assert len(set(names)) == len(names)


@every_kind
def test_participants_see_orders_of_their_own_and_a_seed_makes_the_same_study(tmp_path: Path, kind: str) -> None:
    made = study(tmp_path, kind, participants=8)
    orders = [tuple(Page(page).pictures) for page in made.pages]
    assert len(set(orders)) > 1 and len({tuple(sorted(order)) for order in orders}) == 1
    again = study(tmp_path, kind, out="again", participants=8)
    assert [page.read_text() for page in again.pages] == [page.read_text() for page in made.pages]
    assert again.key == made.key
    other = study(tmp_path, kind, out="other", seed=1)
    assert other.key["study"] != made.key["study"]
    assert other.key["images"].keys().isdisjoint(made.key["images"])


@every_kind
def test_runs_of_other_tasks_and_used_folders_are_refused(tmp_path: Path, kind: str) -> None:
    wrong = FOLDERS["resemblance" if kind == "preference" else "preference"](tmp_path)
    options: Any = STUDIES[kind].options
    with pytest.raises(UserError, match=f"study={kind} needs a run of task="):
        make_pages(STUDIES[kind].build_study, wrong, options(out=str(tmp_path / "out")))
    study(tmp_path, kind)
    with pytest.raises(UserError, match="is not empty"):
        study(tmp_path, kind)


# --- answers -------------------------------------------------------------------------------------------------


@every_kind
def test_what_a_page_saves_can_be_scored(tmp_path: Path, kind: str) -> None:
    made = study(tmp_path, kind)
    filled = Page(made.pages[0]).filled(first)
    found = STUDIES[kind].score([save(tmp_path, "1", filled)], made.key)
    assert found.rows and len(found.lines) == len(found.rows)
    assert all(len(row) == len(found.columns) for row in found.rows)
    nothing = STUDIES[kind].score([save(tmp_path, "2", {**filled, "responses": []})], made.key)
    assert nothing.rows[0] != found.rows[0]


@every_kind
def test_wrong_answers_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    made = study(tmp_path, kind)
    filled = Page(made.pages[0]).filled(first)
    question, given = next(item for box in filled["responses"] for item in box.items() if isinstance(item[1], dict))
    value = next(iter(given.values()))
    for changes, said in (
        ({"study": "t"}, f"belongs to study t, the key to study {made.key['study']}"),
        ({"responses": [{"beauty": {}}]}, "beauty: unknown question; questions are"),
        ({"responses": [{question: {"z9": value}}]}, "expected an image of the key, not z9"),
        ({"responses": [{question: value}]}, "expected a response per image"),
        ({"responses": filled["responses"] * 2}, "has two responses"),
        ({"responses": 3}, "expected a list with an object per box"),
    ):
        file = save(tmp_path, "responses", filled | changes)
        with pytest.raises(UserError, match=re.escape(said)) as error:
            STUDIES[kind].score([file], made.key)
        assert "\n" not in str(error.value) and str(file) in str(error.value)
    with pytest.raises(UserError, match="twice"):
        STUDIES[kind].score([file, file], made.key)


# --- the command line ----------------------------------------------------------------------------------------


@every_kind
def test_command_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(folder) for folder in FOLDERS[kind](tmp_path)]
    said = [] if kind == "preference" else [f"study={kind}"]
    assert main(["make", *folders, f"out={tmp_path}/out", *said]) == 0
    page, key = capsys.readouterr().out.split()
    assert (page, key) == (f"{tmp_path}/out/study-1.html", f"{tmp_path}/out-key.json")
    file = save(tmp_path, "answers-1", Page(Path(page)).filled(first))
    assert main(["score", str(file), f"key={key}", *said]) == 0
    printed = capsys.readouterr().out
    known = json.loads(Path(key).read_text())
    assert known["kind"] == kind and list(known["runs"].values()) == folders
    assert all(f"{name}: {folder}\n" in printed for name, folder in known["runs"].items())
    table = (tmp_path / "scores.csv").read_text()
    scores = STUDIES[kind].score([file], known)
    assert table == scores.table() and all(line in printed for line in scores.lines)
    other = "content" if kind == "preference" else "preference"
    assert main(["score", str(file), f"key={key}", f"study={other}"]) == 2
    assert capsys.readouterr().err == f"study={other}: the key {key} belongs to study={kind}; leave study out\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage:"), (["judge"], "usage:"), (["make", "one"], "1 run folders: make needs 2"),
        (["score", "a.json"], "score: give files of responses and key="),
        (["score", "a", "key=b"], "b: no such file"),
        (["make", "a", "b", "size=3"], "size=3: unknown key; allowed are study, out"),
        (["make", "a", "b", "study=taste"], "study=taste: allowed are preference, resemblance, content"),
        (["make", "a", "b", "study=resemblance", "min_confidence=0.5"], "min_confidence=0.5: unknown key; "),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1


def test_a_file_that_is_no_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path, "1", {"study": "s", "responses": []})
    assert main(["score", str(file), f"key={file}"]) == 2
    assert (
        capsys.readouterr().err
        == f"key={file}: is no key, images, kind, runs is missing; give the file that `make` wrote\n"
    )


def test_documented_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which they stand, with written runs in place of those that the documentation speaks of."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "run_a_user_study.md").read_text()
    commands = [shlex.split(line)[2:] for line in re.findall(r"^python scripts/user_study.py.*$", text, re.MULTILINE)]
    kinds = []
    for words in commands:
        if words[0] == "make":
            kind = next((word.removeprefix("study=") for word in words if word.startswith("study=")), "preference")
            words[1:3] = [str(folder) for folder in FOLDERS[kind](tmp_path)]
            kinds.append(kind)
        else:
            key = Path(words[-1].removeprefix("key="))
            page = Page(key.with_name(key.name.removesuffix("-key.json")) / "study-1.html")
            words[1:-1] = [str(save(tmp_path, "responses", page.filled(first)))]
        assert main(words) == 0, capsys.readouterr().err
    assert kinds == list(STUDIES) and len(commands) == 2 * len(STUDIES)
