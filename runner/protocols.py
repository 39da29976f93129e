"""What the parts of a run offer each other: whatever has these attributes and methods can take the part.

Shape letters as in `runner.types`. Images are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.runner.types import (
    Context,
    Controls,
    Example,
    Head,
    Images,
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
    """Pictures by position, in an order that the run's seed sets. digest: of what decides all of them."""

    labels: tuple[str, ...]

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def indices(self, label: str) -> list[int]:
        """The positions of the pictures of a class, letter case aside."""

    def nearest_class(self, label: str) -> str | None:
        """The class most easily confused with `label`, where the data set knows one."""

    def similar_classes(self, label: str) -> list[str]:
        """Other classes of the same kind as `label`, the nearest among them; none where the data set knows none."""


class Classifier(Protocol):
    """Images in [0, 1] of any size to a `Response`; resizing and normalisation lie inside.

    fingerprint: everything that an answer follows from beside the images;
    domain: the kind of pictures it knows, None if not known; head: None where the network does not show it;
    cam_module: the last module with a feature map or tokens that the features depend on, None where there is none.
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
        """The answer, and what the named modules of the network give; `<module>.in` is what a module is given."""


class HasDigest(Protocol):
    """Whatever answers follow from beside the classifier; digest: of its weights and settings, or of its content."""

    @property
    def digest(self) -> str: ...


class Embedder(Protocol):
    """A CLIP model: pictures and texts as unit vectors of one space; logit_scale: what their products are multiplied
    by; fingerprint: everything that the vector of a picture follows from."""

    fingerprint: str
    logit_scale: float

    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]: ...


class Cache(Protocol):
    """Tensors by a key that is the hash of whatever decides them."""

    def key(self, *parts: object) -> str: ...

    def load(self, keys: Sequence[str]) -> dict[str, Tensor] | None:
        """The stacked tensors of all keys, or None if one of them is missing."""

    def save(self, keys: Sequence[str], **tensors: Tensor) -> None:
        """Keep row i of each tensor under keys[i]."""


class Captioner(Protocol):
    """Words for pictures. notes: by picture name, what the reader has to know of a caption."""

    notes: Mapping[str, str]

    def caption(self, example: Example) -> str:
        """What the picture shows, in words that contain its class name."""

    def objects(self, example: Example) -> list[str]:
        """Names of what the picture shows, with their articles, the most prominent first."""


class Segmenter(Protocol):
    """Pictures in [0, 1], the cross-attention maps of the words that are looked for, in [0, 1], these words and the
    pictures' names to masks of what the words name, 0 or 1. One whose masks follow from more than these and its
    settings, as from weights, has a `digest` of it. needs_attention_map: whether masks follow from the maps."""

    @property
    def needs_attention_map(self) -> bool: ...

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]: ...  # fmt: skip


class TextSegmenter(Protocol):
    """Finds in pictures what words name. digest: of the weights and settings that its masks follow from."""

    @property
    def digest(self) -> str: ...

    def segment(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """1 where a picture in [0, 1] shows what its words name, else 0; 0 everywhere where nothing is found."""


class SafetyFilter(Protocol):
    """Keeps pictures from being seen. digest: of the weights and settings that it goes by."""

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, " n"]]:
        """Pictures in [0, 1], those that are flagged made unrecognisable, and which these are."""


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
    """Pictures of prompts. fingerprint: everything that one follows from beside its prompt and seed; known_classes: the
    classes that it draws, in lower case, None where it draws anything; can_generate: whether it draws at all: without a
    generator nothing does, and `sample` and `word_attention_maps` raise UserError."""

    known_classes: Sequence[str] | None
    can_generate: bool
    resolution: int
    digest: str
    fingerprint: str

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, in [0, 1]; each start latent is drawn from its own seed."""

    def word_attention_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """Where a picture attends to each word of its prompt (split at blanks), and to a phrase that stands in it; each
        map divided by its maximum. seed: of what an inversion draws."""


@dataclass(frozen=True)
class TaskInputs:
    """What a task makes its problems of. limit: how many problems are wanted, None for all."""

    dataset: Dataset
    classifier: Classifier
    generator: TextToImage
    seed: int
    limit: int | None


class Task(Protocol):
    """Which questions are asked, what an answer is optimised for, and what is reported of it."""

    baseline: str

    @property
    def prompt_to_prompt(self) -> PromptToPromptOverrides:
        """The settings of Prompt-to-Prompt that the task sets in the place of the generator's."""

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        """What answers depend on beside the classifier that is explained: other networks, and images and files that
        are read after the problems are made, or of which nothing but numbers goes into them."""

    @property
    def captioner(self) -> Captioner | None:
        """Who wrote the problems' captions, if anybody did."""

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        """Raise UserError for what can be seen to fail without a generator, such as classes that are not there."""

    def problems(self, world: TaskInputs) -> tuple[list[Any], int | None]:
        """The first `world.limit` problems, and how many there are in all, None if only asking would tell."""

    def objective(self, problems: Sequence[Any], reference: Reference, classifier: Classifier) -> Objective: ...

    def illustrate(self, problem: Any, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        """Further pictures that belong to an answer, each (c, h, w) in [0, 1]."""

    def measure(self, problem: Any, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """Plain JSON values about one answer, measured on the saved 8-bit pictures; `success` is among them."""

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Plain JSON values about all answers of a run together. records: the results without their `history`."""
