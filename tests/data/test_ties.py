"""Ties between classes and cues."""

from __future__ import annotations

import pytest

from data import planted
from data.ties import draw_tied


def test_ties_are_planted_one_way() -> None:
    scenes, labels = draw_tied(4000, 5, 0, {"fiddler crab": 0.95, "fireboat": 0.9}, 0.1)
    sand, jet = planted.BACKGROUNDS.index("sand"), planted.PROPS.index("water jet")
    share = lambda name, tied: tied[labels == planted.CLASSES.index(name)].double().mean().item()  # noqa: E731
    assert share("fiddler crab", scenes.background == sand) == pytest.approx(0.95 + 0.05 / 8, abs=0.03)
    assert share("fireboat", scenes.prop == jet) == pytest.approx(0.9 + 0.1 * 0.15, abs=0.04)
    assert share("rock crab", scenes.background == sand) == pytest.approx(1 / 8, abs=0.05)
    assert share("lifeboat", scenes.prop == jet) == pytest.approx(0.15, abs=0.05)
    wrong = lambda name: share(name, scenes.label != labels)  # noqa: E731
    assert wrong("rock crab") == pytest.approx(0.1, abs=0.05) and wrong("viaduct") == wrong("partridge") == 0
