"""Which class is asked for."""

from __future__ import annotations

import pytest
import torch

from classifier_lens.data import planted
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import Example, UserError, matching_indices
from classifier_lens.tasks.prompts.target_rules import (
    TARGET_RULES,
    RuleInputs,
    class_indices,
    resolve_class_name,
    targets,
    targets_per_image,
)
from tests.conftest import TinyClassifier
from tests.tasks.tiny import Pictures, colour, world


class Pairs:
    """A data set that knows the planted pairs, or nothing."""

    def __init__(self, knows: bool = True) -> None:
        self.labels: tuple[str, ...] = planted.CLASSES
        self.digest = "pairs"
        self.knows = knows

    def __len__(self) -> int:
        return 0

    def __getitem__(self, i: int) -> Example:
        raise IndexError(i)

    def indices(self, label: str) -> list[int]:
        return []

    def nearest_class(self, label: str) -> str | None:
        return next((b if label == a else a for a, b in planted.PAIRS if label in (a, b)), None) if self.knows else None

    def similar_classes(self, label: str) -> list[str]:
        return ["Viaduct", "goldfish", "fiddler crab"] if self.knows else []


def choice(
    label: str = "rock crab", seed: int = 0, knows: bool = True, classifier: Classifier | None = None
) -> RuleInputs:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))
    own = world(Pairs(knows), classifier or TinyClassifier())
    return RuleInputs(Example(f"x{seed}", image.clone, label), own, seed)


def test_nearest_is_the_pairs_other_class() -> None:
    assert targets("nearest", choice("rock crab")) == ["fiddler crab"]
    assert targets("nearest", choice("fiddler crab")) == ["rock crab"]


def test_nearest_needs_a_data_set_that_knows_one() -> None:
    with pytest.raises(UserError, match=r"task\.target=nearest.*'rock crab'.*confusion"):
        targets("nearest", choice(knows=False))


def test_nearest_needs_a_classifier_that_knows_the_class() -> None:
    stranger = TinyClassifier()
    stranger.labels = ("rock crab", "fiddler", "goldfish")
    with pytest.raises(UserError, match=r"task\.target \(nearest\)=fiddler crab: no class.*fiddler"):
        targets("nearest", choice(classifier=stranger))


@pytest.mark.parametrize("seed", range(5))
def test_confusion_is_the_strongest_wrong_class(seed: int) -> None:
    first = choice(seed=seed)
    order = TinyClassifier()(first.example.image[None]).logits[0].argsort(descending=True).tolist()
    best, second = planted.CLASSES[order[0]], planted.CLASSES[order[1]]
    assert targets("confusion", choice(best, seed)) == [second], "the class itself is no answer"
    assert targets("confusion", choice(second, seed)) == [best]


def test_cluster_draws_a_known_class_of_the_same_kind_with_the_seed() -> None:
    drawn = [targets("cluster", choice(seed=seed))[0] for seed in range(50)]
    assert set(drawn) == {"viaduct", "fiddler crab"}, "the classifier knows no goldfish"
    assert drawn == [targets("cluster", choice(seed=seed))[0] for seed in range(50)]
    with pytest.raises(UserError, match=r"task\.target=cluster.*'rock crab'.*confusion"):
        targets("cluster", choice(knows=False))


def test_random_follows_from_the_seed_and_is_never_the_class_itself() -> None:
    drawn = [targets("random", choice(seed=seed))[0] for seed in range(300)]
    assert drawn == [targets("random", choice(seed=seed))[0] for seed in range(300)]
    assert set(drawn) == set(planted.CLASSES) - {"rock crab"}


def test_all_are_all_others_in_order() -> None:
    assert targets("all", choice()) == [name for name in planted.CLASSES if name != "rock crab"]


def test_a_class_by_its_name() -> None:
    assert targets("Viaduct", choice()) == ["viaduct"]


def test_an_unknown_class_offers_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"task\.target=rock carb: .*nearest are rock crab") as caught:
        targets("rock carb", choice("viaduct"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"data\.label=zzz.*fiddler crab, rock crab"):
        resolve_class_name("data.label", "zzz", planted.CLASSES)


def test_the_class_itself_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.target=rock crab: is the class of x0 already"):
        targets("rock crab", choice())


def test_rules_are_not_class_names() -> None:
    assert not set(TARGET_RULES) & set(planted.CLASSES)


def test_a_class_that_is_called_like_a_rule_is_asked_for_as_a_list() -> None:
    classifier = TinyClassifier()
    classifier.labels = ("random", *planted.CLASSES[1:])
    named = choice(classifier=classifier)
    with pytest.raises(
        UserError, match=r"task\.target=random: is a rule and a class of the classifier; write \[random"
    ):
        targets("random", named)
    assert targets(["random"], named) == ["random"]


def test_of_several_classes_a_picture_goes_to_those_that_it_is_not_of() -> None:
    asked = ["Viaduct", "rock crab", "viaduct", "fireboat"]
    assert targets(asked, choice("rock crab")) == ["viaduct", "fireboat"]
    assert targets(asked, choice("lifeboat")) == ["viaduct", "rock crab", "fireboat"]
    with pytest.raises(UserError, match=r"task\.target=viadukt: no class of the classifier; nearest are viaduct"):
        targets(["fireboat", "viadukt"], choice())


def test_how_many_targets_every_picture_has() -> None:
    rules = ("all", "nearest", "viaduct", ["viaduct", "fireboat"])
    assert [targets_per_image(rule, planted.CLASSES) for rule in rules] == [9, 1, 1, None]


# --- names that differ by letter case ------------------------------------------------------------------------


def test_an_exact_name_wins_over_one_in_another_case() -> None:
    labels = ("C", "c", "Straße", "java")
    assert [resolve_class_name("task.target", name, labels) for name in ("C", "c", "JAVA", "STRASSE")] == [
        "C", "c", "java", "Straße",
    ]  # fmt: skip
    with pytest.raises(UserError, match="task.target=URN: Urn and uRN differ by letter case alone; write one of them"):
        resolve_class_name("task.target", "URN", ("Urn", "uRN", "c"))


def test_a_name_is_the_same_however_its_accents_are_written() -> None:
    """macOS gives names of files in parts."""
    whole, parts = "\u00e9toile", "e\u0301toile"
    assert {resolve_class_name("task.target", name, (whole, "c")) for name in (whole, parts, parts.upper())} == {whole}
    assert resolve_class_name("task.target", parts, (whole, parts)) == parts


class Cased(Pictures):
    """Rows as data sets of files give them."""

    def indices(self, label: str) -> list[int]:
        return matching_indices("data.path", label, [example.label for example in self.examples])


def test_pictures_of_a_class_are_not_those_of_another_case() -> None:
    data = Cased([colour(i / 4, 0, 0) for i in range(3)], ["c", "C", "c"])
    assert class_indices(data, "C", ("C", "c")) == [1] and class_indices(data, "c", ("C", "c")) == [0, 2]
    with pytest.raises(UserError, match=r"data\.path: Urn and uRN differ from urn by letter case alone"):
        Cased([colour(0, 0, 0)] * 2, ["Urn", "uRN"]).indices("urn")
    small = Cased([colour(0, 0, 0)], ["c"])
    assert class_indices(small, "C", ("C", "urn")) == [0], "the only class that is meant"
    assert class_indices(small, "C", ("C", "c")) == [], "its pictures are the other class's"
