"""Which errors are those of one problem alone, and which are everybody's: a mistake of the user's, a full disk, too
little memory."""

from __future__ import annotations

import torch

from classifier_lens.runner.files.atomic import FULL
from classifier_lens.runner.types import NotFinite, UnreadableImage, UserError

# How PyTorch and what it calls tell that memory is short where they raise a plain RuntimeError.
SHORT = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, tells that a GPU's or the machine's memory is too small."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in SHORT)
    return told or out_of_memory(error.__cause__)


def of_one_problem(error: Exception) -> bool:
    """Whether an error concerns what was asked when it was raised and nothing else, memory aside."""
    if isinstance(error, (UnreadableImage, NotFinite)):
        return True
    return not isinstance(error, UserError) and not (isinstance(error, OSError) and error.errno in FULL)
