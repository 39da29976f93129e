"""Networks in the hub's layout, from folders and from the local cache; nothing is downloaded here."""

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
EXPECTED_FORMAT = "wanted is a folder in transformers' layout with its weights"


def find_cached_file(what: str, repository: str, files: Iterable[str], revision: str | None) -> str | None:
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
    """The folder that `path` names, or the hub's cached one of that id at `revision`; nothing is downloaded.

    key: the key and value that errors point at; fetch_hint: how to get it, None for a fetch by its id; allow_file:
    whether `path` may name a file, too. Raises UserError where there is neither."""
    if (folder := Path(path).expanduser()).is_dir() or (allow_file and folder.is_file()):
        return folder
    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        is_id = isinstance(error, LocalEntryNotFoundError)
        if is_id and revision is None and (found := _only_snapshot(path)):
            return found
        at = f"revision {revision}" if revision else "any one revision"
        absent = f"neither a folder nor, at {at}, in the hub's cache"
        if fetch_hint is not None:
            raise missing_weights_error(key, f"no weights ({absent})", fetch_hint) from error
        how = fetch_command(f"hub/{path}", revision) if is_id else "wanted is a folder, or a hub id as owner/name"
        raise missing_weights_error(key, absent, how) from error


def _only_snapshot(repository: str) -> Path | None:
    """The cached files of a repository of which one revision alone was fetched, by its commit."""
    folder = Path(HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "snapshots")
    found = list(folder.iterdir()) if folder.is_dir() else []
    return found[0] if len(found) == 1 else None


def read_model_type(key: str, folder: Path, allowed: Iterable[str]) -> str:
    """The kind of network that a folder's config.json names. Raises UserError if it is none of those allowed."""
    with as_user_error(key):
        kind: str = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if kind not in (allowed := tuple(allowed)):
        raise UserError(f"{key}: contains a network of type {kind}; allowed are {', '.join(allowed)}")
    return kind


def load_frozen(key: str, folder: Path, model_class: Any, dtype: torch.dtype) -> Any:
    """A transformers network of class `model_class` with all its weights, in evaluation mode and frozen.

    Code that a file of weights holds is not run. Raises UserError if a file is missing or broken, or if the weights are
    not those of the class.
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
    """What transformers or diffusers say of files that they cannot load, as a UserError of one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{key}: cannot be loaded ({first_line(error)}); {wanted}") from error
    except UnpicklingError as error:
        said = "its file of weights is damaged, or holds code, which is never run"
        raise UserError(f"{key}: cannot be loaded ({said}); {wanted}") from error
