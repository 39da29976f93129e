"""Pictures from files: one picture, or many that have classes, as a tree `<label>/<picture>`."""

from __future__ import annotations

import os
import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from PIL import ImageFile as pillow_file
from torch import Tensor

from classifier_lens.data.image_selection import check_index, hash_files, hash_values, shuffled_indices
from classifier_lens.runner.configuration.value_ranges import Seed
from classifier_lens.runner.types import (
    Example,
    UnreadableImageError,
    UserError,
    first_line,
    matching_indices,
    printable,
)

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no other decoder is run: some start further programs
MIN_SIDE = 16  # pixels
MAX_PIXELS = 178_000_000  # 13,000 x 13,000 and more; half a gigabyte while it is decoded
REDUCED_SIDE = 2048  # pixels; an image that has twice as many on both sides is reduced to no less before it is floats
NAMED = 3  # files that a line about many names

_WANTED = f"a whole picture ({', '.join(suffix[1:] for suffix in SUFFIXES)})"
# What Pillow raises for a broken file, by format.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def center_crop_resize(image: Float[Tensor, "3 h w"], side: int) -> Float[Tensor, "3 s s"]:
    """The central square of a picture in [0, 1], resized to `side` pixels (bicubic, antialiased, clamped).

    A picture that has this size already comes back as it is.
    """
    height, width = image.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    crop = image[:, top : top + short, left : left + short]
    if short == side:
        return crop
    return F.interpolate(crop[None], size=(side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """Decode an image to RGB in [0, 1], turned as its EXIF orientation says; of an animated one the first frame.

    It keeps its own size, unless both sides have 4096 pixels or more: then it is reduced by a whole factor, to 2048 or
    more. Transparent parts are laid on white. Raises UserError if the file is missing, UnreadableImage if it is none
    of `FORMATS`, truncated, smaller than 16 pixels on a side or larger than `MAX_PIXELS`.
    """
    key, file = _existing(path)
    return decode_image(key, file)


def check_image_file(path: str | Path) -> None:
    """Raises UnreadableImage where there is no such file, and as `check_image_header` does."""
    check_image_header(*_existing(path))


def _existing(path: str | Path) -> tuple[str, Path]:
    """What errors name a file by, and the file. Raises UnreadableImage where there is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        raise UnreadableImageError(f"data.path={path}: {reason}; wanted is {_WANTED}")
    return f"data.path={path}", path


def decode_image(key: str, source: Path | bytes) -> Float[Tensor, "3 h w"]:
    """The image in a file or in its bytes, as `read_image` gives it; key: what errors name."""
    with _opened(key, source) as file:
        ImageOps.exif_transpose(file, in_place=True)
        image = to_rgb(file)
    if (factor := min(image.size) // REDUCED_SIDE) > 1:
        image = image.reduce(factor)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def check_image_header(key: str, source: Path | bytes) -> None:
    """Raises UnreadableImage, which begins with the key, for what an image's first bytes tell, without decoding it: a
    file that is gone, of another format, too small or too large."""
    with _opened(key, source):
        pass


@contextmanager
def _opened(key: str, source: Path | bytes) -> Iterator[Image.Image]:
    """An image of which nothing but the head is read yet. Raises UnreadableImage for what cannot be read of it, within
    the context, too."""
    content = BytesIO(source) if isinstance(source, bytes) else source
    try:
        with _pillow_strict(), Image.open(content, formats=FORMATS) as file:
            _check_size(key, file)
            _check_mode(file)
            yield file
    except DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        reason = first_line(error).replace(str(content), "the file")
        raise UnreadableImageError(f"{key}: cannot be read ({reason}); wanted is {_WANTED}") from error


def _check_size(key: str, image: Image.Image) -> None:
    """Raises UnreadableImage, before anything is decoded, for an image that is too small or too large."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError(f"{key}: {width} x {height} pixels; allowed are {MIN_SIDE} x {MIN_SIDE} and larger")
    if width * height > MAX_PIXELS:
        allowed = f"up to {MAX_PIXELS // 1_000_000} million pixels"
        raise UnreadableImageError(f"{key}: {width} x {height} pixels; allowed are {allowed}")


@contextmanager
def _pillow_strict() -> Iterator[None]:
    """Pillow's switch about truncated files is global, and other libraries turn it to tolerate them; its warning about
    large images has `MAX_PIXELS` in its place."""
    before = pillow_file.LOAD_TRUNCATED_IMAGES
    pillow_file.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        pillow_file.LOAD_TRUNCATED_IMAGES = before


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any of Pillow's modes to 8-bit RGB: transparency laid on white, 16-bit grey scaled to 8. Raises ValueError where
    the range of the values is not known."""
    _check_mode(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}, of which 0 to 65535 are known")
        return Image.fromarray(np.divide(values, 257, dtype=np.float32).round().astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _check_mode(picture: Image.Image) -> None:
    if picture.mode == "F":
        raise ValueError("floating-point values, whose range nothing tells")


def _name(*parts: str) -> str:
    """A name fit for a folder: letters, digits, `.`, `_` and `-`, at most 60 characters and 120 bytes."""
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", "-".join(parts))).strip(".-")[:60]
    return name.encode()[:120].decode(errors="ignore") or "picture"


def _unique(names: Sequence[str]) -> list[str]:
    """The names, repeated ones numbered in their order: a, b, a -> a, b, a-2. Some file systems tell no letter case."""
    result: dict[str, str] = {}
    numbers: dict[str, int] = {}  # that were given last: long class names leave thousands of images one name
    for name in names:
        unique, k = name, numbers.get(name, 1)
        while unique.casefold() in result:
            k += 1
            unique = f"{name}-{k}"
        result[unique.casefold()] = unique
        numbers[name] = k
    return list(result.values())


class SingleImageDataset:
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
        """Its position if it has this label."""
        return matching_indices("label", label, [self._example.label])

    def nearest_class(self, label: str) -> str | None:
        """None: one picture knows no other class."""
        return None

    def similar_classes(self, label: str) -> list[str]:
        """Empty, for the same reason."""
        return []


class ImageFile(SingleImageDataset):
    """One picture from a file; it is read, and refused if broken, when this is built.

    path: the file; label: what it shows; caption: of the whole picture, None where nobody wrote one.
    Raises UserError if the path or the label is missing, or as `read_image` does.
    """

    def __init__(self, path: str | Path | None, label: str | None, caption: str | None) -> None:
        if not path:
            raise UserError(f"data.path is missing: give {_WANTED}, e.g. data.path=goldfish.jpg")
        if label is None or not str(label).strip():
            raise UserError(f"data.label is missing: name the class that {path} shows, e.g. data.label='goldfish'")
        file = Path(path).expanduser()
        super().__init__(Example(_name(file.stem), partial(read_image, path), str(label).strip(), caption, file))


class LabeledFiles:
    """Files of pictures, each with its class, as a `runner.types.Dataset` in the seed's order; nobody captioned them.

    kind: what decides the data set beside its files, for the digest, see `hash_files`. Of an image that is asked for
    its head is read, and refused as by `check_image_file`; it is decoded, at its own size, when its pixels are needed.
    """

    def __init__(
        self, files: Sequence[tuple[Path, str]], labels: Sequence[str], seed: int, kind: Sequence[object]
    ) -> None:  # fmt: skip
        self.labels: tuple[str, ...] = tuple(labels)
        names = _unique([_name(label, file.stem) for file, label in files])
        self._files = [(files[i][0], names[i], files[i][1]) for i in shuffled_indices(len(files), seed)]
        self._kind = kind

    @cached_property
    def digest(self) -> str:
        """Of the names, classes and contents of all pictures; taken when it is asked for, as it reads the files."""
        names, files = [own[1:] for own in self._files], [file for file, *_ in self._files]
        return hash_values(*self._kind, names, hash_files(files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Example:
        file, name, label = self._files[check_index(i, len(self))]
        check_image_file(file)
        return Example(name, partial(read_image, file), label, origin=file)

    def indices(self, label: str) -> list[int]:
        """The positions of a class's pictures."""
        return matching_indices("data.path", label, [own for _, _, own in self._files])

    def nearest_class(self, label: str) -> str | None:
        """None: files do not say which of their classes are alike."""
        return None

    def similar_classes(self, label: str) -> list[str]:
        """Empty, for the same reason."""
        return []


def check_folder(path: str | Path | None, wanted: str) -> Path:
    """`data.path`, if it is a folder; wanted: its layout in words. Raises UserError if it is missing or is none."""
    if not path:
        raise UserError(f"data.path is missing: give a folder of {wanted}, e.g. data.path=pictures")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path={path}: no such folder; wanted is a folder of {wanted}")
    return folder


def find_images(folder: Path, wanted: str, *patterns: str) -> list[Path]:
    """The images below a folder whose path in it matches one of the patterns, sorted; hidden files are passed over, and
    a line tells of all others that are left out. Raises UserError if there is none."""
    files = sorted(_visible_files(folder))
    found = [f for f in files if _is_image(f) and any(f.relative_to(folder).match(pattern) for pattern in patterns)]
    if not found:
        raise UserError(f"data.path={folder}: holds no picture; wanted are files {wanted} ({', '.join(SUFFIXES)})")
    kept = set(found)
    if left_out := [printable(str(f.relative_to(folder))) for f in files if f not in kept]:
        more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        print(f"data.path={folder}: {len(found)} images; left out: {', '.join(left_out[:NAMED])}{more}", flush=True)
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, also behind links to folders, but for hidden ones."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        # A link to where it lies itself would lead around for ever.
        folders[:] = [f for f in folders if not f.startswith(".") and not here.is_relative_to((here / f).resolve())]
        yield from (Path(place, f) for f in files if not f.startswith("."))


def _is_image(file: Path) -> bool:
    """Whether a file is called as an image is, and holds anything."""
    return file.suffix.lower() in SUFFIXES and file.is_file() and file.stat().st_size > 0


class ImageFolder(LabeledFiles):
    """A tree `<label>/<image>`, also of further folders below a label's. Raises UserError if the folder is missing or
    holds no image."""

    def __init__(self, path: str | Path | None, seed: Seed) -> None:
        wanted = "<label>/<picture>"
        root = check_folder(path, wanted)
        files = [(f, f.relative_to(root).parts[0]) for f in find_images(root, wanted, "*/*")]
        super().__init__(files, sorted({label for _, label in files}), seed, ["folder"])
