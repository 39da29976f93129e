"""How captions change."""

from __future__ import annotations

import pytest

from classifier_lens.runner.types import CaptionEdit, UserError, indefinite_article
from classifier_lens.tasks.prompts.caption_edit import format_prompt, replace_class, replace_phrase, replace_phrases


def test_the_caption_says_what_changes() -> None:
    edit = replace_class("an image of a Rock Crab by a rock", "rock crab", "steel arch bridge")
    assert (edit.source, edit.target) == (
        "an image of a Rock Crab by a rock", "an image of a steel arch bridge by a rock",
    )  # fmt: skip
    assert (edit.source_words, edit.target_words) == ("rock crab", "steel arch bridge")
    part_of_a_word = replace_class("a rock crabs", "rock crab", "viaduct")
    assert part_of_a_word.target == "a rock crabs", "names are whole words"


@pytest.mark.parametrize(
    ("caption", "label", "target", "changed"),
    [
        ("a photograph of an airplane", "airplane", "deer", "a photograph of a deer"),
        ("a photograph of a deer", "deer", "airplane", "a photograph of an airplane"),
        ("an image of a red deer", "deer", "airplane", "an image of a red airplane"),
        ("two deer", "deer", "airplane", "two airplane"),
        ("banana deer", "deer", "airplane", "banana airplane"),
        ("a deer", "deer", "dog", "a dog"),
    ],
)
def test_an_article_right_before_the_name_follows_it(caption: str, label: str, target: str, changed: str) -> None:
    assert replace_class(caption, label, target).target == changed


def test_only_the_first_mention_changes_and_names_are_no_patterns() -> None:
    assert replace_class("a deer and a deer", "deer", "dog").target == "a dog and a deer"
    assert replace_class("a T.V. set, not a TxVx set", "T.V. set", "dog").target == "a dog, not a TxVx set"
    assert replace_class("a deer", "deer", r"\1 dog").target == r"a \1 dog"


# --- phrases -------------------------------------------------------------------------------------------------


def test_a_phrase_takes_another_ones_place() -> None:
    edit = replace_phrase("a photograph of a dog in snow at noon", "in snow", "on sand")
    assert edit == CaptionEdit(
        "a photograph of a dog in snow at noon", "a photograph of a dog on sand at noon", "in snow", "on sand"
    )


def test_letter_case_does_not_matter_and_the_first_one_changes() -> None:
    edit = replace_phrase("In Snow, a dog in snow", "in snow", "on sand")
    assert edit is not None and edit.target == "on sand, a dog in snow"


@pytest.mark.parametrize("caption", ["a dog in snowfall", "a dog within snow", "a dog in deep snow", "a dog", ""])
def test_a_phrase_that_does_not_stand_there_changes_nothing(caption: str) -> None:
    assert replace_phrase(caption, "in snow", "on sand") is None


@pytest.mark.parametrize("target", [r"on \1 sand", r"on \g<0> sand", r"on \d"])
def test_a_phrase_is_taken_as_it_is(target: str) -> None:
    edit = replace_phrase("a dog in snow", "in snow", target)
    assert edit is not None and edit.target == f"a dog {target}"


# --- prompts of a name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photograph of {article} {label}", "airplane", "a photograph of an airplane"),
        ("a photograph of {article} {label}", "rock crab", "a photograph of a rock crab"),
        ("{label}", "Ibex", "Ibex"),
        ("a picture", "Ibex", "a picture"),
    ],
)
def test_a_template_is_filled_in(template: str, name: str, prompt: str) -> None:
    assert format_prompt(template, name) == prompt


@pytest.mark.parametrize(
    "template", ["a {lable}", "a {}", "a {0}", "a {label", "a }", "a {label.name}", "a {label[x]}"]
)
def test_other_fields_are_refused_in_one_line(template: str) -> None:
    with pytest.raises(UserError, match="allowed fields are {article} and {label}") as caught:
        format_prompt(template, "crab")
    assert template in str(caught.value) and "\n" not in str(caught.value)


def test_articles_follow_the_first_letter() -> None:
    assert [indefinite_article(name) for name in ("airplane", "Egret", "crab", "")] == ["an", "an", "a", "a"]


def test_an_edit_that_changes_nothing() -> None:
    assert CaptionEdit.unchanged("a red crab", "crab") == CaptionEdit("a red crab", "a red crab", "crab", "crab")


def test_the_words_that_change_reach_from_the_first_phrase_to_the_last() -> None:
    edit = replace_phrases("a dog in snow, by a tree at noon", {"at noon": "at night", "in snow": "on sand"})
    assert edit == CaptionEdit(
        "a dog in snow, by a tree at noon", "a dog on sand, by a tree at night", "in snow, by a tree at noon",
        "on sand, by a tree at night",
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"in snow": "on sand", "at noon": "at night"}])
def test_all_phrases_have_to_stand_there(changes: dict[str, str]) -> None:
    assert replace_phrases("a dog in snow", changes) is None
