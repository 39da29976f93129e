"""Real images that are nearest to a generated one or to a text, by CLIP embedding (DiG-IN, App. C)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_values
from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Pixels
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, Embedder
from classifier_lens.runner.result_schema import ImageField, ImageSeries, Label, ResultImages
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.units.activation_ranking import image_batches, load_or_compute

MAX_EXACT_SEARCH = 100_000  # images up to which all products are computed; beyond it an index is built

IMAGE_NEIGHBORS = ImageSeries("image_neighbor", "Nearest real image")
TEXT_NEIGHBORS = ImageSeries("text_neighbor", "Real image nearest to the prompt")


class NeighborCounts(TypedDict, total=False):
    """How many real images were retrieved, and on how many of them the classifiers disagree as on the result."""

    image_neighbors: Annotated[int, Label("Real images nearest to the result")]
    image_neighbors_disagreeing: Annotated[int, Label("Of these with the same disagreement")]
    text_neighbors: Annotated[int, Label("Real images nearest to the prompt")]
    text_neighbors_disagreeing: Annotated[int, Label("Of these with the same disagreement (prompt)")]


class Retrieval:
    """A search for the nearest images of a data set.

    dataset: the real images; clip: embeds images and texts; top_k: how many images are returned; resolution: their side
    in pixels; cache: stores the embeddings."""

    def __init__(
        self, dataset: Dataset, clip: Embedder, top_k: PerProblemCount, resolution: Pixels, cache: Cache
    ) -> None:
        if not 1 <= top_k <= len(dataset):
            raise UserError(
                f"task.retrieval.top_k={top_k}: allowed are 1 … {len(dataset)}, the number of images in the data set"
            )
        if len(dataset) > MAX_EXACT_SEARCH and importlib.util.find_spec("faiss") is None:
            raise UserError(f"task.retrieval: more than {MAX_EXACT_SEARCH} images need an index: pip install faiss-cpu")
        self.dataset, self.clip, self.top_k, self.resolution, self.cache = dataset, clip, top_k, resolution, cache

    @property
    def digest(self) -> str:
        return hash_values(self.clip.fingerprint, self.dataset.digest)

    @cached_property
    def embeddings(self) -> Float[Tensor, "n d"]:
        """Embeddings of all images of the data set, computed once."""
        key = ("embeddings", self.clip.fingerprint, self.dataset.digest, self.resolution)
        return load_or_compute(self.cache, key, lambda: {"embeddings": self._embed()})["embeddings"]

    @torch.no_grad()
    def _embed(self) -> Float[Tensor, "n d"]:
        return torch.cat(
            [self.clip.embed_images(images).cpu() for *_, images in image_batches(self.dataset, self.resolution)]
        )

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "q d"]) -> list[list[int]]:
        """For each query the positions of the nearest images, the nearest first."""
        if len(self.embeddings) <= MAX_EXACT_SEARCH:
            return (queries.cpu() @ self.embeddings.T).topk(self.top_k, dim=1).indices.tolist()
        rows: list[list[int]] = self._index.search(queries.cpu().numpy(), self.top_k)[1].tolist()
        return rows

    @cached_property
    def _index(self) -> Any:
        """A FAISS index of inner products with about √n lists, of which a tenth is searched."""
        import faiss

        n, d = self.embeddings.shape
        num_lists = int(n**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, num_lists, faiss.METRIC_INNER_PRODUCT)
        index.train(self.embeddings.numpy())
        index.add(self.embeddings.numpy())
        index.nprobe = max(num_lists // 10, 1)
        return index

    def nearest_images(self, image: Float[Tensor, "3 h w"], text: str) -> dict[ImageField, Float[Tensor, "3 s s"]]:
        """The images nearest to an image (`IMAGE_NEIGHBORS`) and to a text (`TEXT_NEIGHBORS`), at `resolution` px."""
        with torch.no_grad():
            queries = torch.cat([self.clip.embed_images(image[None]).cpu(), self.clip.embed_texts([text]).cpu()])
        return {
            series.image(number): center_crop_resize(self.dataset[row].image, self.resolution)
            for series, rows in zip((IMAGE_NEIGHBORS, TEXT_NEIGHBORS), self.search(queries), strict=True)
            for number, row in enumerate(rows, start=1)
        }


def count_disagreeing_neighbors(
    images: ResultImages, classifier: Classifier, second: Classifier, target: int, sign: float
) -> NeighborCounts:
    """How many images were retrieved for the result and for its prompt, and how many of each only one classifier
    predicts as the target: the first one for sign 1, the second one for sign -1. Empty without retrieved images."""

    def count_disagreeing(neighbors: Sequence[Float[Tensor, "3 s s"]]) -> int:
        first_hits, second_hits = (
            probabilities(network, neighbors).argmax(dim=1) == target for network in (classifier, second)
        )
        return int(((first_hits & ~second_hits) if sign > 0 else (second_hits & ~first_hits)).sum())

    by_key = {field.key: image for field, image in images.task_images.items()}
    result: NeighborCounts = {}
    if of_image := [by_key[field.key] for field in IMAGE_NEIGHBORS.images(by_key)]:
        result["image_neighbors_disagreeing"] = count_disagreeing(of_image)
        result["image_neighbors"] = len(of_image)
    if of_text := [by_key[field.key] for field in TEXT_NEIGHBORS.images(by_key)]:
        result["text_neighbors_disagreeing"] = count_disagreeing(of_text)
        result["text_neighbors"] = len(of_text)
    return result
