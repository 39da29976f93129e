"""What a unit hangs on, of a network whose units look for known colours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from classifier_lens.data import planted
from classifier_lens.data.planted.objects import ORANGE
from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.scripts.evaluate import units_and_components
from classifier_lens.scripts.evaluate.metric import Setting
from classifier_lens.scripts.evaluate.unit_preference import UnitRole, unit_preference, unit_roles
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
        planted.IMAGE_SIZE,
        mean,
        std,
        "bilinear",
        "planted",
        forward_logits,
        "classifier.target=seekers",
    )


def test_a_preference_is_the_factor_that_moves_a_unit_and_its_best_value(seekers: ImageClassifier) -> None:
    breast, water = (unit_preference(seekers, Unit(FEATURES, unit)) for unit in (BREAST, WATER))
    assert (breast.factor, breast.value) == ("class", "prairie chicken") and breast.explained_variance["class"] > 0.99
    assert (water.factor, water.value) == ("background", "water") and water.explained_variance["background"] > 0.95
    assert sum(water.explained_variance.values()) == pytest.approx(1.0)


def test_a_unit_is_core_by_the_object_and_spurious_by_the_context(seekers: ImageClassifier) -> None:
    """Another bird has no such breast, another ground no water."""
    breast, water, both = unit_roles(seekers, "prairie chicken")
    assert breast.is_core and breast.is_clear and not breast.is_spurious
    assert breast.object_drop == pytest.approx(breast.activation) and breast.context_drop == pytest.approx(0, abs=1e-6)
    assert water.is_spurious and water.is_clear and not water.is_core
    assert (water.factor, water.value) == ("background", "water") and water.object_drop == pytest.approx(0, abs=0.01)
    assert both.object_drop == pytest.approx(breast.object_drop + water.object_drop, rel=1e-4)
    assert both.context_drop == pytest.approx(water.context_drop, rel=1e-4)
    assert both.is_core and not both.is_clear and both.object_drop < 2 * both.context_drop


@pytest.mark.parametrize(
    ("object_", "context", "spurious", "core", "clear"),
    [(1.0, 0.5, False, True, True), (1.0, 0.6, False, True, False), (-1.0, 0.4, False, False, True),
     (-0.4, 1.0, True, False, True), (0.6, 1.0, True, False, False), (0.0, 0.0, False, False, True)],
)  # fmt: skip
def test_roles_by_hand(object_: float, context: float, spurious: bool, core: bool, clear: bool) -> None:
    role = UnitRole(object_, context, "background", "sand", 1.0)
    assert (role.is_spurious, role.is_core, role.is_clear) == (spurious, core, clear)


def test_maps_are_compared_of_units_that_hang_on_one_thing(
    seekers: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Water is tied to the great white shark, and nothing else of what these units see is tied to a class or core to
    an untied one; the unit whose water counts more in the logit comes first."""
    assert seekers.head is not None
    setting = Setting(0, "cpu", "")
    monkeypatch.setattr(units_and_components, "shipped_classifier", lambda *_: seekers)
    monkeypatch.setattr(seekers.head.weight, "data", torch.tensor([1.0, 1.0, 2.0]).expand(len(planted.CLASSES), 3))
    assert units_and_components.spurious_and_core_units(setting) == [("great white shark", True, [BOTH, WATER])]
    assert list(units_and_components.rank_units_by_logit_drop(setting, "prairie chicken", False)) == [BOTH, BREAST]
    costs = units_and_components.rank_units_by_logit_drop(setting, "great white shark", True)
    assert costs[BOTH] == pytest.approx(2 * costs[WATER]) and costs[WATER] > 0.1
    monkeypatch.setattr(seekers.head.weight, "data", torch.tensor([1.0, 0.1, 2.0]).expand(len(planted.CLASSES), 3))
    assert units_and_components.spurious_and_core_units(setting) == [("great white shark", True, [BOTH])]
