"""Interfaces between the parts of a run: an object with these attributes and methods can be used as the part.

Shape letters as in `runner.types`. Images are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.runner.result_schema import ImageField, Record, ResultImages
from classifier_lens.runner.types import (
    Context,
    Controls,
    Example,
    Head,
    Initialization,
    Objective,
    Precomputed,
    Problem,
    PromptToPrompt,
    PromptToPromptOverrides,
    Reference,
    Response,
    Scene,
)


class Dataset(Protocol):
    """Images by position, in an order that depends on the run's seed. digest: of everything that determines them."""

    labels: tuple[str, ...]

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class, without regard to letter case."""

    def nearest_class(self, label: str) -> str | None:
        """The class that is most easily confused with `label`, None if the data set knows none."""

    def similar_classes(self, label: str) -> list[str]:
        """Other classes of the same kind as `label`, with the nearest one; empty if the data set knows none."""


class Classifier(Protocol):
    """From images in [0, 1] of any size to a `Response`; it resizes and normalizes.

    fingerprint: everything that a response depends on beside the images; domain: of its training images, None if
    unknown; head: None if the network has no linear last layer; cam_module: the last module with a feature map or
    tokens that the features depend on, None if there is none.
    """

    labels: tuple[str, ...]
    size: int
    digest: str
    fingerprint: str
    domain: str | None

    @property
    def head(self) -> Head | None: ...

    @property
    def cam_module(self) -> str | None: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Response: ...

    def forward_with_activations(
        self, images: Float[Tensor, "b 3 h w"], modules: Sequence[str]
    ) -> tuple[Response, dict[str, Tensor]]:
        """The response, and the outputs of the named modules; `<module>.in` is the input of a module."""


class HasDigest(Protocol):
    """Something that results depend on beside the classifier; digest: of its weights and settings, or content."""

    @property
    def digest(self) -> str: ...


class Embedder(Protocol):
    """A CLIP model: images and texts as unit vectors of one space; logit_scale: factor of their dot products;
    fingerprint: everything that the embedding of an image depends on."""

    fingerprint: str
    logit_scale: float

    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]: ...


class Cache(Protocol):
    """Tensors by a key, the hash of everything that determines them."""

    def key(self, *parts: object) -> str: ...

    def load(self, keys: Sequence[str]) -> dict[str, Tensor] | None:
        """The stacked tensors of all keys, None if one of them is missing."""

    def save(self, keys: Sequence[str], **tensors: Tensor) -> None:
        """Save row i of each tensor under keys[i]."""


class Captioner(Protocol):
    """Captions of images. notes: warnings about captions, by image name."""

    notes: Mapping[str, str]

    def caption(self, example: Example) -> str:
        """A caption of the image that contains its class name."""

    def objects(self, example: Example) -> list[str]:
        """Names of the objects in the image, with their articles, the most prominent first."""


class Segmenter(Protocol):
    """From images in [0, 1], the attention maps of words in [0, 1], these words and the images' names to masks of the
    objects that the words name, 0 or 1. A segmenter whose masks depend on more than these and its settings, such as
    weights, has a `digest`. needs_attention_map: whether masks depend on the maps."""

    @property
    def needs_attention_map(self) -> bool: ...

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]: ...  # fmt: skip


class TextSegmenter(Protocol):
    """Segments objects that words name. digest: of the weights and settings that its masks depend on."""

    @property
    def digest(self) -> str: ...

    def segment(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """1 where an image in [0, 1] shows the object of its words, else 0; 0 everywhere if it is not found."""


class SafetyFilter(Protocol):
    """Blurs unsafe images. digest: of the weights and settings that it depends on."""

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, " n"]]:
        """The images in [0, 1], flagged ones blurred, and which are flagged."""


class Generator(Protocol[Context]):
    """A differentiable image generator. Calling it is pure: the same arguments give the same scenes.

    Context: the type of its constants of a batch, which others pass on and do not read.
    saved_controls: the controls that are saved with a result, since its images can be rendered from them again;
    images_per_result: how many images a result has; images_in_graph: how many images of a problem the gradient of one
    step passes through.
    """

    saved_controls: tuple[str, ...]
    images_per_result: int
    images_in_graph: int

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for settings that are known to fail before anything is computed."""

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[Context]:
        """The batch before its optimization. precomputed: of an earlier initialization of the same problems, which
        takes less time then and gives the same bits."""

    def render_candidates(self, initialization: Initialization[Context]) -> Iterable[Scene]:
        """One scene per candidate, in their order: the scene of its controls and context."""

    def select(self, initialization: Initialization[Context], indices: Sequence[int]) -> tuple[Controls, Context]:
        """The controls and the context of a batch in which sample i takes the candidate `indices[i]`."""

    def step_context(self, context: Context, k: int) -> Context:
        """The constants of optimization step k: the context itself, unless every step has new random numbers. The best
        iterate is chosen with the context itself."""

    def evaluation_context(self, context: Context) -> Context:
        """The constants that the loss of a result is measured with: the context itself, unless it holds the random
        numbers that the best iterate was chosen by."""

    def __call__(self, controls: Controls, context: Context) -> Sequence[Scene]:
        """The last x0-predictions as scenes; the last one is the image of the result."""

    def images(self, controls: Controls, context: Context) -> Float[Tensor, "b n 3 h w"]:
        """The images of each sample's result, in [0, 1], the most important one first."""

    def decode_prompts(self, controls: Controls, context: Context) -> list[str] | None:
        """The prompt of each sample in words where prompts are optimized, else None."""


class TextToImage(Protocol):
    """Images of prompts. fingerprint: everything that an image depends on beside its prompt and seed; known_classes:
    the classes that it can generate, in lower case, None for any; can_generate: False without a generator, where
    `sample` and `word_attention_maps` raise UserError."""

    known_classes: Sequence[str] | None
    can_generate: bool
    resolution: int
    digest: str
    fingerprint: str

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of prompts in [0, 1]; each start latent is sampled from its own seed."""

    def word_attention_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """The attention map of each word of an image's prompt (split at blanks), and of a phrase in it; each divided by
        its maximum. seed: of the inversion's random numbers."""


@dataclass(frozen=True)
class TaskInputs:
    """What a task creates its problems from. limit: number of problems, None for all."""

    dataset: Dataset
    classifier: Classifier
    generator: TextToImage
    seed: int
    limit: int | None


class Task(Protocol):
    """Problems, their objective, and the measurements of their results."""

    baseline: str

    @property
    def prompt_to_prompt(self) -> PromptToPromptOverrides:
        """The settings of Prompt-to-Prompt that the task sets in the place of the generator's."""

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        """What results depend on beside the explained classifier: other networks, and images and files that are read
        after the problems are created, or that determine numbers in them."""

    @property
    def captioner(self) -> Captioner | None:
        """The captioner of the problems, None if they have no captions."""

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        """Raise UserError for mistakes that are known without a generator, such as unknown classes."""

    def problems(self, inputs: TaskInputs) -> tuple[list[Any], int | None]:
        """The first `inputs.limit` problems, and how many there are in all, None if that is not known beforehand."""

    def objective(self, problems: Sequence[Any], reference: Reference, classifier: Classifier) -> Objective:
        """The terms and weights of a batch."""

    def illustrate(
        self, problem: Any, images: ResultImages, classifier: Classifier
    ) -> Mapping[ImageField, Float[Tensor, "c h w"]]:
        """Further images of a result in [0, 1]."""

    def measure(self, problem: Any, images: ResultImages, classifier: Classifier) -> Record:
        """JSON values of one result, measured on the saved 8-bit images."""

    def summarize(self, records: Sequence[Record]) -> Record:
        """JSON values of all results of a run together. records: the results without their `history`."""
