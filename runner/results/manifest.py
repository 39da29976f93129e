"""The manifest of a run: digests of its problems and logits of its classifiers, on which results depend besides the
configuration and the weights. Every start of a run compares it, so that no result is taken for another image's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from classifier_lens.data.digests import MAX_HASHED_BYTES, hash_file, hash_image, hash_values
from classifier_lens.runner.errors import is_out_of_memory, is_problem_error
from classifier_lens.runner.files.atomic import DamagedFileError
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.results.integrity import add_digest, parse_with_digest
from classifier_lens.runner.types import CaptionEdit, Problem, UserError, first_line

Digests = Mapping[str, str]  # of a problem, by content: image, mask, prompt, definition

PROBLEM_DIGEST_LENGTH = 16  # characters of a digest that are kept: a problem has four of them
PATTERN_SIDE = 4  # of the coarse pattern in the image that classifiers are compared on, along each side
LOGIT_TOLERANCE = (
    0.02  # largest difference of logits between machines, as a share of their range; other weights differ by more
)


def file_digests(settings: Any) -> dict[str, str]:
    """Digests of the files that settings name at any depth, by name. Larger files are weights, whose digests are
    computed when they are loaded."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return {name: digest for one in settings for name, digest in file_digests(one).items()}
    if not isinstance(settings, str) or not os.path.isfile(path := os.path.expanduser(settings)):
        return {}
    return {settings: hash_file(Path(path))} if os.path.getsize(path) <= MAX_HASHED_BYTES else {}


def problem_digests(problem: Problem) -> dict[str, str]:
    """Digests of everything in a problem on which its result depends.

    Computed numbers are left out, since machines may round them differently; they follow from the rest and from the
    settings and weights that the run's key covers.
    """
    image = problem.content_digest
    if image is None and problem.load is not None:
        image = hash_image(problem.load())
    values = {f.name: getattr(problem, f.name) for f in fields(problem)}
    prompt = [values.pop(name) for name in ("edit", "mask_words", "prompt_check")]
    for name in ("load", "content_digest", "mask", "name"):
        values.pop(name)
    digests = {
        "image": image, "mask": None if problem.mask is None else hash_image(problem.mask),
        "prompt": hash_values(*map(exact_values, prompt)), "definition": hash_values(exact_values(values)),
    }  # fmt: skip
    return {name: digest[:PROBLEM_DIGEST_LENGTH] for name, digest in digests.items() if digest is not None}


def exact_values(value: Any) -> Any:
    """A value reduced to texts, whole numbers and truth values, in records, mappings and sequences at any depth; None
    for anything else."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, CaptionEdit) or (is_dataclass(value) and not isinstance(value, type)):
        return {field.name: exact_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): exact_values(one) for key, one in value.items()}
    return [exact_values(one) for one in value] if isinstance(value, (list, tuple)) else None


@torch.no_grad()
def probe_logits(classifier: Classifier) -> list[float | None]:
    """The logits of a fixed image, None for values that are not finite: they reveal other weights, wherever a network
    stores them. Raises UserError if the network raises an error."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(1, 3, PATTERN_SIDE, PATTERN_SIDE, generator=generator).repeat_interleave(
        -(-classifier.size // PATTERN_SIDE), 2
    )
    pattern = pattern.repeat_interleave(pattern.shape[2] // PATTERN_SIDE, 3)[..., : classifier.size, : classifier.size]
    noise = torch.rand(pattern.shape, generator=generator)
    try:
        logits = classifier(0.7 * pattern + 0.3 * noise).logits[0].float().cpu().tolist()
    except Exception as error:
        if not is_problem_error(error) or is_out_of_memory(error):
            raise
        raise UserError(
            f"{getattr(classifier, 'name', 'classifier')}: fails on a fixed image of noise, which identifies "
            f"its weights ({type(error).__name__}: {first_line(error)}); use a network that accepts any image"
        ) from error
    return [round(value, 6) if math.isfinite(value) else None for value in logits]


@dataclass(frozen=True)
class Manifest:
    """problems: digests by name, in order; probe_logits: of each classifier, by its key in the configuration;
    untracked: lines about dependencies that no digest covers; total: the number of problems without a limit, None if it
    is not known."""

    problems: Mapping[str, Digests]
    probe_logits: Mapping[str, Sequence[float | None]]
    untracked: Sequence[str]
    total: int | None = None

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps(add_digest(asdict(self)), indent=1)

    @staticmethod
    def from_json(content: bytes) -> Manifest:
        """From the content of its file. Raises DamagedFileError if it is no manifest."""
        try:
            return _FORM.validate_python(parse_with_digest(content))
        except ValidationError as error:
            raise DamagedFileError("is no manifest") from error

    def check_compatible(self, stored: Manifest, folder: Path) -> None:
        """Raise UserError if a run that started in a folder with the manifest `stored` cannot continue with this one:
        the shorter list of problems has to be the start of the longer one."""
        for i, (name, old_name) in enumerate(zip(self.problems, stored.problems, strict=False)):
            if name != old_name:
                difference = f"problem {i} is {name}, it was {old_name}"
                raise UserError(_conflict(folder, difference, "images, classes or names"))
            if changed := _changed(self.problems[name], stored.problems[old_name]):
                raise UserError(_conflict(folder, f"{name}: its {changed} changed", f"the {changed}"))
        for key, logits in self.probe_logits.items():
            if not _are_similar(logits, stored.probe_logits.get(key, logits)):
                raise UserError(
                    _conflict(folder, f"{key}: its logits changed, so its weights or its code differ", "them")
                )


_FORM = TypeAdapter(Manifest)


def _changed(new: Digests, old: Digests) -> str:
    """The contents of a problem that differ, empty if none does."""
    return " and ".join(name for name in {**old, **new} if new.get(name) != old.get(name))


def _conflict(folder: Path, difference: str, cause: str) -> str:
    return f"{difference} since {folder} was started; restore {cause}, or choose another outputs= to start anew"


def _are_similar(new: Sequence[float | None], old: Sequence[float | None]) -> bool:
    """Whether two lists of logits are from the same network."""
    if [value is None for value in new] != [value is None for value in old]:
        return False
    a, b = (torch.tensor([value for value in values if value is not None]) for values in (new, old))
    if not len(a):
        return True
    spread = float(a.max() - a.min()) if len(a) > 1 else float(a.abs().max())
    return bool((a - b).abs().max() <= LOGIT_TOLERANCE * max(spread, 1e-3))
