"""The user study: pages that do not tell the methods apart, and a score that can."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from runner.types import UserError
from scripts.user_study import (
    BETTER,
    EQUAL,
    METHODS,
    QUESTIONS,
    Count,
    Make,
    Pair,
    main,
    make,
    render,
    score,
    table,
)  # fmt: skip

COLOURS = {"A": (250, 10, 10), "B": (10, 10, 250)}


def class_folder(root: Path, n: int) -> Path:
    """A data set of `n` pictures of a viaduct, 16 x 20 px and cyan."""
    for i in range(n):
        (root / "viaduct").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 20), (0, 250, 250)).save(root / "viaduct" / f"{i}.png")
    return root


def run_folder(root: Path, method: str, problems: int = 3, trained: bool = True, **changes: Any) -> Path:
    """A run of `problems` questions whose answers are of the method's colour; the last one's confidence is low."""
    folder = root / "uvce" / "planted_ddim-planted_clean" / f"secret{method}"
    lines = []
    for i in range(problems):
        name = f"test-{i}-viaduct"
        images = {kind: f"images/{name}/{kind}.png" for kind in ("original", "best")}
        for kind, colour in (("original", (9 * i, 200, 0)), ("best", COLOURS[method])):
            (folder / images[kind]).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), colour).save(folder / images[kind])
        sure = 0.95 if i < problems - 1 or method == "A" else 0.5
        record = {
            "name": name, "source": "rock crab", "target": "viaduct", "confidence_after": {"viaduct": sure},
            "images": images, **changes,
        }  # fmt: skip
        lines.append(json.dumps(record) + "\n")
    (folder / "results.jsonl").write_text("".join(lines))
    training = f"{{_target_: data.folder.ImageFolder, path: {class_folder(root / 'training', 9)}, seed: 0}}"
    config = "task: {_target_: tasks.uvce.Uvce}\n" + (f"training: {training}\n" if trained else "")
    (folder / "config.yaml").write_text(config)
    return folder


def study(tmp_path: Path, out: str = "out", **changes: Any) -> tuple[list[Path], dict[str, Any]]:
    """Pages and key of a study of both runs."""
    folders = [run_folder(tmp_path, method) for method in METHODS]
    *pages, key = make(folders[0], folders[1], Make(out=str(tmp_path / out), **changes))
    return pages, json.loads(key.read_text())


def pairs(n: int) -> list[Pair]:
    answers = [{"A": f"a{i}", "B": f"b{i}"} for i in range(n)]
    return [Pair(f"p{i}", "x", "y", 64, f"o{i}", ("r1", "r2", "r3", "r4"), answers[i]) for i in range(n)]


def shown(page: str) -> list[tuple[str, str, str]]:
    """Original, first and second picture of each problem."""
    found = re.findall(r'pictures/(\w+)\.png" alt="(Original|Picture [12])', page)
    flat = [name for name, _ in found]
    assert [alt for _, alt in found] == ["Original", "Picture 1", "Picture 2"] * (len(found) // 3)
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]


# --- pages ---------------------------------------------------------------------------------------------------


def test_a_page_shows_every_problem_that_both_answered_well(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    text = page.read_text()
    assert len(shown(text)) == 2  # the third was answered with too little confidence by one of them
    assert text.count('alt="Example') == 8
    assert text.count('type="radio"') == 2 * (2 * 3 * 2 + 3)
    assert "Does it show what is typical of a viaduct?" in text
    named = set(re.findall(r"pictures/(\w+)\.png", text))
    assert {path.stem for path in (tmp_path / "out" / "pictures").iterdir()} == named and len(named) == 2 * 7
    assert set(key["pictures"]) <= named


def test_a_page_needs_no_network_and_does_not_tell_the_methods_apart(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    text = page.read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text
    for secret in ("secretA", "secretB", "planted", "uvce", "method", "test-0", str(tmp_path)):
        assert secret not in text, secret
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pictures", "study-1.html"}
    assert all(re.fullmatch(r"[0-9a-f]{12}", path.stem) for path in (tmp_path / "out" / "pictures").iterdir())
    assert (tmp_path / "out-key.json").is_file()
    for name, known in key["pictures"].items():
        with Image.open(tmp_path / "out" / "pictures" / f"{name}.png") as picture:
            assert picture.getpixel((0, 0)) == COLOURS[known["method"]]
            assert not picture.info


def test_the_order_depends_on_the_seed_alone() -> None:
    one, again, other = (render("s", 1, pairs(12), Random(seed)) for seed in ("1", "1", "2"))
    assert one == again and shown(one) != shown(other)
    drawn = shown(one)
    assert sorted(o for o, _, _ in drawn) == sorted(f"o{i}" for i in range(12))
    assert {first[0] for _, first, _ in drawn} == {"a", "b"}  # either method stands first somewhere
    exchanged = [Pair(p.name, "z", p.target, 64, p.original, p.references, p.answers) for p in pairs(12)]
    assert shown(render("t", 2, exchanged, Random("1"))) == drawn


def test_participants_see_orders_of_their_own_and_a_seed_makes_the_same_study(tmp_path: Path) -> None:
    pages, key = study(tmp_path, participants=8)
    orders = [tuple(shown(page.read_text())) for page in pages]
    assert len(set(orders)) > 1
    assert len({tuple(sorted(o for o, _, _ in order)) for order in orders}) == 1
    again, key_again = study(tmp_path, out="again", participants=8)
    assert [page.read_text() for page in again] == [page.read_text() for page in pages] and key_again == key
    assert study(tmp_path, out="other", seed=1)[1]["pictures"].keys().isdisjoint(key["pictures"])


def test_at_most_so_many_problems_are_asked(tmp_path: Path) -> None:
    (page,), key = study(tmp_path, most=1)
    assert len(shown(page.read_text())) == 1 and len(key["pictures"]) == 2


def test_names_are_escaped_and_large_pictures_are_smooth() -> None:
    pair = Pair("p", "<i>&", "</script>", 512, "o", ("r",) * 4, {"A": "a", "B": "b"})
    text = render("s", 1, [pair], Random("1"))
    assert "<i>" not in text and text.count("</script>") == 1 and 'class="pixels"' not in text
    assert 'class="pixels"' in render("s", 1, pairs(1), Random("1"))


def test_references_come_from_a_folder(tmp_path: Path) -> None:
    (page,), _ = study(tmp_path, references=str(class_folder(tmp_path / "shown", 4)))
    for name in re.findall(r'pictures/(\w+)\.png" alt="Example', page.read_text()):
        with Image.open(tmp_path / "out" / "pictures" / f"{name}.png") as picture:
            assert picture.size == (8, 8) and picture.getpixel((4, 4)) == (0, 250, 250)
    (tmp_path / "shown" / "viaduct" / "0.png").unlink()
    with pytest.raises(UserError, match="references: 3 pictures of 'viaduct'; at least 4 are needed"):
        study(tmp_path, out="other", references=str(tmp_path / "shown"))
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path, method) for method in METHODS)
    for changes, said in (
        ({"least": 0.99}, "least=0.99: no problem"), ({"participants": 0}, "participants=0"),
        ({"references": "absent"}, "references=absent: no such folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make(first, second, Make(out=str(tmp_path / "x"), **changes))
    with pytest.raises(UserError, match="names no training pictures; give references="):
        make(run_folder(tmp_path / "x", "A", trained=False), second, Make(out=str(tmp_path / "x" / "out")))
    with pytest.raises(UserError, match=r"cannot be read \(.*unexpected keyword argument 'colour'\); give references="):
        old = (first / "config.yaml").read_text().replace("seed: 0", "seed: 0, colour: 1")
        (first / "config.yaml").write_text(old)
        make(first, second, Make(out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="do not answer the same question"):
        make(first, run_folder(tmp_path / "y", "B", source="partridge"), Make(out=str(tmp_path / "y" / "out")))
    study(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        study(tmp_path)


# --- score ---------------------------------------------------------------------------------------------------

KEY = {
    "study": "s", "methods": {"A": "one", "B": "two"},
    "pictures": {f"{m.lower()}{i}": {"problem": f"p{i}", "method": m} for i in range(3) for m in METHODS},
}  # fmt: skip


def answered(tmp_path: Path, name: str, answers: list[dict[str, Any]], **changes: Any) -> Path:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({"study": "s", "page": 1, "answers": answers, **changes}))
    return file


def by_name(counts: list[Count]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(c.question, c.method): (c.rate.successes, c.rate.total) for c in counts}


def test_answers_are_counted_by_method_over_all_participants(tmp_path: Path) -> None:
    one = answered(tmp_path, "1", [
        {"realistic": {"a0": True, "b0": False}, "features": {"a0": True}, BETTER: "a0"},
        {"realistic": {"b1": False, "a1": True}, BETTER: EQUAL},
        {},
    ])  # fmt: skip
    two = answered(tmp_path, "2", [{"realistic": {"b0": True, "a0": False}, BETTER: "b0"}, {BETTER: "a2"}])
    counts = score([one, two], KEY)
    assert by_name(counts) == {
        ("realistic", "A"): (2, 3), ("realistic", "B"): (1, 3), ("features", "A"): (1, 1), ("features", "B"): (0, 0),
        ("object", "A"): (0, 0), ("object", "B"): (0, 0),
        (BETTER, "A"): (2, 4), (BETTER, "B"): (1, 4), (BETTER, EQUAL): (1, 4),
    }  # fmt: skip
    # 2 of 4 with z = 1.96: (0.5 + z²/8 ± z √(0.25/4 + z²/64)) / (1 + z²/4)
    assert "better,A,2,4,0.5000,0.1500,0.8500\n" in table(counts)
    assert "features,B,0,0,,0.0000,1.0000\n" in table(counts)


def test_a_swapped_order_is_undone(tmp_path: Path) -> None:
    """Whoever always prefers method A says so, wherever its pictures stand."""
    pages, key = study(tmp_path, participants=6)
    first = []
    for i, page in enumerate(pages):
        answers = []
        for _, *both in shown(page.read_text()):
            methods = [key["pictures"][picture]["method"] for picture in both]
            first.append(methods[0])
            answers.append({
                "realistic": {p: m == "A" for p, m in zip(both, methods, strict=True)},
                BETTER: both[methods.index("A")],
            })  # fmt: skip
        answered(tmp_path, f"answers{i}", answers, study=key["study"])
    assert set(first) == set(METHODS)
    counts = by_name(score([tmp_path / f"answers{i}.json" for i in range(6)], key))
    assert counts["realistic", "A"] == (12, 12) and counts["realistic", "B"] == (0, 12)
    assert counts[BETTER, "A"] == (12, 12) and counts[BETTER, "B"] == counts[BETTER, EQUAL] == (0, 12)


@pytest.mark.parametrize(
    ("answers", "changes", "said"),
    [
        ([], {"study": "t"}, "answers the study t, the key is that of s"),
        ([{"realistic": {"z9": True}}], {}, "wanted is a picture of the key"),
        ([{"object": {"a0": "yes"}}], {}, "true or false"),
        ([{BETTER: "z9"}], {}, "better=z9"),
    ],
)
def test_wrong_answers_are_refused(
    tmp_path: Path, answers: list[dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        score([answered(tmp_path, "1", answers, **changes)], KEY)


def test_an_answer_file_counts_once(tmp_path: Path) -> None:
    file = answered(tmp_path, "1", [])
    with pytest.raises(UserError, match="twice"):
        score([file, file], KEY)


# --- the command line ----------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(run_folder(tmp_path, method)) for method in METHODS]
    assert main(["make", *folders, f"out={tmp_path}/out"]) == 0
    page, key = capsys.readouterr().out.split()
    assert (page, key) == (f"{tmp_path}/out/study-1.html", f"{tmp_path}/out-key.json")
    known = json.loads(Path(key).read_text())
    picture = next(name for name, what in known["pictures"].items() if what["method"] == "B")
    file = answered(tmp_path, "1", [{"realistic": {picture: True}}], study=known["study"])
    assert main(["score", str(file), f"key={key}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"realistic +B +100\.0 %  \[20\.7, 100\.0\]  1 of 1\n", said) and f"A: {folders[0]}" in said
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1 + 2 * len(QUESTIONS) + 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage:"), (["judge"], "usage:"), (["make", "one"], "1 run folders: wanted are 2"),
        (["score", "a.json"], "score: wanted are files of answers and key="),
        (["score", "a", "key=b"], "b: no such file"),
        (["make", "a", "b", "size=3"], "size=3: allowed are paths and out="),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
