"""What a task declares about its results: images with captions, and values with labels. Pages, loggers and figures read
the declaration; a result's record is stored under the same keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

from jaxtyping import Float
from torch import Tensor

Record = Mapping[str, Any]  # a result as result.json and a line of results.jsonl hold it


# --- images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageField:
    """One image of a result. key: its name in the record's `images` and, with `.png`, its file; caption: its title on
    pages; overlaid_on: keys of images, for a map that is shown over the first of them that exists; is_sample: whether
    it is one of many images of the same prompt."""

    key: str
    caption: str
    overlaid_on: tuple[str, ...] = ()
    is_sample: bool = False


@dataclass(frozen=True)
class ImageSeries:
    """Numbered images whose count depends on the result. key, caption: of all, before the number, which starts at 1."""

    key: str
    caption: str
    is_sample: bool = False

    def image(self, number: int) -> ImageField:
        return ImageField(f"{self.key}_{number:02}", f"{self.caption} {number}", is_sample=self.is_sample)

    def images(self, keys: Collection[str]) -> list[ImageField]:
        """The images of the series that exist under these keys, in order."""
        images: list[ImageField] = []
        while (image := self.image(len(images) + 1)).key in keys:
            images.append(image)
        return images


# Of every task. A generated image has an original only if its prompt changes.
ORIGINAL = ImageField("original", "Original")
START = ImageField("start", "Initialization")
RESULT = ImageField("result", "Result")
DIFFERENCE = ImageField("difference", "Absolute difference")
MASK = ImageField("mask", "Editable region (white)")
SAMPLES = ImageSeries("sample", "Sample", is_sample=True)
COMMON_IMAGES = (ORIGINAL, START, RESULT, DIFFERENCE, MASK)


@dataclass(frozen=True)
class ResultImages:
    """The saved images of a result in [0, 1]. original: None where a generated image has none; mask: the editable
    region, None where the whole image is edited; samples: further images of the prompt; task_images: those that the
    task added."""

    original: Float[Tensor, "3 h w"] | None
    start: Float[Tensor, "3 h w"]
    result: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "1 h w"] | None = None
    samples: Sequence[Float[Tensor, "3 h w"]] = ()
    task_images: Mapping[ImageField, Float[Tensor, "c h w"]] = field(default_factory=dict)

    @property
    def before(self) -> Float[Tensor, "3 h w"]:
        """The image before optimization: the original, or the initialization of a generated image."""
        return self.start if self.original is None else self.original

    @property
    def stages(self) -> list[Float[Tensor, "3 h w"]]:
        """The images before optimization, at its start and after it."""
        return [self.before, self.start, self.result]

    @staticmethod
    def from_fields(images: Mapping[ImageField, Float[Tensor, "c h w"]]) -> ResultImages:
        """From images by field, without those of the task."""
        samples = [image for image_field, image in images.items() if image_field.is_sample]
        return ResultImages(images.get(ORIGINAL), images[START], images[RESULT], images.get(MASK), samples)

    def by_field(self) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """All images with what they are."""
        common = {ORIGINAL: self.original, START: self.start, RESULT: self.result, MASK: self.mask}
        samples = {SAMPLES.image(number): image for number, image in enumerate(self.samples, start=1)}
        return {key: image for key, image in common.items() if image is not None} | samples | dict(self.task_images)


# --- values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """How pages name a value: `field: Annotated[float, Label("PSNR in dB")]`."""

    text: str


class CommonRecord(TypedDict):
    """What the record of every result holds, of whatever task."""

    name: Annotated[str, Label("Name")]
    image_name: Annotated[str, Label("Image")]
    caption: Annotated[str, Label("Caption")]
    prompt: Annotated[str, Label("Prompt")]
    loss: dict[str, float]
    max_steps: Annotated[int, Label("Optimization steps")]
    best_step: Annotated[int, Label("Best step")]
    cross_replace_steps: Annotated[float, Label("Cross-replace steps, share of the chain")]
    background_blend_steps: Annotated[float, Label("Background blend steps, share of the chain")]
    seconds: Annotated[float, Label("Time in s")]
    seed: Annotated[int, Label("Seed")]
    warnings: list[str]
    preserve: Annotated[str, Label("Preserved region")]
    images: dict[str, str]
    controls_file: NotRequired[Annotated[str, Label("Optimized parameters")]]
    history: list[dict[str, Any]]


class SuccessFields(TypedDict):
    """Whether a result is a success, and the numbers that decide it."""

    success: bool
    criterion: Annotated[str, Label("Success criterion")]


class StageFields(TypedDict):
    """Predictions and confidences by class before optimization, at its start and after it."""

    predicted_before: str
    predicted_start: str
    predicted_after: str
    confidence_before: dict[str, float]
    confidence_start: dict[str, float]
    confidence_after: dict[str, float]


class SummaryFields(TypedDict, total=False):
    """What the summaries of several tasks hold."""

    results: Annotated[int, Label("Results")]
    successes: Annotated[int, Label("Successes")]
    successes_at_start: Annotated[int, Label("Successes before the first step")]


def field_labels(*records: type) -> dict[str, str]:
    """The labels of the fields of typed dictionaries, by key."""
    hints = [get_type_hints(record, include_extras=True) for record in records]
    return {
        key: label.text
        for hint in hints for key, annotation in hint.items()
        if (label := _label(annotation)) is not None
    }  # fmt: skip


def _label(annotation: Any) -> Label | None:
    """The label within an annotation, which `NotRequired` may surround."""
    if label := next((part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Label)), None):
        return label
    return next((label for part in getattr(annotation, "__args__", ()) if (label := _label(part)) is not None), None)


# --- both ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultSchema:
    """What the results of a task hold. title: the task's full name; record: a typed dictionary of the values that the
    task measures; rows: those of tables within it; summary: typed dictionaries of its summary and of the rows of its
    tables; images: the task's own, in the order of a page, and common ones with another caption; series: the task's
    numbered images; images_by_record: images whose names follow from the values of a result; omitted_images: saved
    ones that say nothing on a page; order: sort key of the results of a page, None for the order of the problems."""

    title: str
    record: type
    rows: Sequence[type] = ()
    summary: Sequence[type] = ()
    images: Sequence[ImageField] = ()
    series: Sequence[ImageSeries] = ()
    images_by_record: Callable[[Record], Sequence[ImageField]] | None = None
    omitted_images: Sequence[ImageField] = ()
    order: Callable[[Record], Any] | None = None

    @cached_property
    def labels(self) -> dict[str, str]:
        """Labels of the values of a result."""
        return field_labels(*self.rows, self.record, CommonRecord)

    @cached_property
    def summary_labels(self) -> dict[str, str]:
        """Labels of the values of the summary and of its tables."""
        return field_labels(*self.rows, self.record, CommonRecord, SummaryFields, *self.summary)

    def images_of(self, record: Record) -> list[ImageField]:
        """The images of a result in the order of a page. Those that are not declared come last, under their keys."""
        omitted = {image.key for image in self.omitted_images}
        keys = [key for key in record.get("images") or {} if key not in omitted]
        declared = {image.key: image for image in (*COMMON_IMAGES, *self.images)}
        declared |= {image.key: image for image in self._images_by_record(record)}
        declared |= {image.key: image for series in (*self.series, SAMPLES) for image in series.images(keys)}
        known = [image for key, image in declared.items() if key in keys]
        return known + [ImageField(key, key.replace("_", " ").capitalize()) for key in keys if key not in declared]

    def _images_by_record(self, record: Record) -> Sequence[ImageField]:
        """None where a record of another version lacks the values that name the images."""
        try:
            return () if self.images_by_record is None else self.images_by_record(record)
        except (KeyError, TypeError):
            return ()
