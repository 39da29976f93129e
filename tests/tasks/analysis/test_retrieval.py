"""Nearest real pictures: exact, by an index, and embedded once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis import retrieval
from classifier_lens.tasks.analysis.retrieval import IMAGE_NEIGHBORS, TEXT_NEIGHBORS, Retrieval
from tests.tasks.tiny import SIDE, Embeddings, Pictures, cache_in, colour, noise

TEXTS = {"green": [0.0, 1.0, 0.0], "red": [1.0, 0.0, 0.0]}
NOTHING_KEPT = TensorCache(None)


def on_a_quarter(n: int) -> Pictures:
    """Pictures from red to green whose embeddings lie evenly on a quarter of a circle, in no order."""
    angles = torch.linspace(0, math.pi / 2, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return Pictures([colour(math.cos(a), math.sin(a), 0) for a in angles.tolist()], ["x"] * n, f"quarter {n}")


def test_a_picture_finds_itself_first() -> None:
    dataset = noise(30)
    found = Retrieval(dataset, Embeddings(), 4, SIDE, NOTHING_KEPT)
    queries = Embeddings().embed_images(torch.stack([e.image for e in dataset.examples]))
    assert [rows[0] for rows in found.search(queries)] == list(range(30))
    assert all(len(rows) == len(set(rows)) == 4 for rows in found.search(queries))


def test_the_nearest_are_those_of_the_largest_products_in_their_order() -> None:
    dataset = noise(30)
    clip = Embeddings()
    embedded = clip.embed_images(torch.stack([e.image for e in dataset.examples]))
    queries = torch.nn.functional.normalize(torch.rand(5, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    expected = (queries @ embedded.T).sort(dim=1, descending=True).indices[:, :7].tolist()
    assert Retrieval(dataset, clip, 7, SIDE, NOTHING_KEPT).search(queries) == expected


def test_a_picture_and_a_text_find_their_own() -> None:
    dataset = Pictures([colour(0, 1, 0), colour(0, 0, 1), colour(1, 0.1, 0), colour(0.2, 1, 0)], ["x"] * 4)
    shown = Retrieval(dataset, Embeddings(TEXTS), 2, SIDE, NOTHING_KEPT).nearest_images(colour(1, 0.1, 0), "green")
    fields = [series.image(number) for series in (IMAGE_NEIGHBORS, TEXT_NEIGHBORS) for number in (1, 2)]
    assert list(shown) == fields
    for field, row in zip(fields, (2, 3, 0, 3), strict=True):
        assert torch.equal(shown[field], dataset[row].image), field


def test_pictures_are_shown_square_at_the_asked_size() -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    shown = Retrieval(Pictures([image] * 2, ["x"] * 2), Embeddings(TEXTS), 1, 12, NOTHING_KEPT).nearest_images(
        image, "red"
    )
    assert {picture.shape for picture in shown.values()} == {(3, 12, 12)}


@pytest.mark.parametrize(("count", "nearest"), [(3, 2), (400, 3), (900, 9)])
def test_an_index_finds_what_all_products_find(count: int, nearest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed: pip install '.[retrieval]'")
    dataset = on_a_quarter(count)
    queries = Embeddings().embed_images(torch.stack([e.image for e in dataset.examples[:50]]))
    exact = Retrieval(dataset, Embeddings(), nearest, SIDE, NOTHING_KEPT).search(queries)
    monkeypatch.setattr(retrieval, "MAX_EXACT_SEARCH", 2)
    indexed = Retrieval(dataset, Embeddings(), nearest, SIDE, NOTHING_KEPT)

    def fail(*_: object) -> Tensor:
        raise AssertionError("all products were taken")

    assert indexed.embeddings.shape == (count, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "topk", fail)
        found = indexed.search(queries)
    assert [rows[0] for rows in found] == [rows[0] for rows in exact] == list(range(len(queries)))
    # Pictures at equal distances on both sides may change places.
    assert list(map(sorted, found)) == list(map(sorted, exact))


def test_embeddings_are_computed_once(tmp_path: Path) -> None:
    dataset, cache, clip = noise(30), cache_in(tmp_path), Embeddings(TEXTS)
    found = Retrieval(dataset, clip, 2, SIDE, cache)
    first = found.nearest_images(dataset[3].image, "red")
    assert clip.seen == 30 + 1
    found.nearest_images(dataset[4].image, "green")
    assert clip.seen == 30 + 2
    again = Embeddings(TEXTS)
    second = Retrieval(dataset, again, 2, SIDE, cache).nearest_images(dataset[3].image, "red")
    assert again.seen == 1, "another run takes them from the cache"
    assert all(torch.equal(picture, second[name]) for name, picture in first.items())


def test_each_thing_that_embeddings_depend_on_is_part_of_their_key(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert Retrieval(noise(9), Embeddings(), 1, SIDE, cache).embeddings.shape == (9, 3)
    for dataset, recipe, side in (
        (noise(9, digest="others"), "embeddings", 8),
        (noise(9), "else", 8),
        (noise(9), "embeddings", 6),
    ):
        clip = Embeddings()
        clip.fingerprint = recipe
        assert Retrieval(dataset, clip, 1, side, cache).embeddings.shape == (9, 3)
        assert clip.seen == 9


@pytest.mark.parametrize("nearest", [0, -1, 10])
def test_more_than_there_are_is_refused_in_one_line(nearest: int) -> None:
    with pytest.raises(UserError) as caught:
        Retrieval(noise(9), Embeddings(), nearest, SIDE, NOTHING_KEPT)
    assert (
        str(caught.value) == f"task.retrieval.top_k={nearest}: allowed are 1 … 9, the number of images in the data set"
    )
