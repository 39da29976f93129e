"""Download the published weights that this repository does not ship. `python run.py` alone needs none of them.

    python scripts/fetch_weights.py list
    python scripts/fetch_weights.py fetch task=uvce classifier=vit_b   # all that `python run.py` of these words loads
    python scripts/fetch_weights.py fetch cifar10_resnet20 timm/resnet50.a1_in1k hub/facebook/sam-vit-base
    python scripts/fetch_weights.py check

Files come from where their authors publish them. The CIFAR-10 checkpoints go to $CIFAR10_RESNETS (or
../shared/data/cifar10), Grounded SAM's original files to $GROUNDED_SAM (or ../shared/data/grounded_sam), hub weights to
the hub's cache ($HF_HOME). Files that are pinned by SHA-256 are checked before they get their name; the hub client
checks those pinned by revision. An interrupted transfer continues. outputs/weights.json records every downloaded file
with its SHA-256, which `check` compares. Afterwards HF_HUB_OFFLINE=1 python run.py … needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError as UrlError
from urllib.error import URLError

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

from classifier_lens.runner.configuration.compose import compose_config, expand_sweep
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.weights.required_sources import required_sources
from classifier_lens.scripts.weights.sources import (
    SOURCES,
    HubRepository,
    Source,
    WeightFile,
    find_source,
)

MANIFEST = Path("outputs/weights.json")
CHUNK_SIZE = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_sources(arguments: Sequence[str]) -> list[Source]:
    """The sources to fetch: those of names, and all that `python run.py` with the arguments `key=value` would load, in
    every run of an experiment.

    Raises UserError for an unknown name.
    """
    overrides = [argument for argument in arguments if "=" in argument]
    by_name = [find_source(argument) for argument in arguments if "=" not in argument]
    runs = [compose_config(job) for job in expand_sweep(overrides)] if overrides else []
    return list(dict.fromkeys([*by_name, *(source for config in runs for source in required_sources(config))]))


def fetch_file(source: WeightFile) -> Path:
    """Download one file, or the rest of an interrupted download; it gets its name after its SHA-256 is verified. An
    existing correct file is used.

    Raises SystemExit with one line if the download fails or the SHA-256 differs.
    """
    path = source.path
    if path.is_file() and sha256_of(path).startswith(source.sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    try:
        _download(source.url, partial)
    except UrlError as error:
        raise SystemExit(f"{source.url}: cannot be downloaded (HTTP {error.code})") from error
    except URLError as error:
        raise SystemExit(f"{source.url}: cannot be reached ({error.reason})") from error
    except OSError as error:
        hint = f"; {partial} is kept, and the same command continues"
        raise SystemExit(f"{source.url}: interrupted ({error}){hint if partial.exists() else ''}") from error
    if not (digest := sha256_of(partial)).startswith(source.sha256):
        partial.unlink()
        raise SystemExit(f"{source.url}: SHA-256 is {digest}, expected {source.sha256}; the file was deleted")
    partial.replace(path)
    return path


def _download(url: str, partial: Path) -> None:
    """Append the missing part of a file, or write all of it if the server does not support ranges."""
    num_downloaded = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_downloaded}-"} if num_downloaded else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except UrlError as error:
        if error.code != 416:  # the file is complete
            raise
        return
    with response, partial.open("ab" if response.status == 206 else "wb") as file:
        expected, received = int(response.headers["Content-Length"] or 0), 0
        while chunk := response.read(CHUNK_SIZE):
            file.write(chunk)
            received += len(chunk)
    if received < expected:
        raise OSError(f"{received} of {expected} bytes")


def fetch_repository(source: HubRepository) -> Path:
    """Download a repository's files to the hub's cache. Raises SystemExit with one line if it fails."""
    try:
        folder = snapshot_download(source.name, revision=source.revision, allow_patterns=list(source.files))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(f"{source.name}: cannot be fetched ({reason})") from error
    return Path(folder)


def record_download(source: Source, path: Path, manifest: Path) -> None:
    """Add a download to the manifest: its files with sizes and SHA-256, by source. path: file or folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    entry = {
        "from": source.url if isinstance(source, WeightFile) else f"hub {source.name}",
        "revision": path.name if isinstance(source, HubRepository) else None,  # the name of the folder in the cache
        "license": source.license,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {str(file): {"size": file.stat().st_size, "sha256": sha256_of(file)} for file in files},
    }
    write_durable(manifest, json.dumps(read_manifest(manifest) | {_key(source): entry}, indent=1))


def read_manifest(manifest: Path) -> dict[str, Any]:
    """The recorded downloads, by source."""
    return dict(json.loads(manifest.read_text())) if manifest.is_file() else {}


def _key(source: Source) -> str:
    return source.url if isinstance(source, WeightFile) else source.name


def source_status(source: Source) -> str:
    """`here`, `missing` or `damaged: <file>`; reads local files only."""
    if isinstance(source, WeightFile):
        if not source.path.is_file():
            return "missing"
        return "here" if sha256_of(source.path).startswith(source.sha256) else f"damaged: {source.path}"
    try:
        snapshot_download(
            source.name, revision=source.revision, allow_patterns=list(source.files), local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        return "missing"
    return "here"


def manifest_entry_status(entry: Mapping[str, Any]) -> str:
    """The same for an entry of the manifest, by its recorded SHA-256."""
    for name, recorded in entry["files"].items():
        path = Path(name)
        if not path.is_file():
            return f"missing: {path}"
        if path.stat().st_size != recorded["size"] or sha256_of(path) != recorded["sha256"]:
            return f"damaged: {path}"
    return "here"


def describe(name: str, source: Source) -> str:
    """Name, size, license and use of a source, its origin, and what pins it."""
    if isinstance(source, WeightFile):
        origin, pin = source.url, f"sha256 {source.sha256}"
    else:
        origin, pin = f"hub {source.name}", f"revision {source.revision or 'not pinned: the newest one'}"
    return f"{name:19} {source.size / 1e6:8.1f} MB  {source.license:21}  {source.used_by}\n    {origin}\n    {pin}"


def main(arguments: Sequence[str]) -> int:
    """The command line. Exit code: 0, 1 if `check` finds a damaged file, 2 for invalid arguments."""
    parser = argparse.ArgumentParser(description="Download published weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list all sources with origin and license")
    commands.add_parser("fetch", help="download and verify").add_argument("names", nargs="+")
    commands.add_parser("check", help="check the downloaded files")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print("\n".join(describe(name, source) for name, source in SOURCES.items()))
        return 0
    if options.command == "fetch":
        try:
            sources = resolve_sources(options.names)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        for source in sources:
            path = fetch_file(source) if isinstance(source, WeightFile) else fetch_repository(source)
            record_download(source, path, MANIFEST)
            print(path, flush=True)
        if not sources:
            print("nothing to fetch: all weights of this run are shipped or are files of yours")
        return 0
    states = {name: source_status(source) for name, source in SOURCES.items()}
    states |= {name: manifest_entry_status(entry) for name, entry in read_manifest(MANIFEST).items()}
    print("\n".join(f"{name:19} {state}" for name, state in states.items()))
    return int(any(state.startswith("damaged") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
