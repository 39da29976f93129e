"""Records that the parts of a run pass to each other.

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

# What is optimized: leaf tensors by name, batch first. Diffusion generators have `latent` "b c y x" (the start latent
# z_T) and `text`, `null` "b t l d" (offsets to the embeddings C_t and N_t, initially 0; no `null` with samplers that
# have one branch).
Controls = dict[str, Tensor]

# Control characters, line ends, and the surrogates of bytes in file names that are not valid text.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(ValueError):
    """A mistake that the user can correct: one line with the key or file, the value and what is allowed. Line ends and
    other control characters in a name or a value are written as their codes."""

    def __init__(self, line: object = "") -> None:
        super().__init__(printable(str(line)))


class UnreadableImageError(UserError):
    """An image that is missing, broken, too small, too large or has changed; other images are not affected."""


class NonFiniteError(UserError):
    """A value that is not finite: one line that names it. It is never repaired."""


def printable(text: str) -> str:
    """The text with control characters, which a terminal would execute, written as their codes."""
    return CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def ensure_finite(values: Tensor, what: str) -> Tensor:
    """The values, if all are finite. Raises NonFiniteError with `what` they are and the position of the first row that
    is not finite, if there are several rows."""
    rows = torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(dim=1)
    if not rows.all():
        place = f" in image {int(rows.long().argmin()) + 1} of {len(rows)}" if len(rows) > 1 else ""
        raise NonFiniteError(f"{what}: not finite{place}")
    return values


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@dataclass(frozen=True)
class Example:
    """An image of a data set, decoded at its first use.

    label: class name; caption: None if the data set has none; load: decodes the image; origin: what determines the
    pixels, their file or a description; None if only the pixels do.
    """

    name: str
    load: Callable[[], Float[Tensor, "3 h w"]]
    label: str
    caption: str | None = None
    origin: Path | str | None = None

    @cached_property
    def image(self) -> Float[Tensor, "3 h w"]:
        """RGB in [0, 1], decoded once and held in memory. Raises UnreadableImageError if it is missing or broken."""
        return self.load()


def matching_names(name: str, names: Iterable[str]) -> list[str]:
    """The names that match a name: the equal one, else those that differ from it by letter case alone or by the Unicode
    form of accents, which macOS changes in file names."""
    distinct = list(dict.fromkeys(names))
    return [name] if name in distinct else [other for other in distinct if _case_folded(other) == _case_folded(name)]


def _case_folded(name: str) -> str:
    """A name without letter case, in one Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def matching_indices(key: str, name: str, labels: Sequence[str]) -> list[int]:
    """The positions of the labels that match a name.

    key: configuration key of the name, for errors. Raises UserError if several labels differ from it by letter case
    alone.
    """
    matching = matching_names(name, labels)
    if len(matching) > 1:
        raise UserError(f"{key}: {' and '.join(matching)} differ from {name} by letter case alone; write one of them")
    return [i for i, label in enumerate(labels) if label in matching]


def indefinite_article(name: str) -> str:
    """The indefinite article of a name, by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


@dataclass(frozen=True)
class CaptionEdit:
    """A replacement of words in a prompt.

    source, target: the prompts of the original and of the edited image; source_words, target_words: the words of
    `source` and those that replace them in `target`. Without a replacement both prompts are equal, and both words.
    """

    source: str
    target: str
    source_words: str
    target_words: str

    @staticmethod
    def unchanged(prompt: str, words: str) -> CaptionEdit:
        """A prompt without a replacement; words: of the prompt, those that a mask is found by."""
        return CaptionEdit(prompt, prompt, words, words)


# The preserved region of an image: all but the object of the problem's words, that object, everything, nothing.
PRESERVE_OPTIONS = ("background", "foreground", "all", "none")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a run; each task adds fields of its own.

    name: unique in the run and valid as a folder name; seed: of all random numbers of the problem; init_seed: seed of
    the random initial prompts, which problems may share, None for `seed`; load: reads the image at the generator's
    resolution, so that a run holds the images of one batch only; None if the image is generated from the seed and
    `edit.source`; load_edited: reads the result where the task itself edits the image, None elsewhere; image_name:
    name of the image; content_digest: digest of what determines the image, the same on every machine, None if there is
    none; preserve: one of `PRESERVE_OPTIONS`; mask_words: words of the object in the mask, None for the edit's; mask:
    in [0, 1], None if the segmenter finds it; editable_from_noise: whether the editable region of a given image starts
    from noise instead of its inversion, which encodes the object; prompt_check: a prompt and the class that its image
    should be predicted as: another prediction means that the generator and the classifier do not agree on the class
    name; load_top_example: reads the real image with the highest activation at the generator's resolution, None if
    none is known; label_index: index of the class that the given image is labeled with, and that the classifier should
    predict; error: why the problem could not be created: it then fails with this error."""

    name: str
    seed: int
    edit: CaptionEdit
    load: Callable[[], Float[Tensor, "3 h w"]] | None
    image_name: str
    preserve: str
    load_edited: Callable[[], Float[Tensor, "3 h w"]] | None = None
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
        """The given image, read at every call; None if it is generated. Raises UserError if it cannot be read or has
        changed since the problem was created."""
        return None if self.load is None else self.load()

    @property
    def words_to_segment(self) -> str:
        """The words of the object in the mask."""
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
    """One render of a batch.

    views: what a classifier sees: crops of the image, the image itself, or several images of the problem; steps_left:
    sampler steps between this x0-prediction and the last one; crops_at: the same crops at any size in pixels, None if
    the views are not crops.
    """

    image: Float[Tensor, "b 3 h w"]
    latent: Float[Tensor, "b c y x"]
    views: Float[Tensor, "b n 3 s s"]
    steps_left: int = 0
    crops_at: Callable[[int], Float[Tensor, "b n 3 s s"]] | None = None

    def views_at(self, size: int) -> Float[Tensor, "b n 3 s s"]:
        """The views for a classifier of this input size: crops of the same regions at that size."""
        return self.views if self.crops_at is None or size == self.views.shape[-1] else self.crops_at(size)


@dataclass(frozen=True)
class Response:
    """The output of a classifier; features: inputs of its last linear layer, None if it has none."""

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
# tensors by name, which only the generator reads.
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
