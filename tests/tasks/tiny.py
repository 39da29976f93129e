"""Tiny networks, pictures and stand-ins for the tasks' tests; weights are random but seeded, or known by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.protocols import Classifier, Dataset, TaskInputs
from classifier_lens.runner.result_schema import ImageField, ResultImages
from classifier_lens.runner.types import Example, Reference, Scene, indefinite_article
from tests.conftest import reference_of

NAMES = ("rock crab", "viaduct", "urn")
SIDE = 8


class Maps(nn.Module):
    """Four feature maps, their means over the places as features, and a linear layer; `calls` counts its answers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.early, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.SiLU()
            self.maps, self.head = nn.Conv2d(5, 4, 3, padding=1), nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.head(self.maps(self.act(self.early(x))).mean(dim=(2, 3)))
        return out


class Colours(nn.Module):
    """The features are a picture's mean red, green and blue; a linear layer with given weights makes the logits."""

    def __init__(self, weight: Sequence[Sequence[float]], bias: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(weight))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(weight))
            self.head.bias.copy_(torch.tensor(bias))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Tokens(nn.Module):
    """16 patches of an 8 px picture as tokens, after a class token if there are 17 weights; the features are the
    tokens' weighted sum."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.patches, self.blocks, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 3)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        extra = torch.ones(len(x), len(self.weights) - tokens.shape[1], 4)
        out: Tensor = self.head((self.blocks(torch.cat([extra, tokens], dim=1)) * self.weights[:, None]).sum(dim=1))
        return out


def classifier_of(network: Any, labels: Sequence[str] = NAMES, domain: str | None = "tiny") -> ImageClassifier:
    """A network behind preprocessing that changes nothing."""
    return ImageClassifier(
        network, labels, SIDE, [0.0] * 3, [1.0] * 3, "bilinear", domain, forward_logits, "classifier.target=tiny"
    )


def mean_colors() -> ImageClassifier:
    """Logits and features are an image's mean red, green and blue."""
    return classifier_of(Colours(torch.eye(3).tolist()))


def plain(images: Tensor) -> Tensor:
    """A function of pictures that shows neither layers nor features."""
    return images.mean(dim=(2, 3))


def colour(red: float, green: float, blue: float) -> Tensor:
    """A picture of one colour."""
    return torch.tensor([red, green, blue], dtype=torch.float32).view(3, 1, 1).expand(3, SIDE, SIDE).clone()


def result_images(
    before: Tensor,
    result: Tensor | None = None,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    samples: Sequence[Tensor] = (),
    task_images: Mapping[str, Tensor] | None = None,
) -> ResultImages:
    """Images of a result; the start and the result are the image before where none is given. task_images: by key."""
    start = before if start is None else start
    added = {ImageField(key, key): image for key, image in (task_images or {}).items()}
    return ResultImages(before, start, start if result is None else result, mask, samples, added)


class Pictures:
    """A data set in memory."""

    def __init__(self, images: Sequence[Tensor], labels: Sequence[str], digest: str = "pictures") -> None:
        pairs = enumerate(zip(images, labels, strict=True))
        self.examples = [Example(f"x{i}", image.clone, label) for i, (image, label) in pairs]
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(labels))
        self.digest = digest

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    def indices(self, label: str) -> list[int]:
        return [i for i, example in enumerate(self.examples) if example.label.lower() == label.lower()]

    def nearest_class(self, label: str) -> str | None:
        return None

    def similar_classes(self, label: str) -> list[str]:
        return []


def noise(n: int, seed: int = 0, labels: Sequence[str] = NAMES, digest: str = "noise") -> Pictures:
    """Random pictures of all classes in turn, each with a colour of its own."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, SIDE, SIDE, generator=draw) * torch.rand(n, 3, 1, 1, generator=draw)
    return Pictures(list(images), [labels[i % len(labels)] for i in range(n)], digest)


class Captions:
    """Captions by a template; objects by picture name, the class where there are none."""

    def __init__(self, objects: Mapping[str, list[str]] | None = None) -> None:
        self.notes: Mapping[str, str] = {}
        self.named = objects or {}

    def caption(self, example: Example) -> str:
        return f"a photograph of {indefinite_article(example.label)} {example.label}"

    def objects(self, example: Example) -> list[str]:
        return self.named.get(example.name, [example.label])


class OnGrass(Captions):
    """Every picture stands on grass."""

    def caption(self, example: Example) -> str:
        return f"{super().caption(example)} on grass"


class Maker:
    """A generator that only samples: pictures of one red each, `reds` by word, a tenth more for every further seed."""

    known_classes: Sequence[str] | None = None
    can_generate = True

    def __init__(self, reds: Mapping[str, float] | None = None) -> None:
        self.resolution, self.digest, self.fingerprint = SIDE, "maker", "maker"
        self.reds = reds or {}
        self.asked: list[tuple[str, int]] = []

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.asked += zip(prompts, seeds, strict=True)
        reds = [next(red for word, red in self.reds.items() if prompt.endswith(word)) for prompt in prompts]
        return torch.stack(
            [colour(red + 0.1 * (seed - min(seeds)), 0, 0) for red, seed in zip(reds, seeds, strict=True)]
        )

    def word_attention_maps(self, image: Tensor, prompt: str, phrase: str, seed: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Embeddings:
    """Pictures are embedded as the direction of their mean colour, texts by a table; `seen` counts pictures."""

    fingerprint, logit_scale = "embeddings", 10.0

    def __init__(self, texts: Mapping[str, Sequence[float]] | None = None) -> None:
        self.texts, self.seen = texts or {}, 0

    def embed_images(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return nn.functional.normalize(images.mean(dim=(2, 3)), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return nn.functional.normalize(torch.tensor([self.texts[text] for text in texts]), dim=1)


def world(
    dataset: Dataset, classifier: Classifier, limit: int | None = None, generator: Maker | None = None, seed: int = 0
) -> TaskInputs:
    """What a task makes its problems of."""
    return TaskInputs(dataset, classifier, generator or Maker(), seed, limit)


DISTANCE_WEIGHTS = {"latent_distance": 25.0, "pixel_distance": 250.0}


class PosesProblems(Protocol):
    def problems(self, inputs: TaskInputs, /) -> tuple[list[Any], int | None]: ...


SomeTask = TypeVar("SomeTask", bound=PosesProblems)


@dataclass(frozen=True)
class TaskCase(Generic[SomeTask]):
    """A task with the settings that its tests begin from, and what its problems are made of."""

    kind: Callable[..., SomeTask]
    settings: Callable[[], dict[str, Any]]
    dataset: Dataset
    classifier: Callable[[], Classifier]
    generator: Callable[[], Maker] = Maker

    def task(self, **changes: Any) -> SomeTask:
        return self.kind(**{**self.settings(), **changes})

    def pose(
        self, task: SomeTask, limit: int | None = None, seed: int = 0, dataset: Dataset | None = None,
        generator: Maker | None = None,
    ) -> tuple[list[Any], int | None]:  # fmt: skip
        """The task's problems, and how many there are without the limit."""
        inputs = world(dataset or self.dataset, self.classifier(), limit, generator or self.generator(), seed)
        return task.problems(inputs)


def cache_in(folder: Path) -> TensorCache:
    """A cache that keeps what it is given."""
    return TensorCache(str(folder / "cache"))


def same_scene(reference: Reference) -> Scene:
    """The originals themselves, as one view each."""
    return Scene(reference.original, reference.original_latent, reference.original[:, None])


def preserved_reference(images: Tensor) -> Reference:
    """The reference of images of which everything is preserved."""
    blocked = torch.zeros_like(images[:, :1])
    return replace(reference_of(len(images)), original=images, mask=blocked)
