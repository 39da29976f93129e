"""When a change is a success, and the text that tells the numbers."""

from __future__ import annotations

import pytest

from classifier_lens.tasks.analysis.success import change_success, comparison_text


@pytest.mark.parametrize(("value", "said"), [(5.28, "5.28 < 5.83, x"), (6.0, "6 > 5.83, x"), (5.83, "5.83 = 5.83, x")])
def test_a_number_beside_what_it_is_measured_by(value: float, said: str) -> None:
    assert comparison_text(value, 5.83, "x") == said


@pytest.mark.parametrize(
    ("direction", "after", "success"), [(1, 2.6, True), (1, 2.4, False), (-1, 2.6, False), (-1, -0.6, True)]
)
def test_a_change_counts_in_its_direction(direction: int, after: float, success: bool) -> None:
    found = change_success(1.0, after, 0.5, direction, 3.0)
    assert found["success"] is success
    assert found["criterion"].startswith(
        f"1 to {after} (required: {'+' if direction == 1 else '-'}3 standard deviations"
    )
