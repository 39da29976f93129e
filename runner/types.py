"""The small records that the parts of the runner hand to each other.

Shape letters: b batch, c latent channels, y x latent rows and columns, h w image rows and columns, t sampler
steps, l text tokens, d text width, k classes, n views. Images are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

# What is optimised: leaf tensors by name, batch first. Diffusion generators use `latent` "b c y x" (the start
# latent z_T) and `text`, `null` "b t l d" (offsets to the embeddings C_t and N_t, zero at the start; no `null` with
# samplers that have one branch).
Controls = dict[str, Tensor]


class UserError(ValueError):
    """Something the user can put right: one line that names the key or file, the value and what is allowed."""


def first_line(error: BaseException) -> str:
    """An exception's message cut to one line, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True)
class Example:
    """A picture that a data set offers. `label` is a class name, `caption` None where nobody wrote one."""

    name: str
    image: Float[Tensor, "3 h w"]
    label: str
    caption: str | None = None


class Dataset(Protocol):
    """Pictures by position, in an order that the run's seed sets. digest: of what decides all of them."""

    labels: tuple[str, ...]
    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...

    def rows(self, label: str) -> list[int]:
        """The positions of the pictures of a class, letter case aside."""

    def nearest(self, label: str) -> str | None:
        """The class most easily confused with `label`, where the data set knows one."""


def article(name: str) -> str:
    """The indefinite article of a name, by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


@dataclass(frozen=True)
class Edit:
    """How a prompt changes: `source` describes the picture, `target` the wanted one.

    `source_words` stand in `source`, `target_words` take their place in `target`. Where no word changes, source and
    target are equal and so are the words.
    """

    source: str
    target: str
    source_words: str
    target_words: str

    @staticmethod
    def unchanged(prompt: str, words: str) -> Edit:
        """A prompt that stays as it is."""
        return Edit(prompt, prompt, words, words)


# Which part of a picture is to stay as it is: what the problem's words do not cover, what they do, all of it, nothing.
KEEP = ("background", "foreground", "all", "none")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question about a picture; each task adds what it asks for.

    name: unique in the run and fit for a folder; seed: of everything random about it; draw: the seed of the random
    prompts that are compared at the start, which problems may share, None for `seed`;
    image: the picture, None where it is drawn from the seed and `edit.source`; picture: the picture's own name;
    keep: one of `KEEP`; words: those whose place is looked for, None for the edit's own; mask: where they are, in
    [0, 1], None where the segmenter has to find it; redrawn: whether what is free of a picture starts from noise, not
    from its inversion, which remembers what was there;
    claim: a prompt and the class that its picture should have: where it has another, the class's name means something
    else to the generator than to the classifier;
    example: the real picture that shows most surely what is asked for, where one is known.
    """

    name: str
    seed: int
    edit: Edit
    image: Float[Tensor, "3 h w"] | None
    picture: str
    keep: str
    words: str | None = None
    mask: Float[Tensor, "1 h w"] | None = None
    redrawn: bool = False
    claim: tuple[str, int] | None = None
    example: Float[Tensor, "3 h w"] | None = None
    draw: int | None = None

    @property
    def region(self) -> str:
        """The words whose place the mask shows."""
        return self.edit.source_words if self.words is None else self.words


@dataclass(frozen=True)
class Anchor:
    """A batch's constants: what a chain needs beside its controls, and what distances are measured against.

    base: the embeddings C_t and N_t of each sampler step, `text` and `null`; controls of these names are added;
    noise: what each sampler step adds (0 with DDIM); norm: length of each start latent;
    mask, latent_mask: soft region S in [0, 1] that is free to change, in pixels and latents;
    original, encoded: the pictures and their scaled latents, of drawn pictures what the chain gives at its start;
    maps: cross-attention maps to inject, layer -> (b, t', heads, pixels, l), t' the recorded steps;
    templates: latents of the original's chain after each step; inject, blend: per sample, the share of the chain
    in which maps are injected, and in which what lies outside the mask is set to the template.
    """

    base: Mapping[str, Float[Tensor, "b t l d"]]
    noise: Float[Tensor, "b t c y x"]
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


@dataclass(frozen=True)
class Head:
    """The last linear layer: logits are features @ weight.T + bias."""

    weight: Float[Tensor, "k f"]
    bias: Float[Tensor, " k"]


class Classifier(Protocol):
    """Images in [0, 1] of any size to a `Response`; resizing and normalisation lie inside.

    recipe: everything that an answer follows from beside the images;
    domain: the kind of pictures it knows, None if not known; head: None where the network does not show it;
    map_module: the last module with a feature map or tokens that the features depend on, None where there is none.
    """

    labels: tuple[str, ...]
    size: int
    digest: str
    recipe: str
    domain: str | None

    @property
    def head(self) -> Head | None: ...

    @property
    def map_module(self) -> str | None: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Response: ...

    def trace(self, images: Float[Tensor, "b 3 h w"], modules: Sequence[str]) -> tuple[Response, dict[str, Tensor]]:
        """The answer, and what the named modules of the network give; `<module>.in` is what a module is given."""


class Weighted(Protocol):
    """Whatever answers follow from beside the classifier; digest: of its weights and settings."""

    digest: str


class Embedder(Protocol):
    """A CLIP model: pictures and texts as unit vectors of one space; scale: what their products are multiplied by."""

    digest: str
    scale: float

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
    pictures' names to masks of what the words name, 0 or 1."""

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]: ...  # fmt: skip


class TextSegmenter(Protocol):
    """Finds in pictures what words name. digest: of the weights and settings that its masks follow from."""

    @property
    def digest(self) -> str: ...

    def find(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """1 where a picture in [0, 1] shows what its words name, else 0; 0 everywhere where nothing is found."""


class Screen(Protocol):
    """Keeps pictures from being seen. digest: of the weights and settings that it goes by."""

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, " n"]]:
        """Pictures in [0, 1], those that are flagged made unrecognisable, and which these are."""


# One value per sample, lower is better.
Term = Callable[[Scene], Float[Tensor, " b"]]
# Named terms with their weights.
Objective = Mapping[str, tuple[float, Term]]


@dataclass(frozen=True)
class Start:
    """Where a batch's optimisation begins: controls, candidate anchors to choose from, notes per problem; others:
    further candidates for the controls; scenes: what all the candidates show, None for what the first anchor makes of
    them.
    """

    controls: Controls
    anchors: Sequence[Anchor]
    notes: Sequence[Sequence[str]]
    others: Sequence[Controls] = ()
    scenes: Callable[[], Iterator[Scene]] | None = None


# Prompt-to-Prompt schedules that replace the generator's own: `inject` and `blend`, shares of the chain to compare.
Schedules = Mapping[str, Sequence[float]]


class Generator(Protocol):
    """A differentiable picture maker. Calling it is pure: the same arguments give the same scene.

    lasting: the controls that are kept with an answer, since it can be made again from them;
    reported: how many pictures an answer is.
    """

    lasting: tuple[str, ...]
    reported: int

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""

    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start: ...

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        """The constants of optimisation step k: the anchor itself, unless every step meets other random numbers. An
        iterate is judged with the anchor itself."""

    def final(self, anchor: Anchor) -> Anchor:
        """The constants that an answer's loss is measured with: the anchor itself, unless it holds random numbers by
        which the best iterate was chosen."""

    def __call__(self, controls: Controls, anchor: Anchor) -> Sequence[Scene]:
        """The last x0-predictions as scenes; the last of them is the picture that counts."""

    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b n 3 h w"]:
        """What is reported of each sample, in [0, 1]: the picture that counts, and where an answer is more than one
        picture, more of them."""

    def worded(self, controls: Controls, anchor: Anchor) -> list[str] | None:
        """The prompt of each sample in words, where prompts are what is optimised."""


class Painter(Protocol):
    """Pictures of prompts. recipe: everything that one follows from beside its prompt and seed."""

    resolution: int
    digest: str
    recipe: str

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, in [0, 1]; each start latent is drawn from its own seed."""

    def word_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """Where a picture attends to each word of its prompt (split at blanks), and to a phrase that stands in it; each
        map divided by its maximum. seed: of what an inversion draws."""


@dataclass(frozen=True)
class World:
    """What a task makes its problems of. limit: how many problems are wanted, None for all."""

    dataset: Dataset
    classifier: Classifier
    generator: Painter
    seed: int
    limit: int | None


# The saved pictures of an answer, by name: `before` (the original; the start of what is drawn with unchanged words),
# `start`, `best`, `mask` (one channel, what was free to change) and those that the task adds.
Pictures = Mapping[str, Float[Tensor, "c h w"]]


class Task(Protocol):
    """Which questions are asked, what an answer is optimised for, and what is reported of it."""

    baseline: str

    @property
    def schedules(self) -> Schedules:
        """What replaces the generator's own."""

    @property
    def networks(self) -> Sequence[Weighted]:
        """Those that answers depend on beside the classifier that is explained."""

    @property
    def captioner(self) -> Captioner | None:
        """Who wrote the problems' captions, if anybody did."""

    def problems(self, world: World) -> tuple[list[Any], int | None]:
        """The first `world.limit` problems, and how many there are in all, None if only asking would tell."""

    def objective(self, problems: Sequence[Any], anchor: Anchor, classifier: Classifier) -> Objective: ...

    def illustrate(self, problem: Any, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        """Further pictures that belong to an answer, each (c, h, w) in [0, 1]."""

    def measure(self, problem: Any, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """Plain JSON values about one answer, measured on the saved 8-bit pictures; `success` is among them."""

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Plain JSON values about all answers of a run together."""
