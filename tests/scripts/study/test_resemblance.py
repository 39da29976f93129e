"""The study of explanations: what is shown beside what, and a t-test that is known by hand."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from classifier_lens.runner.types import UserError
from classifier_lens.scripts.study import pages as study_pages
from classifier_lens.scripts.study.pages import METHODS
from classifier_lens.scripts.study.resemblance import (
    RESEMBLANCE,
    MeanRating,
    Rating,
    ResemblanceOptions,
    build_study,
    format_scores,
    read_ratings,
    score_ratings,
)
from tests.scripts.study.studies import COLOURS, REAL, SIDE, Page, audit, make_study, save

# --- pages ---------------------------------------------------------------------------------------------------


def study(tmp_path: Path, out: str = "out", **changes: Any) -> tuple[list[Page], dict[str, Any]]:
    """Pages and key of a study of two audits: of three pictures an answer, and of one."""
    runs = [audit(tmp_path, "A", samples=3), audit(tmp_path, "B", samples=1)]
    pages, key = make_study(build_study, runs, ResemblanceOptions(out=str(tmp_path / out), **changes))
    return [Page(page) for page in pages], key


def test_every_feature_stands_beside_either_explanation(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    assert len(page.boxes) == 3 * 2 * 2
    alternatives = ["Real image with highlighted parts", "Generated explanation"]
    assert all([alt for _, alt in box] == alternatives for box in page.boxes)
    assert Counter(Counter(box[0][0] for box in page.boxes).values()) == {2: 6}
    assert {box[1][0] for box in page.boxes} == key["images"].keys()
    for real, pair in {
        box[0][0]: [b[1][0] for b in page.boxes if b[0] == box[0]] for box in page.boxes
    }.items():  # fmt: skip
        assert {key["images"][name]["method"] for name in pair} == set(METHODS)
        assert len({key["images"][name]["problem"] for name in pair}) == 1, real
    for name, known in key["images"].items():
        assert known["problem"].endswith("-both")  # the objective that decides
        with Image.open(tmp_path / "out" / "images" / f"{name}.png") as picture:
            assert picture.getpixel((0, 0)) == COLOURS[known["method"]] and picture.size == (SIDE, SIDE)


def test_the_highlighted_part_keeps_its_colours_and_the_rest_loses_them(tmp_path: Path) -> None:
    (page,), _ = study(tmp_path)
    for box in page.boxes:
        with Image.open(tmp_path / "out" / "images" / f"{box[0][0]}.png") as picture:
            assert picture.getpixel((SIDE - 1, 0)) == REAL
            grey = picture.getpixel((0, 0))
    assert isinstance(grey, tuple) and len(set(grey)) == 1


def test_a_rating_is_a_whole_number_from_1_to_5(tmp_path: Path) -> None:
    (page,), _ = study(tmp_path)
    assert [asked.values for asked in page.questions] == [[1, 2, 3, 4, 5]] * 12
    assert all(asked.picture == box[1][0] for asked, box in zip(page.questions, page.boxes, strict=True))


def test_at_most_so_many_features_are_asked(tmp_path: Path) -> None:
    (page,), key = study(tmp_path, max_items=1)
    assert len(page.boxes) == len(key["images"]) == 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    first = audit(tmp_path, "A")
    for other, said in (
        (audit(tmp_path / "1", "B", unit="u9"), "have different problems of this name"),
        (audit(tmp_path / "2", "B", without="hirescam_training"), "has no activation map of the feature"),
        (audit(tmp_path / "3", "B", features=0), "holds no results"),
        (audit(tmp_path / "4", "B", objective="class"), "has no result of objective both"),
        (audit(tmp_path / "5", "B", name="other"), "explain no feature in common"),
    ):
        with pytest.raises(UserError, match=said):
            study_pages.make_pages(build_study, [first, other], ResemblanceOptions(out=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()


# --- score ---------------------------------------------------------------------------------------------------


def rated(*values: tuple[int, str, str, int]) -> list[Rating]:
    return [Rating(*value) for value in values]


def test_means_intervals_and_paired_test_are_those_known_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, so t = 2 √3 with 2 degrees of freedom."""
    given = rated(
        (0, "p", "A", 3), (0, "p", "B", 2), (0, "q", "A", 4), (0, "q", "B", 2), (1, "p", "A", 5), (1, "p", "B", 2),
        (1, "q", "B", 2),  # without its pair: of B's mean alone
    )  # fmt: skip
    a, b, pairs, participants = score_ratings(given)
    t95 = 4.302653  # of 2 degrees of freedom
    assert (a.group, a.n, a.value) == ("A", 3, 4.0) and (a.t, a.p) == (None, None)
    assert (a.low, a.high) == pytest.approx((4 - t95 / sqrt(3), 4 + t95 / sqrt(3)))
    assert b == MeanRating("B", 4, 2.0, 2.0, 2.0)
    assert (pairs.group, pairs.n, pairs.value, pairs.df) == ("pairs", 3, 2.0, 2)
    assert pairs.t == pytest.approx(2 * sqrt(3))
    assert (pairs.low, pairs.high) == pytest.approx((2 - t95 / sqrt(3), 2 + t95 / sqrt(3)))
    # two-sided p of 2 degrees of freedom: 1 - t / √(t² + 2)
    assert pairs.p == pytest.approx(1 - sqrt(12 / 14))
    known = stats.ttest_rel([3, 4, 5], [2, 2, 2])
    assert (pairs.t, pairs.p) == pytest.approx((known.statistic, known.pvalue))
    # the participants' own mean differences, 1.5 and 3: t = 2.25 / (1.5 / 2), of 1 degree of freedom
    assert (participants.n, participants.value, participants.t, participants.df) == pytest.approx((2, 2.25, 3.0, 1))


def test_ratings_of_different_people_are_compared_by_welch() -> None:
    first, second = [3, 4, 5, 5], [1, 2, 2]
    given = [Rating(i, f"p{i}", "A", v) for i, v in enumerate(first)]
    given += [Rating(9, f"p{i}", "B", v) for i, v in enumerate(second)]
    *_, found = score_ratings(given)
    known = stats.ttest_ind(first, second, equal_var=False)
    # by hand: variances 11/12 of 4 and 1/3 of 3
    error = 11 / 48 + 1 / 9
    assert found.group == "Welch" and found.n == 7 and found.value == pytest.approx(4.25 - 5 / 3)
    assert found.t == pytest.approx((4.25 - 5 / 3) / sqrt(error)) == pytest.approx(known.statistic)
    assert found.df == pytest.approx(error**2 / ((11 / 48) ** 2 / 3 + (1 / 9) ** 2 / 2))
    assert found.p == pytest.approx(known.pvalue)
    assert found.low is not None and found.high is not None
    assert found.low < 0.0001 + 4.25 - 5 / 3 - 2 * sqrt(error) and found.low + found.high == pytest.approx(2 * 31 / 12)


def test_equal_answers_everywhere_differ_by_nothing(tmp_path: Path) -> None:
    (page,), key = study(tmp_path)
    file = save(tmp_path, "responses", page.filled(lambda asked: 4))
    a, b, pairs, participants = score_ratings(read_ratings([file], key))
    assert a == MeanRating("A", 6, 4.0, 4.0, 4.0) and b == MeanRating("B", 6, 4.0, 4.0, 4.0)
    assert pairs == MeanRating("pairs", 6, 0.0, 0.0, 0.0)  # t = 0 / 0 is no number
    assert participants == MeanRating("participants", 1, 0.0)


def test_exchanged_runs_exchange_the_sign() -> None:
    given = rated((0, "p", "A", 3), (0, "p", "B", 2), (1, "p", "A", 5), (1, "p", "B", 1), (2, "p", "A", 1))
    exchanged = [Rating(r.participant, r.problem, "B" if r.method == "A" else "A", r.value) for r in given]
    one, other = score_ratings(given)[2], score_ratings(exchanged)[2]
    assert one.t is not None and other.t == pytest.approx(-one.t) and other.p == pytest.approx(one.p)
    assert other.value == -2.5


def test_nothing_answered_says_nothing() -> None:
    assert score_ratings([]) == [MeanRating("A", 0), MeanRating("B", 0), MeanRating("Welch", 0)]
    assert score_ratings(rated((0, "p", "A", 3), (0, "q", "B", 1)))[2] == MeanRating("Welch", 2, 2.0)
    assert format_scores(score_ratings([])).rows[0] == ["mean", "A", "", "", "", 0, "", "", ""]


def test_answers_of_pages_reach_the_table(tmp_path: Path) -> None:
    """Two participants who rate A by 4 and 5, B by 2 and 1, wherever they stand."""
    pages, key = study(tmp_path, participants=2)
    method = {name: known["method"] for name, known in key["images"].items()}
    values = [{"A": 4, "B": 2}, {"A": 5, "B": 1}]
    files = [
        save(tmp_path, str(i), page.filled(lambda asked, own=own: own[method[str(asked.picture)]]))  # type: ignore[misc]
        for i, (page, own) in enumerate(zip(pages, values, strict=True))
    ]
    found = format_scores(score_ratings(read_ratings(files, key)))
    table = found.table().splitlines()
    assert table[0] == "quantity,of,mean,low,high,n,t,df,p"
    assert table[1].startswith("mean,A,4.5,") and table[2].startswith("mean,B,1.5,")
    # differences 2 and 4, six times each: standard deviation √(12/11), t = 3 √11
    assert table[3].startswith("difference,pairs,3,") and ",12,9.94987,11," in table[3]
    # of the two participants 2 and 4: t = 3, p = 1/2 - atan(3)/π, twice
    assert table[4].startswith("difference,participants,3,") and table[4].endswith(",2,3,1,0.204833")
    assert "t = 9.95, df = 11, p = " in found.lines[2] and found.lines[0].startswith("A  ")


@pytest.mark.parametrize("value", [0, 6, 3.0, True, "3", None, [3]])
def test_other_values_are_refused(tmp_path: Path, value: Any) -> None:
    key = {"study": "s", "images": {"a": {"problem": "p", "method": "A"}}}
    file = save(tmp_path, "1", {"study": "s", "responses": [{RESEMBLANCE: {"a": value}}]})
    with pytest.raises(UserError, match="expected a whole number from 1 to 5"):
        read_ratings([file], key)
