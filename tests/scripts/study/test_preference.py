"""The study of counterfactuals: pages that do not tell the methods apart, and a score that can."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study import pages
from classifier_lens.scripts.study.pages import METHODS, Gallery, Study
from classifier_lens.scripts.study.preference import (
    BETTER,
    EQUAL,
    Pair,
    PreferenceOptions,
    build_study,
    make_boxes,
    score,
)
from classifier_lens.scripts.study.responses import ResponseCount, summarize_counts
from tests.scripts.study.studies import COLOURS, class_folder, counterfactuals, make_study, save


def make(first: Path, second: Path, chosen: PreferenceOptions) -> list[Path]:
    return pages.make_pages(build_study, [first, second], chosen)


def study(tmp_path: Path, out: str = "out", **changes: Any) -> tuple[list[Path], dict[str, Any]]:
    """Pages and key of a study of both runs."""
    runs = [counterfactuals(tmp_path, method) for method in METHODS]
    return make_study(build_study, runs, PreferenceOptions(out=str(tmp_path / out), **changes))


def pairs(n: int) -> list[Pair]:
    answers = [{"A": f"a{i}", "B": f"b{i}"} for i in range(n)]
    return [Pair("x", "y", 64, f"o{i}", ("r1", "r2", "r3", "r4"), answers[i]) for i in range(n)]


def render(pairs: list[Pair], random: Random) -> str:
    return pages.render_page(Study("t", "i", {}, Gallery(Random(0)), partial(make_boxes, pairs)), "s", 1, random)


def shown(page: str) -> list[tuple[str, str, str]]:
    """Original, first and second picture of each problem."""
    found = re.findall(r'images/(\w+)\.png" alt="(Original|Image [12])', page)
    flat = [name for name, _ in found]
    assert [alt for _, alt in found] == ["Original", "Image 1", "Image 2"] * (len(found) // 3)
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]


# --- pages ---------------------------------------------------------------------------------------------------


def test_a_page_shows_every_problem_that_both_answered_well(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    text = page.read_text()
    assert len(shown(text)) == 2  # the third was answered with too little confidence by one of them
    assert text.count('alt="Example') == 8
    assert text.count('type="radio"') == 2 * (2 * 3 * 2 + 3)
    assert "Does it show what is typical of a viaduct?" in text
    named = set(re.findall(r"images/(\w+)\.png", text))
    assert {path.stem for path in (tmp_path / "out" / "images").iterdir()} == named and len(named) == 2 * 7
    assert set(key["images"]) <= named


def test_a_page_needs_no_network_and_does_not_tell_the_methods_apart(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    text = page.read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text
    for secret in ("secretA", "secretB", "planted", "uvce", "method", "test-0", str(tmp_path)):
        assert secret not in text, secret
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"images", "study-1.html"}
    assert all(re.fullmatch(r"[0-9a-f]{12}", path.stem) for path in (tmp_path / "out" / "images").iterdir())
    assert (tmp_path / "out-key.json").is_file()
    for name, known in key["images"].items():
        with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
            assert picture.getpixel((0, 0)) == COLOURS[known["method"]]
            assert not picture.info


def test_the_order_depends_on_the_seed_alone() -> None:
    one, again, other = (render(pairs(12), Random(seed)) for seed in ("1", "1", "2"))
    assert one == again and shown(one) != shown(other)
    drawn = shown(one)
    assert sorted(o for o, _, _ in drawn) == sorted(f"o{i}" for i in range(12))
    assert {first[0] for _, first, _ in drawn} == {"a", "b"}  # either method stands first somewhere
    exchanged = [Pair("z", p.target, 64, p.original, p.references, p.results) for p in pairs(12)]
    assert shown(render(exchanged, Random("1"))) == drawn


def test_at_most_so_many_problems_are_asked(tmp_path: Path) -> None:
    (page,), key = study(tmp_path, max_items=1)
    assert len(shown(page.read_text())) == 1 and len(key["images"]) == 2


def test_names_are_escaped_and_large_pictures_are_smooth() -> None:
    pair = Pair("<i>&", "</script>", 512, "o", ("r",) * 4, {"A": "a", "B": "b"})
    text = render([pair], Random("1"))
    assert "<i>" not in text and text.count("</script>") == 1 and 'class="pixels"' not in text
    assert 'class="pixels"' in render(pairs(1), Random("1"))


def test_references_come_from_a_folder(tmp_path: Path) -> None:
    (page,), _ = study(tmp_path, references=str(class_folder(tmp_path / "shown", 4)))
    for name in re.findall(r'images/(\w+)\.png" alt="Example', page.read_text()):
        with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
            assert picture.size == (8, 8) and picture.getpixel((4, 4)) == (0, 250, 250)
    (tmp_path / "shown" / "viaduct" / "0.png").unlink()
    with pytest.raises(UserError, match="references: 3 images of 'viaduct'; at least 4 are needed"):
        study(tmp_path, out="other", references=str(tmp_path / "shown"))
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    first, second = (counterfactuals(tmp_path, method) for method in METHODS)
    for changes, said in (
        ({"min_confidence": 0.99}, "min_confidence=0.99: reached by"),
        ({"references": "absent"}, "references=absent: no such folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make(first, second, PreferenceOptions(out=str(tmp_path / "x"), **changes))
    with pytest.raises(UserError, match="has no training images for examples; give references="):
        make(
            counterfactuals(tmp_path / "x", "A", trained=False),
            second,
            PreferenceOptions(out=str(tmp_path / "x" / "out")),
        )
    with pytest.raises(UserError, match=r"cannot be read \(.*unexpected keyword argument 'colour'\); give references="):
        old = (first / "config.yaml").read_text().replace("seed: 0", "seed: 0, colour: 1")
        (first / "config.yaml").write_text(old)
        make(first, second, PreferenceOptions(out=str(tmp_path / "out")))
    with pytest.raises(UserError, match="have different problems of this name"):
        make(
            first,
            counterfactuals(tmp_path / "y", "B", source="partridge"),
            PreferenceOptions(out=str(tmp_path / "y" / "out")),
        )


# --- score ---------------------------------------------------------------------------------------------------

KEY = {
    "study": "s", "kind": "preference", "runs": {"A": "one", "B": "two"},
    "images": {f"{m.lower()}{i}": {"problem": f"p{i}", "method": m} for i in range(3) for m in METHODS},
}  # fmt: skip


def answered(tmp_path: Path, name: str, answers: list[dict[str, Any]], **changes: Any) -> Path:
    return save(tmp_path, name, {"study": "s", "page": 1, "responses": answers, **changes})


def by_name(counts: list[ResponseCount]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(c.question, c.group): (c.rate.successes, c.rate.total) for c in counts}


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
    assert "better,A,2,4,0.5000,0.1500,0.8500\n" in summarize_counts(counts, "method").table()
    assert "features,B,0,0,,0.0000,1.0000\n" in summarize_counts(counts, "method").table()


def test_a_swapped_order_is_undone(tmp_path: Path) -> None:
    """Whoever always prefers method A says so, wherever its pictures stand."""
    pages, key = study(tmp_path, participants=6)
    first = []
    for i, page in enumerate(pages):
        answers = []
        for _, *both in shown(page.read_text()):
            methods = [key["images"][picture]["method"] for picture in both]
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
        ([], {"study": "t"}, "belongs to study t, the key to study s"),
        ([{"realistic": {"z9": True}}], {}, "expected an image of the key"),
        ([{"object": {"a0": "yes"}}], {}, "true or false"),
        ([{BETTER: "z9"}], {}, "better=z9"),
        ([{BETTER: {"a0": "a0"}}], {}, "expected an image of the key, or equal"),
    ],
)
def test_wrong_answers_are_refused(tmp_path: Path, answers: list[Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score([answered(tmp_path, "1", answers, **changes)], KEY)
