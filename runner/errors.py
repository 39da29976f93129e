"""Which errors are those of one problem alone, and which are everybody's: a mistake of the user's, a full disk, too
little memory."""

from __future__ import annotations

import torch

from classifier_lens.runner.files.atomic import DISK_FULL_ERRORS
from classifier_lens.runner.types import NonFiniteError, UnreadableImageError, UserError

# How PyTorch and what it calls tell that memory is short where they raise a plain RuntimeError.
OUT_OF_MEMORY_MESSAGES = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, tells that a GPU's or the machine's memory is too small."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_MESSAGES)
    return told or is_out_of_memory(error.__cause__)


def is_problem_error(error: Exception) -> bool:
    """Whether an error concerns what was asked when it was raised and nothing else, memory aside."""
    if isinstance(error, (UnreadableImageError, NonFiniteError)):
        return True
    return not isinstance(error, UserError) and not (isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS)
