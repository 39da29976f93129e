"""Numbers as a page writes them, by hand."""

from __future__ import annotations

import pytest

from classifier_lens.runner.report.wording import count, duration, format_number, percent, share_of, two_digits


def test_numbers_read_well() -> None:
    values: list[object] = [None, True, 3, 0.123456, "a"]
    assert [format_number(value) for value in values] == ["–", "yes", "3", "0.1235", "a"]
    assert percent(0.962) == "96.2\u00a0%"
    assert (two_digits(-0.126), two_digits(0.5, "+")) == ("−0.13", "+0.50")


@pytest.mark.parametrize(("seconds", "text"), [(3.94, "3.9 s"), (35.2, "35 s"), (465, "7.8 min"), (7560, "2.1 h")])
def test_durations_have_two_digits_or_so(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_counts_agree_with_their_nouns_and_verbs() -> None:
    assert (count(1, "class"), count(2, "class"), count(0, "image")) == ("1 class", "2 classes", "0 images")
    assert share_of(1, 4, "image", "is", "are") == "1 of 4 images is"
