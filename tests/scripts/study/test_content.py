"""The study of contents: classes with their features' pictures, and shares by group of class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study import pages
from classifier_lens.scripts.study.content import CHOICES, CONTENTS, CORE, ContentOptions, build_study, score
from classifier_lens.scripts.study.responses import ResponseCount
from tests.scripts.study.studies import COLOURS, GROUPS, Page, audit, make_study, portraits, save


def study(tmp_path: Path, out: str = "out", audited: Path | None = None, **changes: Any) -> tuple[Page, dict[str, Any]]:
    """Page and key of a study of all classes that both runs know."""
    runs = [portraits(tmp_path), audited or audit(tmp_path)]
    (page,), key = make_study(build_study, runs, ContentOptions(out=str(tmp_path / out), **changes))
    return Page(page), key


# --- pages ---------------------------------------------------------------------------------------------------


def test_a_class_stands_above_its_features(tmp_path: Path) -> None:
    page, key = study(tmp_path)
    alternatives = [f"The class, image {i}" for i in (1, 2, 3)]
    alternatives += [f"Feature {k}, image {i}" for k in (1, 2) for i in (1, 2)]
    assert [[alt for _, alt in box] for box in page.boxes] == [alternatives] * len(GROUPS)
    assert {known["class"]: known["group"] for known in key["images"].values()} == GROUPS
    for box in page.boxes:
        for name, alt in box:
            with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
                best = (250, 250, 0) if alt.startswith("The class") else COLOURS["A"]
                assert picture.getpixel((0, 0)) == best  # the better restart, the objective that decides
    for core, contents in zip(page.questions[::2], page.questions[1::2], strict=True):
        assert (core.question, contents.question) == (CORE, CONTENTS) and core.values == [True, False]
        assert contents.several and contents.values == [name for name, _ in CHOICES]
        assert core.picture == contents.picture == page.boxes[core.box][0][0]
        assert key["images"][core.picture]["class"] in core.legend


def test_so_many_classes_and_pictures_are_shown_and_five_features(tmp_path: Path) -> None:
    page, key = study(tmp_path, audited=audit(tmp_path, features=7, samples=3), max_items=2, images_per_prompt=1)
    assert len(page.boxes) == len(key["images"]) == 2
    assert [[alt.split(",")[0] for _, alt in box] for box in page.boxes] == [
        ["The class", *(f"Feature {k}" for k in range(1, 6))]
    ] * 2


def test_the_first_five_features_are_those_of_the_lowest_ranks(tmp_path: Path) -> None:
    """A picture of a feature is as bright as its rank is high."""
    audited = audit(tmp_path, features=7)
    for line in (audited / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        for kind in ("result", "sample_01"):
            Image.new("RGB", (8, 8), (record["rank"],) * 3).save(audited / record["images"][kind])
    page, _ = study(tmp_path, audited=audited)
    for box in page.boxes:
        seen: Counter[Any] = Counter()
        for name, _ in box[3:]:
            with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
                seen[picture.getpixel((0, 0))] += 1
        assert seen == {(rank,) * 3: 2 for rank in range(1, 6)}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    classes, features = portraits(tmp_path), audit(tmp_path)
    wrong = [
        ([features, classes], "task=spurious_audit; study=content needs a run of task=diffexplainer_class here"),
        ([classes, audit(tmp_path / "1", network="planted_vit")], "explain planted_clean and planted_vit"),
        ([portraits(tmp_path / "2", ["lifeboat"]), features], "explain no class in common"),
    ]
    for runs, said in wrong:
        with pytest.raises(UserError, match=said):
            pages.make_pages(build_study, runs, ContentOptions(out=str(tmp_path / "out")))


# --- score ---------------------------------------------------------------------------------------------------

KEY = {
    "study": "s",
    "images": {
        "b1": {"class": "x", "group": "biased"}, "b2": {"class": "y", "group": "biased"},
        "u1": {"class": "z", "group": "unbiased"},
    },
}  # fmt: skip


def by_name(counts: list[ResponseCount]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(c.question, c.group): (c.rate.successes, c.rate.total) for c in counts}


def test_contents_are_counted_by_group_and_in_all(tmp_path: Path) -> None:
    boxes = [
        [
            {CORE: {"b1": True}, CONTENTS: {"b1": ["context"]}}, {CONTENTS: {"b2": ["context", "texture"]}},
            {CORE: {"u1": True}, CONTENTS: {"u1": ["object"]}},
        ],
        [{CORE: {"b1": False}, CONTENTS: {"b1": ["none"]}}, {CORE: {"b2": False}}, {}],
    ]  # fmt: skip
    files = [save(tmp_path, str(i), {"study": "s", "responses": own}) for i, own in enumerate(boxes)]
    counts = score(files, KEY)
    found = by_name(counts)
    assert len(found) == len(counts) == 3 * (1 + len(CHOICES))
    assert {of: found[CORE, of] for of in ("biased", "unbiased", "all")} == {
        "biased": (1, 3), "unbiased": (1, 1), "all": (2, 4),
    }  # fmt: skip
    assert [found[name, "biased"] for name, _ in CHOICES] == [(0, 3), (0, 3), (0, 3), (1, 3), (2, 3), (1, 3)]
    assert [found[name, "unbiased"] for name, _ in CHOICES] == [(1, 1), (0, 1), (0, 1), (0, 1), (0, 1), (0, 1)]
    assert [found[name, "all"] for name, _ in CHOICES] == [(1, 4), (0, 4), (0, 4), (1, 4), (2, 4), (1, 4)]
    # Wilson's interval of 2 of 4, z = 1.96: (0.5 + z²/8 ± z √(0.25/4 + z²/64)) / (1 + z²/4)
    context = next(c for c in counts if (c.question, c.group) == ("context", "all"))
    assert context.rate.interval == pytest.approx((0.15004, 0.84996), abs=1e-4)


def test_without_labels_there_is_one_group(tmp_path: Path) -> None:
    page, key = study(tmp_path, audited=audit(tmp_path, groups=None))
    file = save(tmp_path, "1", page.filled(lambda asked: ["shape"] if asked.several else True))
    found = by_name(score([file], key))
    assert {of for _, of in found} == {"all"}
    assert found[CORE, "all"] == found["shape", "all"] == (3, 3) and found["object", "all"] == (0, 3)


def test_answers_of_a_page_reach_their_groups(tmp_path: Path) -> None:
    """Whoever sees context in biased classes alone says so, wherever these stand."""
    page, key = study(tmp_path)

    def seen(picture: str | None) -> list[str]:
        return ["context", "shape"] if key["images"][picture]["group"] == "biased" else ["object"]

    file = save(tmp_path, "1", page.filled(lambda asked: seen(asked.picture) if asked.several else None))
    found = by_name(score([file], key))
    assert {of: found["context", of] for of in (*GROUPS.values(), "all")} == {
        "biased": (1, 1), "unbiased": (0, 1), "medium": (0, 1), "all": (1, 3),
    }  # fmt: skip


@pytest.mark.parametrize("value", [[], ["context", "context"], ["none", "object"], ["colour"], "object", True, [3]])
def test_other_values_are_refused(tmp_path: Path, value: Any) -> None:
    file = save(tmp_path, "1", {"study": "s", "responses": [{CONTENTS: {"b1": value}}]})
    with pytest.raises(UserError, match="expected a list of object, parts, shape, texture, context, none"):
        score([file], KEY)
