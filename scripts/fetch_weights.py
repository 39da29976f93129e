"""Get the published weights that this repository does not ship. `python run.py` alone needs none of them.

    python scripts/fetch_weights.py list
    python scripts/fetch_weights.py fetch task=uvce classifier=vit_b   # whatever `python run.py` of these words loads
    python scripts/fetch_weights.py fetch cifar10_resnet20 timm/resnet50.a1_in1k hub/facebook/sam-vit-base
    python scripts/fetch_weights.py check

Files come from where their authors publish them. The CIFAR-10 checkpoints go to $CIFAR10_RESNETS (or
../shared/data/cifar10), Grounded SAM's original files to $GROUNDED_SAM (or ../shared/data/grounded_sam), hub weights to
the hub's cache ($HF_HOME). What is pinned by SHA-256 is checked before it takes its name; what is pinned by revision is
checked by the hub client. A transfer that was cut short continues. What was fetched is noted in outputs/weights.json,
file by file with its SHA-256, which `check` compares. Afterwards HF_HUB_OFFLINE=1 python run.py … needs no network.
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
from classifier_lens.scripts.weights.sources import (
    SOURCES,
    HubRepository,
    Source,
    WeightFile,
    find_source,
    required_sources,
)

MANIFEST = Path("outputs/weights.json")
CHUNK_SIZE = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_sources(words: Sequence[str]) -> list[Source]:
    """What is to be fetched: sources by their names, and all that `python run.py` of the words with a `=` would load,
    in every run of an experiment.

    Raises UserError with one line for an unknown name.
    """
    overrides = [word for word in words if "=" in word]
    named = [find_source(word) for word in words if "=" not in word]
    runs = [compose_config(job) for job in expand_sweep(overrides)] if overrides else []
    return list(dict.fromkeys([*named, *(source for config in runs for source in required_sources(config))]))


def fetch_file(source: WeightFile) -> Path:
    """Download one file, from where an earlier try was cut short; it takes its name only once its SHA-256 is right. A
    right one that is there is kept.

    Raises SystemExit with one line if it cannot be had or differs.
    """
    path = source.path
    if path.is_file() and sha256_of(path).startswith(source.sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    try:
        _download(source.url, partial)
    except UrlError as error:
        raise SystemExit(f"{source.url}: cannot be had (HTTP {error.code})") from error
    except URLError as error:
        raise SystemExit(f"{source.url}: cannot be reached ({error.reason})") from error
    except OSError as error:
        kept = f"; {partial} is kept, and the same command continues"
        raise SystemExit(f"{source.url}: cut short ({error}){kept if partial.exists() else ''}") from error
    if not (found := sha256_of(partial)).startswith(source.sha256):
        partial.unlink()
        raise SystemExit(f"{source.url}: SHA-256 is {found}, expected {source.sha256}; nothing was kept")
    partial.replace(path)
    return path


def _download(url: str, partial: Path) -> None:
    """Write what is missing of a file behind what is there, or all of it where the server gives no parts."""
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except UrlError as error:
        if error.code != 416:  # nothing is missing
            raise
        return
    with answer, partial.open("ab" if answer.status == 206 else "wb") as file:
        wanted, received = int(answer.headers["Content-Length"] or 0), 0
        while piece := answer.read(CHUNK_SIZE):
            file.write(piece)
            received += len(piece)
    if received < wanted:
        raise OSError(f"{received} of {wanted} bytes")


def fetch_repository(source: HubRepository) -> Path:
    """Bring a repository's files into the hub's cache. Raises SystemExit with one line if that fails."""
    try:
        folder = snapshot_download(source.name, revision=source.revision, allow_patterns=list(source.files))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(f"{source.name}: cannot be fetched ({reason})") from error
    return Path(folder)


def record_download(source: Source, place: Path, manifest: Path) -> None:
    """Write into the manifest what was fetched: its files with their sizes and SHA-256, by source."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    entry = {
        "from": source.url if isinstance(source, WeightFile) else f"hub {source.name}",
        "revision": place.name if isinstance(source, HubRepository) else None,  # the cache names its folders so
        "licence": source.license,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {str(path): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    write_durable(manifest, json.dumps(read_manifest(manifest) | {_key(source): entry}, indent=1))


def read_manifest(manifest: Path) -> dict[str, Any]:
    """What was fetched so far, by source."""
    return dict(json.loads(manifest.read_text())) if manifest.is_file() else {}


def _key(source: Source) -> str:
    return source.url if isinstance(source, WeightFile) else source.name


def source_status(source: Source) -> str:
    """`here`, `missing`, or what is wrong; reads local files only."""
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
    """The same of what the manifest says, by its own SHA-256."""
    for name, noted in entry["files"].items():
        path = Path(name)
        if not path.is_file():
            return f"missing: {path}"
        if path.stat().st_size != noted["size"] or sha256_of(path) != noted["sha256"]:
            return f"damaged: {path}"
    return "here"


def describe(name: str, source: Source) -> str:
    """One line: name, size, licence, where it comes from, what pins it, what it is for."""
    if isinstance(source, WeightFile):
        origin, pin = source.url, f"sha256 {source.sha256}"
    else:
        origin, pin = f"hub {source.name}", f"revision {source.revision or 'not pinned: the newest'}"
    return f"{name:19} {source.size / 1e6:8.1f} MB  {source.license:21}  {source.used_by}\n    {origin}\n    {pin}"


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 1 if `check` finds a damaged file, or 2 for words that no run could have."""
    parser = argparse.ArgumentParser(description="Get published weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, from where, under which licence")
    commands.add_parser("fetch", help="download and verify").add_argument("names", nargs="+")
    commands.add_parser("check", help="what is here")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        print("\n".join(describe(name, source) for name, source in SOURCES.items()))
        return 0
    if chosen.command == "fetch":
        try:
            sources = resolve_sources(chosen.names)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        for source in sources:
            place = fetch_file(source) if isinstance(source, WeightFile) else fetch_repository(source)
            record_download(source, place, MANIFEST)
            print(place, flush=True)
        if not sources:
            print("nothing: all that these words load is shipped, or named by files of yours")
        return 0
    states = {name: source_status(source) for name, source in SOURCES.items()}
    states |= {name: manifest_entry_status(entry) for name, entry in read_manifest(MANIFEST).items()}
    print("\n".join(f"{name:19} {state}" for name, state in states.items()))
    return int(any(state.startswith("damaged") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
