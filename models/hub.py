"""Networks in the hub's layout, from folders and from the local cache; nothing is downloaded here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, StrictDataclassError
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging

from runner.types import UserError, first_line

NEEDS_NONE = "`python run.py` alone needs no download"
WANTED = "wanted is a folder in transformers' layout with its weights"


def in_cache(what: str, repository: str, files: Iterable[str], revision: str | None) -> str | None:
    """The first of the files that the hub's cache has, None if they are to be downloaded.

    what: what the files are, with the key that errors point at. Raises UserError if the cache has none and the hub does
    not answer within seconds; the hub's own clients would try again for minutes.
    """
    for file in files:
        if isinstance(path := try_to_load_from_cache(repository, file, revision=revision), str):
            return path
    try:
        get_session().head(HfApi().endpoint, timeout=5)
    except (HTTPError, OSError) as error:
        name = repository if repository.startswith("timm/") else f"hub/{repository}"
        source = f"{name}@{revision}" if revision else name
        raise UserError(
            f"{what} is not in the local cache and the hub cannot be reached; with a network, "
            f"`python scripts/fetch_weights.py fetch {source}` gets it; {NEEDS_NONE}"
        ) from error
    return None


def local_folder(key: str, path: str, revision: str | None) -> Path:
    """The folder that `path` names, or the hub's cached one of that id at `revision`; nothing is downloaded.

    key: the key and value that errors point at. Raises UserError where there is neither.
    """
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        source = f"hub/{path}@{revision}" if revision else f"hub/{path}"
        raise UserError(
            f"{key}: neither a folder nor, at revision {revision}, in the hub's cache; with a network, "
            f"`python scripts/fetch_weights.py fetch {source}` gets it; {NEEDS_NONE}"
        ) from error


def kind_of(key: str, folder: Path, allowed: Iterable[str]) -> str:
    """The kind of network that a folder's config.json names. Raises UserError if it is none of those allowed."""
    with one_line(key):
        kind: str = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if kind not in (allowed := tuple(allowed)):
        raise UserError(f"{key}: holds a network of kind {kind}; allowed are {', '.join(allowed)}")
    return kind


def load_frozen(key: str, folder: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A transformers network of class `kind` with all its weights, in evaluation mode and frozen.

    Code that a file of weights holds is not run. Raises UserError if a file is missing or broken, or if the weights are
    not those of the class.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with one_line(key):
        network, info = kind.from_pretrained(
            folder, dtype=dtype, weights_only=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{key}: cannot be loaded ({len(missing)} weights are missing, such as {missing[0]}); {WANTED}")
    return network.requires_grad_(False).eval()


@contextmanager
def one_line(key: str) -> Iterator[None]:
    """What transformers says of files that it cannot load, as a UserError of one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{key}: cannot be loaded ({first_line(error)}); {WANTED}") from error
    except UnpicklingError as error:
        said = "its file of weights is damaged, or holds code, which is never run"
        raise UserError(f"{key}: cannot be loaded ({said}); {WANTED}") from error
