"""The small records that the parts of the runner hand to each other.

Shape letters: b batch, c latent channels, y x latent rows and columns, h w image rows and columns, t sampler
steps, l text tokens, d text width, k classes, n views. Images are RGB in [0, 1].
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

# What is optimised: leaf tensors by name, batch first. Diffusion generators use `latent` "b c y x" (the start
# latent z_T) and `text`, `null` "b t l d" (offsets to the embeddings C_t and N_t, zero at the start; no `null` with
# samplers that have one branch).
Controls = dict[str, Tensor]

# Control characters, ends of lines, and what stands for bytes of names of files that are no text.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(ValueError):
    """Something the user can put right: one line that names the key or file, the value and what is allowed. Ends of
    lines and other control characters in a name or a value are written as their codes."""

    def __init__(self, line: object = "") -> None:
        super().__init__(printable(str(line)))


class UnreadableImageError(UserError):
    """An image that is gone, broken, too small, too large or not the one that it was; others go on without it."""


class NonFiniteError(UserError):
    """A measured value is not a number: one line that names it. It is never repaired."""


def printable(text: str) -> str:
    """A text without control characters, which a terminal would obey: each is written as its code."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def ensure_finite(values: Tensor, what: str) -> Tensor:
    """The values, if all are finite. Raises NonFiniteError that names what they are, and the first row that is not,
    of several."""
    rows = torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(dim=1)
    if not rows.all():
        place = f" in image {int(rows.long().argmin()) + 1} of {len(rows)}" if len(rows) > 1 else ""
        raise NonFiniteError(f"{what}: not finite{place}")
    return values


def first_line(error: BaseException) -> str:
    """An exception's message cut to one line, or its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True)
class Example:
    """An image that a data set offers, decoded when it is asked for. `label` is a class name, `caption` None where
    nobody wrote one.

    load: decodes it; origin: what its pixels follow from, the file that they are read from or words that decide them;
    None: nothing that is shorter than themselves.
    """

    name: str
    load: Callable[[], Float[Tensor, "3 h w"]]
    label: str
    caption: str | None = None
    origin: Path | str | None = None

    @cached_property
    def image(self) -> Float[Tensor, "3 h w"]:
        """RGB in [0, 1], decoded once and held as long as this. Raises UnreadableImageError where it is gone or
        broken."""
        return self.load()


def matching_names(name: str, names: Iterable[str]) -> list[str]:
    """Those of different names that are meant by a name: the one that equals it; where none does, those that differ
    from it by letter case alone, or by how an accent is written: macOS takes names of files apart."""
    known = list(dict.fromkeys(names))
    return [name] if name in known else [other for other in known if _folded(other) == _folded(name)]


def _folded(name: str) -> str:
    """A name without letter case, in one way of writing accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def matching_indices(key: str, name: str, labels: Sequence[str]) -> list[int]:
    """The positions of the labels that a name means.

    key: where the name stands, for errors. Raises UserError if several labels differ from it by letter case alone.
    """
    meant = matching_names(name, labels)
    if len(meant) > 1:
        raise UserError(f"{key}: {' and '.join(meant)} differ from {name} by letter case alone; write one of them")
    return [i for i, label in enumerate(labels) if label in meant]


def indefinite_article(name: str) -> str:
    """The indefinite article of a name, by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


@dataclass(frozen=True)
class CaptionEdit:
    """How a prompt changes: `source` describes the picture, `target` the wanted one.

    `source_words` stand in `source`, `target_words` take their place in `target`. Where no word changes, source and
    target are equal and so are the words.
    """

    source: str
    target: str
    source_words: str
    target_words: str

    @staticmethod
    def unchanged(prompt: str, words: str) -> CaptionEdit:
        """A prompt that stays as it is."""
        return CaptionEdit(prompt, prompt, words, words)


# Which part of a picture is to stay as it is: what the problem's words do not cover, what they do, all of it, nothing.
PRESERVE_OPTIONS = ("background", "foreground", "all", "none")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question about a picture; each task adds what it asks for.

    name: unique in the run and fit for a folder; seed: of everything random about it; init_seed: the seed of the random
    prompts that are compared at the start, which problems may share, None for `seed`; load: reads the image at the
    generator's size, so that a run holds no images but its batch's; None where it is generated from the seed and
    `edit.source`; image_name: the image's own name; content_digest: digest of what the image was made from, the same on
    every machine, None where nobody took one; preserve: one of `PRESERVE_OPTIONS`; mask_words: those whose place
    is looked for, None for the edit's own; mask: where they are, in [0, 1], None where the segmenter has to find it;
    editable_from_noise: whether what is free of a picture starts from noise, not from its inversion, which remembers
    what was there; prompt_check: a prompt and the class that its picture should have: where it has another, the class's
    name means something else to the generator than to the classifier; load_top_example: reads the real image that shows
    most surely what is asked for, at the generator's size; None where none is known; label_index: index of the class
    that the given image is said to show, where the classifier should predict it; error: what kept the question from
    being asked: such a problem asks nothing, and fails with it."""

    name: str
    seed: int
    edit: CaptionEdit
    load: Callable[[], Float[Tensor, "3 h w"]] | None
    image_name: str
    preserve: str
    mask_words: str | None = None
    mask: Float[Tensor, "1 h w"] | None = None
    editable_from_noise: bool = False
    prompt_check: tuple[str, int] | None = None
    load_top_example: Callable[[], Float[Tensor, "3 h w"]] | None = None
    init_seed: int | None = None
    content_digest: str | None = None
    label_index: int | None = None
    error: Exception | None = None

    @property
    def image(self) -> Float[Tensor, "3 h w"] | None:
        """The image that is changed, read anew; None where it is generated. Raises UserError where it cannot be read,
        or is not the one that it was when the problem was made."""
        return None if self.load is None else self.load()

    @property
    def words_to_segment(self) -> str:
        """The words whose place the mask shows."""
        return self.edit.source_words if self.mask_words is None else self.mask_words


@dataclass(frozen=True)
class Reference:
    """What the images of a batch are compared with.

    original: the given images, and those that the generator makes of the unedited prompts where none are given;
    original_latent: their scaled latents; mask, latent_mask: editable region S in [0, 1], of pixels and of latents.
    """

    original: Float[Tensor, "b 3 h w"]
    original_latent: Float[Tensor, "b c y x"]
    mask: Float[Tensor, "b 1 h w"]
    latent_mask: Float[Tensor, "b 1 y x"]


@dataclass(frozen=True)
class Scene:
    """What one render shows. `views` are what a classifier looks at: crops of the image, or the image itself.

    steps_left: sampler steps between the x0-prediction that is shown and the last one; crops_at: the same crops of the
    image at any size in pixels, None where the views are the image itself.
    """

    image: Float[Tensor, "b 3 h w"]
    latent: Float[Tensor, "b c y x"]
    views: Float[Tensor, "b n 3 s s"]
    steps_left: int = 0
    crops_at: Callable[[int], Float[Tensor, "b n 3 s s"]] | None = None

    def views_at(self, size: int) -> Float[Tensor, "b n 3 s s"]:
        """The views for a classifier whose images have this size: crops of that size, of the same regions."""
        return self.views if self.crops_at is None or size == self.views.shape[-1] else self.crops_at(size)


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


# One value per sample, lower is better.
Term = Callable[[Scene], Float[Tensor, " b"]]
# Named terms with their weights.
Objective = Mapping[str, tuple[float, Term]]


# What a generator computes of a batch's images before the optimization and does not compute again after a resume:
# tensors by names of its own.
Precomputed = Mapping[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way to start an optimization. The candidates of a batch are compared, and each sample takes its best one.

    initial_prompt: position among the random initial prompts; cross_replace_steps, background_blend_steps: shares of
    the chain in [0, 1], see `PromptToPrompt`.
    """

    initial_prompt: int = 0
    cross_replace_steps: float = 0.0
    background_blend_steps: float = 0.0


# What a task sets in the place of the generator's `PromptToPrompt`, by the names of its fields.
PromptToPromptOverrides = Mapping[str, Sequence[float]]
# Of tasks that replace no words and preserve no region.
DISABLED_PROMPT_TO_PROMPT: PromptToPromptOverrides = {"cross_replace_steps": (0.0,), "background_blend_steps": (0.0,)}


@dataclass(frozen=True)
class PromptToPrompt:
    """The settings of Prompt-to-Prompt that are compared at the start, as shares of the chain in [0, 1].

    cross_replace_steps: in which the cross-attention maps of the original prompt are injected; background_blend_steps:
    in which the latents of the preserved region are set to those of the original.
    """

    cross_replace_steps: Sequence[float]
    background_blend_steps: Sequence[float]

    def with_overrides(self, overrides: PromptToPromptOverrides) -> PromptToPrompt:
        """These settings, those of a task in their place where it has any."""
        return replace(self, **overrides)

    @property
    def max_cross_replace_steps(self) -> float:
        """The largest share of the chain in which maps are injected."""
        return max(self.cross_replace_steps)

    @property
    def candidates(self) -> list[Candidate]:
        """All pairs of shares."""
        pairs = product(self.cross_replace_steps, self.background_blend_steps)
        return [Candidate(cross_replace_steps=maps, background_blend_steps=blend) for maps, blend in pairs]


# The constants of a batch that a generator needs beside its controls. Only the generator reads them.
Context = TypeVar("Context")
OtherContext = TypeVar("OtherContext")


@dataclass(frozen=True)
class Initialization(Generic[Context]):
    """A batch before the choice among its candidates.

    controls, context: those of the first candidate; reference: of all candidates; candidates: the same for every
    sample; warnings: per problem; precomputed: what `Generator.initialize` takes after a resume.
    """

    controls: Controls
    context: Context
    reference: Reference
    candidates: Sequence[Candidate]
    warnings: Sequence[Sequence[str]]
    precomputed: Precomputed

    def with_context(self, context: OtherContext) -> Initialization[OtherContext]:
        """The same with the context of another generator, for one that is built on this one's."""
        return Initialization(self.controls, context, self.reference, self.candidates, self.warnings, self.precomputed)


# The saved images of a result by name: `before` (the original; the start of what is generated with unchanged words),
# `start`, `best`, `mask` (one channel, the editable region) and those that the task adds.
Images = Mapping[str, Float[Tensor, "c h w"]]
