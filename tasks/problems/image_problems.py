"""What tasks that start from a picture have in common: which pictures, and what of them stays."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_example
from classifier_lens.data.images import center_crop_resize
from classifier_lens.data.mask_files import read_mask
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset
from classifier_lens.runner.types import CaptionEdit, Example, Images, UnreadableImageError, UserError, ensure_finite
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.prompts.target_rules import class_indices

T = TypeVar("T")


def image_fields(
    dataset: Dataset, i: int, example: Example, side: int, preserve: str, mask: str | None
) -> dict[str, Any]:
    """The fields of a problem that starts from an image, the data set's example at position i: the image at the
    generator's size, read when its batch begins; its name and content, what stays, and the mask that the user drew, if
    any."""
    content = hash_example(example)
    load = image_loader(dataset, i, content, side)
    return {**generated_image_fields(example.name, side, preserve, mask), "load": load, "content_digest": content}


def image_loader(dataset: Dataset, i: int, content: str, side: int) -> Callable[[], Float[Tensor, "3 s s"]]:
    """Reads a data set's image at position i, of `side` pixels, whenever it is called: a run holds no images but its
    batch's. The call raises UnreadableImageError if the image is not the one of this content any more."""
    return partial(_load_unchanged_image, dataset, i, side, content)


def _load_unchanged_image(dataset: Dataset, i: int, side: int, content: str) -> Float[Tensor, "3 s s"]:
    example = dataset[i]
    if hash_example(example) != content:
        raise UnreadableImageError(
            f"{example.name}: its image was changed while the run went on; the same command begins anew"
        )
    return center_crop_resize(example.image, side)


def generated_image_fields(name: str, side: int, preserve: str, mask: str | None) -> dict[str, Any]:
    """The same fields where the picture is drawn."""
    given = None if mask is None else _mask(mask, side, _changed(mask))
    return {"load": None, "image_name": name, "preserve": preserve, "mask": given}


@lru_cache(maxsize=1)
def _mask(path: str, side: int, changed: int) -> Float[Tensor, "1 s s"]:
    """The mask of a file, one for all problems that share it. changed: when the file was."""
    return read_mask("task.mask", path, (side, side))


def _changed(path: str) -> int:
    """When a file was changed, in ns; 0 where there is none."""
    file = Path(path).expanduser()
    return file.stat().st_mtime_ns if file.exists() else 0


def unedited_image_fields(
    dataset: Dataset, i: int, example: Example, captioner: Captioner, side: int, preserve: str, mask: str | None
) -> dict[str, Any]:  # fmt: skip
    """The fields of `image_fields` and a caption of which no word changes."""
    edit = CaptionEdit.unchanged(captioner.caption(example), example.label)
    return {"edit": edit, **image_fields(dataset, i, example, side, preserve, mask)}


def problems_of_images(
    dataset: Dataset, rows: Iterable[int], questions: Callable[[int, Example], Iterable[T]]
) -> Iterator[T]:  # fmt: skip
    """What is asked of each of a data set's images, by position and example. One that cannot be read is left out, with
    a line that tells of it: its head is read here, its pixels only where the questions depend on them. Where what a
    network says of it cannot be had, one problem fails by the image's name."""
    for i in rows:
        try:
            example = dataset[i]
            yield from problems_or_failure(example.name, partial(questions, i, example))
        except UnreadableImageError as error:
            print(f"left out: {error}", flush=True)


def image_indices(dataset: Dataset, label: str | None) -> list[int]:
    """Positions of a class's pictures, of all pictures for None. Raises UserError if there are none."""
    rows = list(range(len(dataset))) if label is None else dataset.indices(label)
    if not rows:
        raise UserError(
            f"task.label={label}: the data set has no such picture; it has {', '.join(dataset.labels[:10])}"
        )
    return rows


MAX_SLUG_BYTES = 80  # bytes of a name's part: with an image's name and what follows it is below a file system's 255
# Pictures of a class, of other classes, and drawn ones of the class.
START_IMAGES = ("own", "other", "generated")


def start_indices(dataset: Dataset, label: str, start_images: str, count: int, labels: Sequence[str]) -> list[int]:
    """The first `count` positions of the pictures that a class's questions start from, as one of `START_IMAGES` says;
    numbers where pictures are drawn. labels: the classifier's. Raises UserError if the data set has none."""
    if start_images == "generated":
        return list(range(count))
    own = set(class_indices(dataset, label, labels))
    rows = [i for i in range(len(dataset)) if (i in own) == (start_images == "own")]
    if not rows:
        raise UserError(f"task.start_images={start_images}: the data set has no such picture for '{label}'")
    return rows[:count]


def problem_seed(seed: int, i: int, repeat: int = 0) -> int:
    """The seed of the i-th question of a run and of its repetitions: no two are equal."""
    return seed * 1_000_003 + i + repeat * 1_000_000_007


def slug(name: str, among: Sequence[str] = ()) -> str:
    """A name fit for a file on every system: "a fiddler crab" -> "a-fiddler-crab"; letters and digits of any alphabet
    stay. A digest stands behind a name that another one of `among` would share with it, letter case aside, that has no
    letter, or that is cut since it is longer than `MAX_SLUG_BYTES` bytes."""
    plain = _plain(name)
    shared = _shared(tuple(among))[plain] - (name in among)
    if plain and not shared and len(plain.encode()) <= MAX_SLUG_BYTES:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain.encode()[: MAX_SLUG_BYTES - 9].decode(errors='ignore')}-{digest}".lstrip("-")


def _plain(name: str) -> str:
    """Letters, the marks on them and digits in lower case, hyphens for everything between."""
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFC", name.lower()))
    return "-".join("".join(kept).split())


@lru_cache(maxsize=16)
def _shared(names: tuple[str, ...]) -> Counter[str]:
    """How many different names become the same."""
    return Counter(_plain(name) for name in dict.fromkeys(names))


@torch.no_grad()
def probabilities(classifier: Classifier, pictures: Sequence[Float[Tensor, "3 h w"]]) -> Float[Tensor, "n k"]:
    """Softmax over the classes for each picture. Raises NonFiniteError."""
    p = classifier(torch.stack(list(pictures))).logits.float().softmax(dim=-1).cpu()
    return ensure_finite(p, "the classifier's confidences")


# An image of an answer and how its measurements are named: the original (of a generated problem its start), what
# descent started from (words and noise alone), and the result.
STAGES = {"before": "before", "start": "start", "best": "after"}


def measure_confidences(classifier: Classifier, pictures: Images, classes: Sequence[int]) -> dict[str, Any]:
    """Predictions before optimization, at its start and after it, and the confidences of the classes predicted in any
    of the three and of those of interest."""
    p = probabilities(classifier, [pictures[name] for name in STAGES])
    predicted = p.argmax(dim=1).tolist()
    return confidences_by_stage(p, classifier.labels, list(dict.fromkeys([*classes, *predicted])))


def confidences_by_stage(p: Float[Tensor, "3 k"], names: Sequence[str], classes: Sequence[int]) -> dict[str, Any]:
    """The same of probabilities (row by row those of `STAGES`) of classes by name."""
    rows = list(zip(STAGES.values(), p, strict=True))
    return {
        **{f"predicted_{stage}": names[int(row.argmax())] for stage, row in rows},
        **{f"confidence_{stage}": {names[c]: row[c].item() for c in classes} for stage, row in rows},
    }


def prediction_success(measured: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Whether the prediction changes to the target, and whether it had done so at the start of optimization; with the
    numbers that say so. `measured`: of `confidences_by_stage`.

    Where the original is predicted as the target nothing can change, so that nothing succeeds.
    """
    before, start, after = (measured[f"predicted_{stage}"] for stage in STAGES.values())
    confidence = measured["confidence_after"]
    if before == target:
        criterion = f"the original is predicted as {target} already: no change can be found"
    elif after == target:
        criterion = f"predicted as {after} ({confidence[after]:.2f}), as wanted"
    else:
        criterion = f"predicted as {after} ({confidence[after]:.2f}); wanted: {target} ({confidence[target]:.2f})"
    return {
        "success": before != target == after, "criterion": criterion, "success_start": before != target == start,
    }  # fmt: skip


def comparison_text(value: float, bound: float, of: str) -> str:
    """A number beside what it is measured by: "5.28 < 5.83, the highest activation in training images"."""
    sign = ">" if value > bound else "<" if value < bound else "="
    return f"{value:.4g} {sign} {bound:.4g}, {of}"


def change_success(before: float, after: float, std: float, direction: float, least: float) -> dict[str, Any]:
    """Whether a value changes far enough into a direction (1 or -1): `least` standard deviations over the training
    images, of which a value that is the same in all of them has none; with the numbers that say so."""
    change = direction * (after - before)
    deviations = "standard deviations over the training images"
    return {
        "success": change >= least * std and change > 0 and std > 0,
        "criterion": f"{before:.4g} to {after:.4g} (wanted: {direction * least:+.3g} {deviations}, {std:.4g} each)",
    }  # fmt: skip


def success_counts_by(key: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`success_counts` of the records that share a value of `key`, in the order of their appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record[key]), []).append(record)
    return {value: success_counts(own) for value, own in groups.items()}


def success_counts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many answers there are, how many of them succeeded and, where it was measured, how many had done so at the
    start of optimization."""
    found = {"answers": len(records), "successes": sum(bool(r["success"]) for r in records)}
    at_start = [bool(r["success_start"]) for r in records if "success_start" in r]
    return found | ({"successes_at_start": sum(at_start)} if at_start else {})
