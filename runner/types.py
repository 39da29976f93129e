"""The small records that the parts of the runner hand to each other.

Shape letters: b batch, c latent channels, y x latent rows and columns, h w image rows and columns, t sampler
steps, l text tokens, d text width, k classes, n views. Images are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

# What is optimised: leaf tensors by name, batch first. Diffusion generators use `latent` "b c y x" (the start
# latent z_T) and `text`, `null` "b t l d" (offsets to the embeddings C_t and N_t, zero at the start).
Controls = dict[str, Tensor]


class UserError(ValueError):
    """Something the user can put right: one line that names the key or file, the value and what is allowed."""


@dataclass(frozen=True)
class Example:
    """A picture that a data set offers. `label` is a class name, `caption` None where nobody wrote one."""

    name: str
    image: Float[Tensor, "3 h w"]
    label: str
    caption: str | None = None


class Dataset(Protocol):
    """Pictures by position, in an order that the run's seed sets."""

    labels: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def nearest(self, label: str) -> str | None:
        """The class most easily confused with `label`, where the data set knows one."""


def article(name: str) -> str:
    """The indefinite article of a name, by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


@dataclass(frozen=True)
class Edit:
    """How a prompt changes: `source` describes the picture, `target` the wanted one, and the words that differ.

    The words define the region that is free to change.
    """

    source: str
    target: str
    source_words: str
    target_words: str


@dataclass(frozen=True)
class Problem:
    """One question: what must `image` look like to be called `target`?

    name: unique in the run and fit for a folder; seed: of everything random about it;
    source, target: class indices of the classifier.
    """

    name: str
    seed: int
    edit: Edit
    image: Float[Tensor, "3 h w"]
    source: int
    target: int


@dataclass(frozen=True)
class Anchor:
    """A batch's constants: what a chain needs beside its controls, and what distances are measured against.

    text, null: base embeddings per sampler step; norm: length of each start latent;
    mask, latent_mask: soft region S in [0, 1] that is free to change, in pixels and latents;
    original, encoded: the pictures and their scaled latents;
    maps: cross-attention maps to inject, layer -> (b, t', heads, pixels, l), t' the recorded steps;
    templates: latents of the original's chain after each step; inject, blend: per sample, the share of the chain
    in which maps are injected, and in which what lies outside the mask is set to the template.
    """

    text: Float[Tensor, "b t l d"]
    null: Float[Tensor, "b t l d"]
    norm: Float[Tensor, " b"]
    mask: Float[Tensor, "b 1 h w"]
    latent_mask: Float[Tensor, "b 1 y x"]
    original: Float[Tensor, "b 3 h w"]
    encoded: Float[Tensor, "b c y x"]
    templates: Float[Tensor, "b t c y x"]
    maps: Mapping[str, Tensor]
    inject: Float[Tensor, " b"]
    blend: Float[Tensor, " b"]


@dataclass(frozen=True)
class Scene:
    """What one render shows. `views` are what a classifier looks at: crops of the image, or the image itself."""

    image: Float[Tensor, "b 3 h w"]
    latent: Float[Tensor, "b c y x"]
    views: Float[Tensor, "b n 3 s s"]


@dataclass(frozen=True)
class Response:
    """A classifier's answer: logits, and the features before its last linear layer where it has one."""

    logits: Float[Tensor, "b k"]
    features: Float[Tensor, "b f"] | None


class Classifier(Protocol):
    """Images in [0, 1] of any size to a `Response`; resizing and normalisation lie inside."""

    labels: tuple[str, ...]
    size: int
    digest: str

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Response: ...


class Captioner(Protocol):
    """A caption of a picture that contains its class name."""

    def __call__(self, example: Example) -> str: ...


class Segmenter(Protocol):
    """Pictures in [0, 1] and the cross-attention maps of their words, in [0, 1], to masks of the words' objects."""

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"]
    ) -> Float[Tensor, "b 1 h w"]: ...


# One value per sample, lower is better.
Term = Callable[[Scene], Float[Tensor, " b"]]
# Named terms with their weights.
Objective = Mapping[str, tuple[float, Term]]


@dataclass(frozen=True)
class Start:
    """Where a batch's optimisation begins: controls, candidate anchors to choose from, notes per problem."""

    controls: Controls
    anchors: Sequence[Anchor]
    notes: Sequence[Sequence[str]]


class Generator(Protocol):
    """A differentiable picture maker. Calling it is pure: the same arguments give the same scene."""

    resolution: int
    digest: str

    @property
    def lr_scale(self) -> Mapping[str, float]:
        """What the optimiser's rate of each control is multiplied by."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""

    def begin(self, problems: Sequence[Problem]) -> Start: ...

    def __call__(self, controls: Controls, anchor: Anchor) -> Sequence[Scene]:
        """The last x0-predictions as scenes; the last of them is the picture that counts."""


class Task(Protocol):
    """Which questions are asked, what an answer is optimised for, and what is reported of it."""

    baseline: str

    def problems(
        self, dataset: Dataset, classifier: Classifier, resolution: int, seed: int, limit: int | None
    ) -> tuple[list[Problem], int]:
        """The first `limit` problems, and how many there are in all."""

    def objective(self, problems: Sequence[Problem], anchor: Anchor, classifier: Classifier) -> Objective: ...

    def measure(
        self, problem: Problem, original: Float[Tensor, "3 h w"], best: Float[Tensor, "3 h w"], classifier: Classifier
    ) -> dict[str, Any]:
        """Plain JSON values about one answer, measured on the saved 8-bit pictures; `success` is among them."""
