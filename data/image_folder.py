"""Data sets of image files: one image, a list of labeled files, and folders `<label>/<image>`."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

from classifier_lens.data.digests import hash_files, hash_values
from classifier_lens.data.image_selection import check_index, shuffled_indices
from classifier_lens.data.images import EXPECTED_FILE, SUFFIXES, check_image_file, read_image
from classifier_lens.data.similar_classes import UnknownSimilarity
from classifier_lens.runner.configuration.value_ranges import Seed
from classifier_lens.runner.types import Example, UserError, matching_indices, printable

MAX_FILES_SHOWN = 3  # ignored files in one message


def _safe_name(*parts: str) -> str:
    """A name that is valid for a folder: letters, digits, `.`, `_` and `-`, at most 60 characters and 120 bytes."""
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", "-".join(parts))).strip(".-")[:60]
    return name.encode()[:120].decode(errors="ignore") or "picture"


def _unique_names(names: Sequence[str]) -> list[str]:
    """The names with numbers for repeated ones: a, b, a becomes a, b, a-2. Letter case is ignored, as by some file
    systems."""
    unique_names: dict[str, str] = {}
    # The last number of each name, since thousands of images of a class with a long name have the same name.
    last_numbers: dict[str, int] = {}
    for name in names:
        unique, number = name, last_numbers.get(name, 1)
        while unique.casefold() in unique_names:
            number += 1
            unique = f"{name}-{number}"
        unique_names[unique.casefold()] = unique
        last_numbers[name] = number
    return list(unique_names.values())


class SingleImageDataset(UnknownSimilarity):
    """A single example as a `runner.types.Dataset`."""

    def __init__(self, example: Example) -> None:
        self.labels: tuple[str, ...] = (example.label,)
        self.digest = hash_values("picture", example.image.numpy().tobytes(), example.label, example.caption)
        self._example = example

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Example:
        check_index(i, 1)
        return self._example

    def indices(self, label: str) -> list[int]:
        """Position 0 if the image has this label."""
        return matching_indices("label", label, [self._example.label])


class ImageFile(SingleImageDataset):
    """One image file, which is decoded at once.

    Args:
        path: the file.
        label: the class name.
        caption: of the whole image, None if there is none.

    Raises:
        UserError: path or label is missing.
        UnreadableImageError: see `read_image`.
    """

    def __init__(self, path: str | Path | None, label: str | None, caption: str | None) -> None:
        if not path:
            raise UserError(f"data.path is missing: give {EXPECTED_FILE}, e.g. data.path=goldfish.jpg")
        if label is None or not str(label).strip():
            raise UserError(f"data.label is missing: name the class that {path} shows, e.g. data.label='goldfish'")
        file = Path(path).expanduser()
        super().__init__(Example(_safe_name(file.stem), partial(read_image, path), str(label).strip(), caption, file))


class LabeledFiles(UnknownSimilarity):
    """Image files with labels as a `runner.types.Dataset` in the order of the seed, without captions.

    Access reads the header of an image and checks it by `check_image_file`; the image is decoded when its pixels are
    needed.

    Args:
        files: image files and their labels.
        labels: all class names.
        kind: further values that the digest covers.
    """

    def __init__(
        self, files: Sequence[tuple[Path, str]], labels: Sequence[str], seed: int, kind: Sequence[object]
    ) -> None:  # fmt: skip
        self.labels: tuple[str, ...] = tuple(labels)
        names = _unique_names([_safe_name(label, file.stem) for file, label in files])
        self._files = [(files[i][0], names[i], files[i][1]) for i in shuffled_indices(len(files), seed)]
        self._kind = kind

    @cached_property
    def digest(self) -> str:
        """Digest of names, labels and contents; computed at the first access, since it reads the files."""
        names_and_labels, files = [(name, label) for _, name, label in self._files], [file for file, *_ in self._files]
        return hash_values(*self._kind, names_and_labels, hash_files(files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Example:
        file, name, label = self._files[check_index(i, len(self))]
        check_image_file(file)
        return Example(name, partial(read_image, file), label, origin=file)

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class."""
        return matching_indices("data.path", label, [file_label for _, _, file_label in self._files])


def check_folder(path: str | Path | None, layout: str) -> Path:
    """The folder at `data.path`. Raises UserError, with the expected layout, if it is missing."""
    if not path:
        raise UserError(f"data.path is missing: give a folder of {layout}, e.g. data.path=images")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path={path}: no such folder; expected a folder of {layout}")
    return folder


def check_files_exist(root: str | Path, files: Sequence[tuple[Path, str]], table: str) -> None:
    """Raises UserError if a labeled file is missing that a table of the data set lists."""
    if missing := next((file for file, _ in files if not file.is_file()), None):
        raise UserError(f"data.path={root}: {missing} does not exist, but is listed in {table}")


def find_images(folder: Path, layout: str, *patterns: str) -> list[Path]:
    """The sorted images below a folder whose relative path matches one of the patterns.

    Hidden files are skipped; other files that are ignored are listed on the console. Raises UserError if there is no
    image.
    """
    files = sorted(_visible_files(folder))
    images = [f for f in files if _is_image(f) and any(f.relative_to(folder).match(pattern) for pattern in patterns)]
    if not images:
        raise UserError(f"data.path={folder}: contains no image; expected files {layout} ({', '.join(SUFFIXES)})")
    image_set = set(images)
    if ignored := [printable(str(f.relative_to(folder))) for f in files if f not in image_set]:
        more = f" and {len(ignored) - MAX_FILES_SHOWN} more" if len(ignored) > MAX_FILES_SHOWN else ""
        some = ", ".join(ignored[:MAX_FILES_SHOWN])
        print(f"data.path={folder}: {len(images)} images; ignored: {some}{more}", flush=True)
    return images


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, also in linked folders."""
    for path, subfolders, files in os.walk(folder, followlinks=True):
        real_path = Path(path).resolve()
        # A link to one of its parent folders would be followed forever.
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and not real_path.is_relative_to((real_path / name).resolve())
        ]
        yield from (Path(path, name) for name in files if not name.startswith("."))


def _is_image(file: Path) -> bool:
    """Whether a file has the suffix of an image and is not empty."""
    return file.suffix.lower() in SUFFIXES and file.is_file() and file.stat().st_size > 0


class ImageFolder(LabeledFiles):
    """A tree `<label>/<image>`, also with subfolders below a label; or images alone, whose classes are not known: their
    label is the name of the folder. Raises UserError if the folder is missing or has no image."""

    def __init__(self, path: str | Path | None, seed: Seed) -> None:
        layout = "<label>/<image>, or images without folders if no class is needed"
        root = check_folder(path, layout)
        has_labels = any(_is_image(file) and file.parent != root for file in _visible_files(root))
        images = find_images(root, layout, "*/*" if has_labels else "*")
        if not has_labels:
            number = f"{len(images)} images without folders <label>/"
            print(f"data.path={path}: {number}; their classes are unknown", flush=True)
        files = [(file, file.relative_to(root).parts[0] if has_labels else root.resolve().name) for file in images]
        super().__init__(files, sorted({label for _, label in files}), seed, ["folder"])
