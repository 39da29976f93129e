"""Captions from a template, from a file, and by a CLIP model that ranks words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from classifier_lens.models.captioner.captioner import FileCaptioner, TemplateCaptioner, mentions
from classifier_lens.models.captioner.clip_ranking import ClipRankingCaptioner, read_list
from classifier_lens.runner.protocols import Captioner
from classifier_lens.runner.types import Example, UserError

TEMPLATE: Captioner = TemplateCaptioner("a photograph of {article} {label}")


def make_image(label: str, name: str = "x", caption: str | None = None, color: Sequence[float] = (0, 0, 0)) -> Example:
    """An image of one color."""
    image = torch.tensor(color, dtype=torch.float32).view(3, 1, 1).expand(3, 16, 16)
    return Example(name, lambda: image, label, caption)


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("goldfish", "a photograph of a goldfish"),
        ("airplane", "a photograph of an airplane"),
        ("Indigo bunting", "a photograph of an Indigo bunting"),
        ("steel arch bridge", "a photograph of a steel arch bridge"),
    ],
)
def test_the_template_is_filled_with_name_and_article(label: str, caption: str) -> None:
    assert TEMPLATE.caption(make_image(label)) == caption and not TEMPLATE.notes
    assert TEMPLATE.objects(make_image(label)) == [caption.removeprefix("a photograph of ")]


def test_a_caption_of_the_data_set_is_used() -> None:
    assert TEMPLATE.caption(make_image("goldfish", caption="my goldfish at noon")) == "my goldfish at noon"


def test_a_template_without_the_class_is_refused() -> None:
    with pytest.raises(
        UserError, match="captioner.template=a .lable.: has other placeholders than the allowed {article}, {label}"
    ):
        TemplateCaptioner("a {lable}").caption(make_image("goldfish"))
    with pytest.raises(UserError, match="captioner.template: 'a picture' does not contain 'goldfish'"):
        TemplateCaptioner("a picture").caption(make_image("goldfish"))
    with pytest.raises(UserError, match="the caption of image 'x': 'my pet' does not contain 'goldfish'"):
        TEMPLATE.caption(make_image("goldfish", caption="my pet"))


@pytest.mark.parametrize(
    ("caption", "result"),
    [
        ("a Rock Crab on sand", True),
        ("sand, and on it a rock crab.", True),
        ("a crab on a rock", False),
        ("a rock with a crab", False),
        ("rock crabs on sand", False),
        ("", False),
    ],
)
def test_the_class_name_is_matched_by_words(caption: str, result: bool) -> None:
    assert mentions(caption, "rock crab") is result


# --- captions from files -------------------------------------------------------------------------------------

CSV = 'name,caption,objects\na,"a crab, on sand",a crab; sand ;\nb,a viaduct at  night,\n'
JSON = {"a": {"caption": "a crab, on sand", "objects": ["a crab", "sand"]}, "b": "a viaduct at night"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The same captions in both formats; the CSV file has a byte order mark, as spreadsheets write it."""
    (tmp_path / "c.csv").write_text(CSV, encoding="utf-8-sig")
    (tmp_path / "c.json").write_text(json.dumps(JSON))
    return [str(tmp_path / "c.csv"), str(tmp_path / "c.json")]


def test_captions_are_read_by_the_name_of_the_image(files: list[str]) -> None:
    for file in files:
        captioner: Captioner = FileCaptioner(file)
        assert captioner.caption(make_image("crab", "a")) == "a crab, on sand"
        assert captioner.objects(make_image("crab", "a")) == ["a crab", "sand"]
        assert captioner.caption(make_image("viaduct", "b", caption="not this one")) == "a viaduct at night"
        assert captioner.objects(make_image("viaduct", "b")) == ["a viaduct"], "where none are listed, the class"


def test_a_missing_caption_and_one_of_another_class_are_refused(files: list[str]) -> None:
    for file in files:
        with pytest.raises(UserError, match=f"captioner.path={file}: has no caption of image 'c'; .* such as a, b"):
            FileCaptioner(file).caption(make_image("crab", "c"))
        with pytest.raises(UserError, match=f"{file}: the caption of image 'b': '.*' does not contain 'crab'"):
            FileCaptioner(file).caption(make_image("crab", "b"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "a crab", "allowed are .csv and .json files"),
        ("none.csv", None, "No such file.*expected a .csv or .json file"),
        ("c.csv", b"\xff\xfea", "not UTF-8 text"),
        ("c.csv", "picture,caption\na,b\n", "column name is missing"),
        ("c.csv", "name,caption\na,b\na,c\n", "'a' occurs twice"),
        ("c.csv", "name,caption\na\n", "cannot be read as name,caption"),
        ("c.csv", "name,caption\n", "contains no caption"),
        ("c.json", "{", "cannot be read as {name: caption}"),
        ("c.json", "[1]", "cannot be read as {name: caption}"),
        ("c.json", '{"a": 1}', "cannot be read as {name: caption}"),
        ("c.json", '{"a": {"objects": []}}', "cannot be read as {name: caption}"),
    ],
)
def test_a_file_of_another_layout_is_refused_in_one_line(
    name: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        FileCaptioner(str(file))
    assert str(caught.value).startswith(f"captioner.path={file}: ") and "\n" not in str(caught.value)


def test_a_missing_path_is_refused() -> None:
    with pytest.raises(UserError, match="captioner.path is missing"):
        FileCaptioner(None)


# --- words ranked by a CLIP model ----------------------------------------------------------------------------


class ColorEmbedder:
    """An embedder of three words, one per axis: the color of an image is its embedding."""

    fingerprint, logit_scale = "colours", 1.0

    def __init__(self) -> None:
        self.embedded_texts: list[list[str]] = []

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.embedded_texts.append(list(texts))
        return torch.tensor([[float(word in text) for word in ("sand", "forest", "sea")] for text in texts])


OBJECTS, PHRASES = ["sand", "a forest", "the sea"], ["on sand", "in a forest", "by the sea"]


def rank(
    clip: ColorEmbedder, top: int = 2, template: str = "a photograph of {article} {label} {phrase}"
) -> ClipRankingCaptioner:
    return ClipRankingCaptioner(clip, OBJECTS, PHRASES, top, "a photograph of {object}", template)


def test_the_words_of_highest_similarity_are_returned_in_their_order() -> None:
    captioner: Captioner = rank(ColorEmbedder())
    image = make_image("crab", color=(0.2, 0.9, 0.4))
    assert captioner.caption(image) == "a photograph of a crab in a forest"
    assert captioner.objects(image) == ["a forest", "the sea"], "the best two of three"
    other = make_image("owl", color=(0.5, 0.1, 0.8))
    assert captioner.caption(other) == "a photograph of an owl by the sea"
    assert captioner.objects(other) == ["the sea", "sand"]


def test_equal_words_keep_the_order_of_their_list() -> None:
    assert rank(ColorEmbedder(), top=3).objects(make_image("crab", color=(0.5, 0.5, 0.5))) == OBJECTS


def test_texts_are_embedded_once() -> None:
    clip = ColorEmbedder()
    captioner = rank(clip)
    for _ in range(3):
        for label in ("crab", "owl"):
            captioner.caption(make_image(label, color=(1, 0, 0)))
            captioner.objects(make_image(label, color=(1, 0, 0)))
    assert clip.embedded_texts == [
        [f"a photograph of {name}" for name in OBJECTS],
        [f"a photograph of a crab {phrase}" for phrase in PHRASES],
        [f"a photograph of an owl {phrase}" for phrase in PHRASES],
    ]


def test_wrong_settings_of_a_ranking_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="captioner.template: .* does not contain 'crab'"):
        rank(ColorEmbedder(), template="a photograph {phrase}").caption(make_image("crab"))
    with pytest.raises(UserError, match="has other placeholders than the allowed {phrase}, {article}, {label}"):
        rank(ColorEmbedder(), template="a {place}").caption(make_image("crab"))
    with pytest.raises(UserError, match="captioner.context_phrases: is empty"):
        read_list("captioner.context_phrases", [" "])
    with pytest.raises(UserError, match=r"captioner.objects=.*none.txt: No such file.*expected a list, or a text file"):
        read_list("captioner.objects", str(tmp_path / "none.txt"))


def test_words_may_be_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("sand\n\n a forest \nthe sea\n")
    assert read_list("captioner.objects", str(tmp_path / "words.txt")) == OBJECTS
