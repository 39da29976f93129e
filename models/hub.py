"""Loading of networks in the hub's layout from folders and the local cache, without downloads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, StrictDataclassError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import logging

from classifier_lens.runner.types import UserError, first_line

NO_WEIGHTS_HINT = "`python run.py` alone needs none"
# What works where the weights of a group's option are absent, and what is lost by it.
ALTERNATIVES = {
    "generator": "generator=none needs none: pixels of given images are then optimized (task.baseline=pixels and "
    "others) or looked at (task=input_gradients), and masks follow no attention",
    "captioner": "captioner=template needs none: captions then name the class alone, not what is around it",
    "clip": "of what needs CLIP, captioner=template does without: captions then name the class alone",
    "segmenter": "segmenter=attention needs none: its masks follow the cross-attention map, not the object's edges; "
    "segmenter=file takes your own masks; task.preserve=none needs no mask, where a task has it",
    "text_segmenter": "task=neuron_vis needs none: it shows units without saying whether they look at the object",
    "safety_checker": "safety_checker=none needs none: images are then shown unchecked",
}
EXPECTED_FORMAT = "expected a folder in transformers' layout with its weights"


def find_cached_file(what: str, repository: str, files: Iterable[str], revision: str | None) -> str | None:
    """The first of the files that is in the hub's cache, None if they have to be downloaded.

    what: configuration key and role of the files, for errors. Raises UserError if no file is cached and the hub cannot
    be reached within seconds; the clients of the hub would retry for minutes.
    """
    for file in files:
        if isinstance(path := try_to_load_from_cache(repository, file, revision=revision), str):
            return path
    try:
        get_session().head(HfApi().endpoint, timeout=5)
    except (HTTPError, OSError) as error:
        name = repository if repository.startswith("timm/") else f"hub/{repository}"
        key, _, role = what.rpartition(": ")
        raise missing_weights_error(
            key, f"{role} is not in the local cache and the hub cannot be reached", fetch_command(name, revision)
        ) from error
    return None


def missing_weights_error(key: str, reason: str, fetch_hint: str) -> UserError:
    """The error where weights are absent, with what works without them and what is lost by that. key: the
    configuration's key and value; fetch_hint: how to get them, see `fetched`."""
    without = ALTERNATIVES.get(key.partition(".")[0])
    return UserError("; ".join([f"{key}: {reason}", fetch_hint, *([without] if without else []), NO_WEIGHTS_HINT]))


def fetch_command(source: str, revision: str | None = None) -> str:
    """The command that gets what `scripts/fetch_weights.py` calls `source`."""
    name = f"{source}@{revision}" if revision else source
    return f"with a network, `python scripts/fetch_weights.py fetch {name}` gets it"


def local_folder(
    key: str, path: str, revision: str | None, fetch_hint: str | None = None, allow_file: bool = False
) -> Path:
    """The folder at a path, or the folder in the hub's cache of an id.

    Args:
        key: configuration key and value for errors.
        path: a folder, or an id of the hub.
        revision: commit of the id.
        fetch_hint: how to get the folder, None for a download by its id.
        allow_file: whether `path` may be a file.

    Raises:
        UserError: neither exists.
    """
    if (folder := Path(path).expanduser()).is_dir() or (allow_file and folder.is_file()):
        return folder
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        is_id = isinstance(error, LocalEntryNotFoundError)
        if is_id and revision is None and (snapshot := _only_snapshot(path)):
            return snapshot
        at = f"revision {revision}" if revision else "any one revision"
        absent = f"neither a folder nor, at {at}, in the hub's cache"
        if fetch_hint is not None:
            raise missing_weights_error(key, f"no weights ({absent})", fetch_hint) from error
        how = fetch_command(f"hub/{path}", revision) if is_id else "expected a folder, or a hub id as owner/name"
        raise missing_weights_error(key, absent, how) from error


def _only_snapshot(repository: str) -> Path | None:
    """The cached folder of a repository if exactly one revision of it is cached."""
    folder = Path(HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "snapshots")
    snapshots = list(folder.iterdir()) if folder.is_dir() else []
    return snapshots[0] if len(snapshots) == 1 else None


def read_model_type(key: str, folder: Path, allowed: Iterable[str]) -> str:
    """`model_type` in the config.json of a folder. Raises UserError if it is not one of `allowed`."""
    with as_user_error(key):
        model_type: str = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if model_type not in (allowed := tuple(allowed)):
        raise UserError(f"{key}: contains a network of type {model_type}; allowed are {', '.join(allowed)}")
    return model_type


def load_frozen(key: str, folder: Path, model_class: Any, dtype: torch.dtype) -> Any:
    """A frozen network of transformers or diffusers in evaluation mode; code in its files is not run.

    Raises UserError if a file is missing or damaged, or if weights of the class are missing.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with as_user_error(key):
        network, info = model_class.from_pretrained(
            folder, dtype=dtype, weights_only=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{key}: cannot be loaded ({len(missing)} weights are missing, such as {missing[0]}); {EXPECTED_FORMAT}"
        )
    return network.requires_grad_(False).eval()


@contextmanager
def as_user_error(key: str, wanted: str = EXPECTED_FORMAT) -> Iterator[None]:
    """Converts errors of transformers and diffusers for files that they cannot load to UserErrors of one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{key}: cannot be loaded ({first_line(error)}); {wanted}") from error
    except UnpicklingError as error:
        reason = "its file of weights is damaged, or contains code, which is never run"
        raise UserError(f"{key}: cannot be loaded ({reason}); {wanted}") from error
