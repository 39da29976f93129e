"""Real pictures that are nearest to a generated one or to a text, by CLIP embedding (DiG-IN, App. C)."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_values
from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Pixels
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, Embedder
from classifier_lens.runner.types import Images, UserError
from classifier_lens.tasks.problems.image_problems import probabilities
from classifier_lens.tasks.units.activation_ranking import image_batches, load_or_compute

MAX_EXACT_SEARCH = 100_000  # pictures up to which every product is taken; beyond it an index is built


class Retrieval:
    """dataset: the real pictures; clip: embeds them; top_k: how many are looked for; resolution: px at which they are
    shown; cache: keeps their embeddings."""

    def __init__(
        self, dataset: Dataset, clip: Embedder, top_k: PerProblemCount, resolution: Pixels, cache: Cache
    ) -> None:
        if not 1 <= top_k <= len(dataset):
            raise UserError(f"task.retrieval.top_k={top_k}: allowed are 1 … {len(dataset)}, the pictures there are")
        if len(dataset) > MAX_EXACT_SEARCH and importlib.util.find_spec("faiss") is None:
            raise UserError(
                f"task.retrieval: more than {MAX_EXACT_SEARCH} pictures need an index: pip install faiss-cpu"
            )
        self.dataset, self.clip, self.top_k, self.resolution, self.cache = dataset, clip, top_k, resolution, cache

    @property
    def digest(self) -> str:
        return hash_values(self.clip.fingerprint, self.dataset.digest)

    @cached_property
    def embeddings(self) -> Float[Tensor, "n d"]:
        """Of all pictures of the data set, computed once."""
        key = ("embeddings", self.clip.fingerprint, self.dataset.digest, self.resolution)
        return load_or_compute(self.cache, key, lambda: {"embeddings": self._embed()})["embeddings"]

    @torch.no_grad()
    def _embed(self) -> Float[Tensor, "n d"]:
        return torch.cat(
            [self.clip.embed_images(images).cpu() for *_, images in image_batches(self.dataset, self.resolution)]
        )

    @torch.no_grad()
    def search(self, queries: Float[Tensor, "q d"]) -> list[list[int]]:
        """For each query the positions of the nearest pictures, the nearest first."""
        if len(self.embeddings) <= MAX_EXACT_SEARCH:
            return (queries.cpu() @ self.embeddings.T).topk(self.top_k, dim=1).indices.tolist()
        found: list[list[int]] = self._index.search(queries.cpu().numpy(), self.top_k)[1].tolist()
        return found

    @cached_property
    def _index(self) -> Any:
        """A FAISS index of inner products with about √n lists, a tenth of which is searched."""
        import faiss

        n, d = self.embeddings.shape
        lists = int(n**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(self.embeddings.numpy())
        index.add(self.embeddings.numpy())
        index.nprobe = max(lists // 10, 1)
        return index

    def nearest_images(self, image: Float[Tensor, "3 h w"], text: str) -> dict[str, Float[Tensor, "3 s s"]]:
        """The nearest pictures to an image, `near-1` …, and to a text, `text-1` …, at `resolution` px."""
        with torch.no_grad():
            queries = torch.cat([self.clip.embed_images(image[None]).cpu(), self.clip.embed_texts([text]).cpu()])
        return {
            f"{kind}-{i + 1}": center_crop_resize(self.dataset[row].image, self.resolution)
            for kind, rows in zip(("near", "text"), self.search(queries), strict=True)
            for i, row in enumerate(rows)
        }


def count_disagreeing_neighbors(
    pictures: Images, classifier: Classifier, rival: Classifier, target: int, sign: float
) -> dict[str, int]:  # fmt: skip
    """How many pictures `Retrieval.nearest_images` found, of each kind, and how many of these one classifier calls the
    target and the other does not, the one that `sign` names (1: not the rival)."""
    counts: dict[str, int] = {}
    for kind in ("near", "text"):
        if real := [picture for name, picture in pictures.items() if name.startswith(f"{kind}-")]:
            ours, theirs = (probabilities(f, real).argmax(dim=1) == target for f in (classifier, rival))
            same = (ours & ~theirs) if sign > 0 else (theirs & ~ours)
            counts |= {f"{kind}_same": int(same.sum()), f"{kind}_found": len(real)}
    return counts
