"""What a run's results follow from beside its configuration and its weights: its problems, and what classifiers say.

A run's folder keeps it, and every start compares: what was computed of one image is never taken for another one's.
"""

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

Digests = Mapping[str, str]  # of a problem, by what it is a digest of

PROBLEM_DIGEST_LENGTH = 16  # characters of a digest that are kept: a problem has four of them
PATTERN_SIDE = 4  # of the coarse pattern in the image that classifiers are compared on, along each side
LOGIT_TOLERANCE = (
    0.02  # largest difference of logits between machines, as a share of their range; other weights differ by more
)


def file_digests(settings: Any) -> dict[str, str]:
    """Digests of the files that settings name, at any depth, by the names. Larger ones are weights, whose digests are
    taken when they are loaded."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return {name: digest for one in settings for name, digest in file_digests(one).items()}
    if not isinstance(settings, str) or not os.path.isfile(path := os.path.expanduser(settings)):
        return {}
    return {settings: hash_file(Path(path))} if os.path.getsize(path) <= MAX_HASHED_BYTES else {}


def problem_digests(problem: Problem) -> dict[str, str]:
    """What a problem's result follows from: its image, its mask, its prompt, and whatever else it asks.

    Numbers that were computed are left out, as machines may round them differently: they follow from the rest, and from
    what the run's key covers.
    """
    image = problem.content_digest
    if image is None and problem.load is not None:
        image = hash_image(problem.load())
    told = {f.name: getattr(problem, f.name) for f in fields(problem)}
    prompt = [told.pop(name) for name in ("edit", "mask_words", "prompt_check")]
    for name in ("load", "content_digest", "mask", "name"):
        told.pop(name)
    found = {
        "image": image, "mask": None if problem.mask is None else hash_image(problem.mask),
        "prompt": hash_values(*map(exact_values, prompt)), "definition": hash_values(exact_values(told)),
    }  # fmt: skip
    return {name: digest[:PROBLEM_DIGEST_LENGTH] for name, digest in found.items() if digest is not None}


def exact_values(value: Any) -> Any:
    """A value without what is computed or has no content: words, whole numbers and truth values, in records, mappings
    and sequences at any depth; None for anything else."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, CaptionEdit) or (is_dataclass(value) and not isinstance(value, type)):
        return {field.name: exact_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): exact_values(one) for key, one in value.items()}
    return [exact_values(one) for one in value] if isinstance(value, (list, tuple)) else None


@torch.no_grad()
def probe_logits(classifier: Classifier) -> list[float | None]:
    """The logits of one image that is always the same, None where one is not finite: they tell other weights, wherever
    a network keeps them. Raises UserError, in one line, where the network raises an error."""
    drawn = torch.Generator().manual_seed(0)
    pattern = torch.rand(1, 3, PATTERN_SIDE, PATTERN_SIDE, generator=drawn).repeat_interleave(
        -(-classifier.size // PATTERN_SIDE), 2
    )
    pattern = pattern.repeat_interleave(pattern.shape[2] // PATTERN_SIDE, 3)[..., : classifier.size, : classifier.size]
    noise = torch.rand(pattern.shape, generator=drawn)
    try:
        logits = classifier(0.7 * pattern + 0.3 * noise).logits[0].float().cpu().tolist()
    except Exception as error:
        if not is_problem_error(error) or is_out_of_memory(error):
            raise
        raise UserError(
            f"{getattr(classifier, 'name', 'classifier')}: fails on an image of noise, by which its weights are told "
            f"from others ({type(error).__name__}: {first_line(error)}); wanted is a network that answers to any image"
        ) from error
    return [round(value, 6) if math.isfinite(value) else None for value in logits]


@dataclass(frozen=True)
class Manifest:
    """problems: by name, in their order; probe_logits: of each classifier, by its part of the run; untracked: what a
    run may follow from that nothing here tells, in one line each; total: how many problems there are without a limit,
    None if nobody knows."""

    problems: Mapping[str, Digests]
    probe_logits: Mapping[str, Sequence[float | None]]
    untracked: Sequence[str]
    total: int | None = None

    def to_json(self) -> str:
        """As it stands in its file."""
        return json.dumps(add_digest(asdict(self)), indent=1)

    @staticmethod
    def from_json(content: bytes) -> Manifest:
        """What a file says. Raises DamagedFileError if it is none."""
        try:
            return _FORM.validate_python(parse_with_digest(content))
        except ValidationError as error:
            raise DamagedFileError("is no manifest") from error

    def check_compatible(self, begun: Manifest, folder: Path) -> None:
        """Raise UserError, in one line, if a run that began in a folder with `begun` cannot go on with this: one has to
        be the other's beginning."""
        for i, (own, old) in enumerate(zip(self.problems, begun.problems, strict=False)):
            if own != old:
                raise UserError(_differs(folder, f"problem {i} is {own}, it was {old}", "images, classes or names"))
            if changed := _changed(self.problems[own], begun.problems[old]):
                raise UserError(_differs(folder, f"{own}: its {changed} is another one", f"the {changed}"))
        for part, values in self.probe_logits.items():
            if not _alike(values, begun.probe_logits.get(part, values)):
                said = f"{part}: it gives other logits than before, so its weights or its code are others"
                raise UserError(_differs(folder, said, "them"))


_FORM = TypeAdapter(Manifest)


def _changed(own: Digests, old: Digests) -> str:
    """What differs between two records of a problem, in words; empty where nothing does."""
    return " and ".join(name for name in {**old, **own} if own.get(name) != old.get(name))


def _differs(folder: Path, what: str, back: str) -> str:
    return f"{what} when {folder} was begun; put back {back}, or choose another outputs= to begin anew"


def _alike(own: Sequence[float | None], old: Sequence[float | None]) -> bool:
    """Whether two lists of logits are the same network's."""
    if [value is None for value in own] != [value is None for value in old]:
        return False
    a, b = (torch.tensor([value for value in values if value is not None]) for values in (own, old))
    if not len(a):
        return True
    spread = float(a.max() - a.min()) if len(a) > 1 else float(a.abs().max())
    return bool((a - b).abs().max() <= LOGIT_TOLERANCE * max(spread, 1e-3))
