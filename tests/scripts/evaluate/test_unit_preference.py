"""What a unit hangs on, of a network whose units look for known colours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from classifier_lens.data import planted
from classifier_lens.data.planted_shapes import ORANGE
from classifier_lens.models.classifier.image_classifier import ImageClassifier, ask_logits
from classifier_lens.scripts.evaluate import units_and_components
from classifier_lens.scripts.evaluate.metric import Setting
from classifier_lens.scripts.evaluate.unit_preference import Role, preference, roles
from classifier_lens.tasks.units.addressing import FEATURES, Unit

BREAST, WATER, BOTH = 0, 1, 2
BLUE = (0.06, 0.35, 0.65)  # between the waves


class Seekers(nn.Module):
    """Features: how much of the picture has the colour of a prairie chicken's breast; that of water; both together."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(planted.CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        breast, water = (
            (1 - 8 * (x - torch.tensor(c)[:, None, None]).abs().amax(dim=1)).clamp(min=0).mean(dim=(1, 2))
            for c in (ORANGE, BLUE)
        )
        out: Tensor = self.head(torch.stack([20 * breast, water, 20 * breast + water], dim=1))
        return out


@pytest.fixture(scope="module")
def seekers() -> ImageClassifier:
    mean, std = [0.0] * 3, [1.0] * 3
    return ImageClassifier(
        Seekers(),
        planted.CLASSES,
        planted.SIZE,
        mean,
        std,
        "bilinear",
        "planted",
        ask_logits,
        "classifier.target=seekers",
    )


def test_a_preference_is_the_factor_that_moves_a_unit_and_its_best_value(seekers: ImageClassifier) -> None:
    breast, water = (preference(seekers, Unit(FEATURES, unit)) for unit in (BREAST, WATER))
    assert (breast.factor, breast.value) == ("class", "prairie chicken") and breast.explained["class"] > 0.99
    assert (water.factor, water.value) == ("background", "water") and water.explained["background"] > 0.95
    assert sum(water.explained.values()) == pytest.approx(1.0)


def test_a_unit_is_core_by_the_object_and_spurious_by_the_context(seekers: ImageClassifier) -> None:
    """Another bird has no such breast, another ground no water."""
    breast, water, both = roles(seekers, "prairie chicken")
    assert breast.core and breast.clear and not breast.spurious
    assert breast.object == pytest.approx(breast.activation) and breast.context == pytest.approx(0, abs=1e-6)
    assert water.spurious and water.clear and not water.core
    assert (water.factor, water.value) == ("background", "water") and water.object == pytest.approx(0, abs=0.01)
    assert both.object == pytest.approx(breast.object + water.object, rel=1e-4)
    assert both.context == pytest.approx(water.context, rel=1e-4)
    assert both.core and not both.clear and both.object < 2 * both.context


@pytest.mark.parametrize(
    ("object_", "context", "spurious", "core", "clear"),
    [(1.0, 0.5, False, True, True), (1.0, 0.6, False, True, False), (-1.0, 0.4, False, False, True),
     (-0.4, 1.0, True, False, True), (0.6, 1.0, True, False, False), (0.0, 0.0, False, False, True)],
)  # fmt: skip
def test_roles_by_hand(object_: float, context: float, spurious: bool, core: bool, clear: bool) -> None:
    role = Role(object_, context, "background", "sand", 1.0)
    assert (role.spurious, role.core, role.clear) == (spurious, core, clear)


def test_maps_are_compared_of_units_that_hang_on_one_thing(
    seekers: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Water is tied to the great white shark, and nothing else of what these units see is tied to a class or core to
    an untied one; the unit whose water counts more in the logit comes first."""
    assert seekers.head is not None
    setting = Setting(0, "cpu", "")
    monkeypatch.setattr(units_and_components, "network", lambda *_: seekers)
    monkeypatch.setattr(seekers.head.weight, "data", torch.tensor([1.0, 1.0, 2.0]).expand(len(planted.CLASSES), 3))
    assert units_and_components.spurious_and_core(setting) == [("great white shark", True, [BOTH, WATER])]
    assert list(units_and_components.units_of(setting, "prairie chicken", False)) == [BOTH, BREAST]
    costs = units_and_components.units_of(setting, "great white shark", True)
    assert costs[BOTH] == pytest.approx(2 * costs[WATER]) and costs[WATER] > 0.1
    monkeypatch.setattr(seekers.head.weight, "data", torch.tensor([1.0, 0.1, 2.0]).expand(len(planted.CLASSES), 3))
    assert units_and_components.spurious_and_core(setting) == [("great white shark", True, [BOTH])]
