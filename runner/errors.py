"""Classification of errors: those of one problem, and those of the whole run (invalid input, a full disk, too little
memory)."""

from __future__ import annotations

import torch

from classifier_lens.runner.files.atomic import DISK_FULL_ERRORS
from classifier_lens.runner.types import NonFiniteError, UnreadableImageError, UserError

# Parts of the messages with which PyTorch and its libraries report too little memory as a plain RuntimeError.
OUT_OF_MEMORY_MESSAGES = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes says that the memory of the GPU or of the machine is too small."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    by_message = isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_MESSAGES)
    return by_message or is_out_of_memory(error.__cause__)


def is_problem_error(error: Exception) -> bool:
    """Whether an error concerns only the problems that were being solved; this includes too little memory."""
    if isinstance(error, (UnreadableImageError, NonFiniteError)):
        return True
    return not isinstance(error, UserError) and not (isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS)
