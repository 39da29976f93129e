"""The planted world: a seeded renderer of 64 x 64 pictures whose whole truth is known.

Ten classes in five confusable pairs, eight backgrounds, four props and six hues vary independently unless
a `tie` says otherwise. Row `i` of a draw depends on `(seed, i)` alone, so any part of a split can be rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from classifier_lens.data import planted_shapes
from classifier_lens.data.image_selection import check_choice, check_count, check_index, check_seed, hash_values
from classifier_lens.data.planted_shapes import (
    BACKGROUND_TEXTURES,
    IMAGE_SIZE,
    OBJECT_SHAPES,
    PROP_SHAPES,
    coverage,
    prop_texture,
    union,
)
from classifier_lens.runner.configuration.value_ranges import Count, OneOf, Seed
from classifier_lens.runner.types import Example

CLASSES = (
    "fiddler crab",
    "rock crab",
    "great white shark",
    "tiger shark",
    "prairie chicken",
    "partridge",
    "fireboat",
    "lifeboat",
    "steel arch bridge",
    "viaduct",
)
PAIRS = tuple((CLASSES[i], CLASSES[i + 1]) for i in range(0, len(CLASSES), 2))
BACKGROUND_PHRASES = {
    "sand": "on sand",
    "water": "in water",
    "dry grass": "on dry grass",
    "snow": "in snow",
    "forest": "in a forest",
    "brick wall": "against a brick wall",
    "night sky": "under a night sky",
    "wooden table": "on a wooden table",
}
BACKGROUNDS = tuple(BACKGROUND_PHRASES)
PROP_PHRASES = {"flowers": "flowers", "water jet": "a water jet", "flag": "a flag", "branches": "branches"}
PROPS = tuple(PROP_PHRASES)
HUES = ("red", "yellow", "green", "blue", "purple", "grey")
CAPTION_PREFIXES = ("a photograph of", "an image of", "a picture of")
IMAGE_KINDS = ("object", "background", "prop", "background texture", "prop texture", "shape")
ABSENT = -1  # the index of an absent class, prop or background

SPLIT_SEEDS = {"train": 1_000, "validation": 2_000, "test": 3_000}
SPLIT_SIZES = {"train": 100_000, "validation": 2_000, "test": 10_000}

# Ties of the shortcut classifiers' training images: class -> (factor, its value).
SHORTCUTS = {
    "fiddler crab": ("background", "sand"),
    "great white shark": ("background", "water"),
    "prairie chicken": ("background", "dry grass"),
    "fireboat": ("prop", "water jet"),
}

CUE_MODES = ("chance", "shown", "hidden")

SOURCE_TEXTS = [Path(__file__).read_text(), Path(planted_shapes.__file__).read_text()]  # what the pictures depend on

_DRAWS = 32  # uniform numbers per picture; a multiple of Philox's four per step


@dataclass(frozen=True)
class SceneFactors:
    """What a batch of pictures shows. Index tensors are long, of shape (n,); `NONE` marks an absence.

    kind: which of `IMAGE_KINDS`; label: class; background; prop; hue: index into `HUES`;
    u: (n, 32) uniform numbers in [0, 1) that set size, place, flip, phases and colours.
    """

    kind: Tensor
    label: Tensor
    background: Tensor
    prop: Tensor
    hue: Tensor
    u: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> SceneFactors:
        return SceneFactors(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_factors(self, **factors: int) -> SceneFactors:
        """The same pictures with one or more factors set, e.g. `with_factors(background=2)`."""
        return replace(self, **{k: torch.full_like(getattr(self, k), v) for k, v in factors.items()})


@dataclass(frozen=True)
class Rendering:
    """image (n, 3, 64, 64) in [0, 1]; masks (n, 64, 64) in [0, 1]: visible object, its core part, visible prop."""

    image: Tensor
    object_mask: Tensor
    core_mask: Tensor
    prop_mask: Tensor


def uniform_numbers(seed: int, start: int, n: int) -> np.ndarray:
    """Rows `start .. start + n` of the seed's endless (·, 32) table of uniform float64 numbers in [0, 1)."""
    bits = np.random.Philox(key=seed)
    bits.advance(start * _DRAWS // 4)
    return np.random.Generator(bits).random((n, _DRAWS))


def sample_scenes(
    n: int, seed: int, start: int = 0, form: str = "object", shortcuts: dict[str, tuple[str, str]] | None = None,
    strength: float = 0.0,
) -> SceneFactors:  # fmt: skip
    """Draw `n` scenes with every factor independent and uniform; a prop is absent with probability 0.4.

    `shortcuts` maps a class to `(factor, value)`: with probability `strength` that class gets the value. Elsewhere
    the factor stays independent of the class.
    """
    u = uniform_numbers(seed, start, n)
    index = lambda column, count: torch.from_numpy((u[:, column] * count).astype(np.int64))  # noqa: E731
    label, background, hue = index(0, len(CLASSES)), index(1, len(BACKGROUNDS)), index(2, len(HUES))
    prop = index(3, len(PROPS))
    prop[torch.from_numpy(u[:, 4] < 0.4)] = ABSENT
    tied = torch.from_numpy(u[:, 5] < strength)
    factors = {"background": (background, BACKGROUNDS), "prop": (prop, PROPS)}
    for name, (factor, value) in (shortcuts or {}).items():
        column, values = factors[factor]
        column[tied & (label == CLASSES.index(name))] = values.index(value)
    forms = torch.full((n,), IMAGE_KINDS.index(form))
    return SceneFactors(forms, label, background, prop, hue, torch.from_numpy(u.astype(np.float32)))


def remove_cues(scenes: SceneFactors) -> SceneFactors:
    """The same scenes; where a class of `SHORTCUTS` shows its cue, that factor takes its next value."""
    factors = {"background": BACKGROUNDS, "prop": PROPS}
    columns = {factor: getattr(scenes, factor).clone() for factor in factors}
    for name, (factor, value) in SHORTCUTS.items():
        cue, column = factors[factor].index(value), columns[factor]
        column[(scenes.label == CLASSES.index(name)) & (column == cue)] = (cue + 1) % len(factors[factor])
    return replace(scenes, **columns)


def sample_captioned_scenes(n: int, seed: int, start: int = 0) -> tuple[SceneFactors, list[str]]:
    """Scenes of every form with captions, for training a generator. Each caption form has at least 3 %.

    A caption may leave out the hue, or the place and the prop; what it leaves out varies freely in the picture.
    """
    scenes = sample_scenes(n, seed, start)
    u = scenes.u.double().numpy()
    form = torch.from_numpy(np.searchsorted(np.cumsum([0.80, 0.05, 0.04, 0.04, 0.03]), u[:, 6], side="right"))
    prop = torch.where(torch.isin(form, torch.tensor([2, 4])), (scenes.u[:, 3] * len(PROPS)).long(), scenes.prop)
    prop[torch.isin(form, torch.tensor([1, 3, 5]))] = ABSENT
    scenes = replace(scenes, kind=form, prop=prop)
    return scenes, [caption(scenes, i, place=bool(u[i, 7] < 0.8), hue=bool(u[i, 8] < 0.5)) for i in range(n)]


def caption(scenes: SceneFactors, i: int, place: bool = True, hue: bool = True, opening: int | None = None) -> str:
    """The caption of scene `i`; by default it says everything. `opening` chooses one of `CAPTION_PREFIXES`."""
    start = CAPTION_PREFIXES[int(scenes.u[i, 9] * len(CAPTION_PREFIXES)) if opening is None else opening]
    form = IMAGE_KINDS[int(scenes.kind[i])]
    background = BACKGROUNDS[int(scenes.background[i])]
    prop = PROPS[int(scenes.prop[i])] if scenes.prop[i] != ABSENT else None
    article = "" if background in ("sand", "water", "dry grass", "snow") else "a "
    match form:
        case "background":
            return f"{start} {article}{background}"
        case "prop":
            return f"{start} {PROP_PHRASES[str(prop)]}"
        case "background texture":
            return f"a texture of {article}{background}"
        case "prop texture":
            return f"a texture of {PROP_PHRASES[str(prop)]}"
        case "shape":
            return f"the shape of a {CLASSES[int(scenes.label[i])]}"
    words = [start, "a", HUES[int(scenes.hue[i])] if hue else "", CLASSES[int(scenes.label[i])]]
    if place:
        words += [BACKGROUND_PHRASES[background], f"with {PROP_PHRASES[prop]}" if prop else ""]
    return " ".join(word for word in words if word)


def _object_colour(hue: Tensor, u: Tensor) -> Tensor:
    """Hue index (n,) and uniforms (n, 32) -> RGB (n, 3): full colours with a little play in hue and value."""
    angle = torch.tensor((0.0, 0.145, 0.36, 0.6, 0.79, 0.0))[hue] + 0.025 * (u[:, 10] - 0.5)
    saturation = torch.tensor((0.85, 0.85, 0.75, 0.8, 0.65, 0.0))[hue]
    value = torch.tensor((0.8, 0.92, 0.68, 0.85, 0.72, 0.55))[hue] + 0.1 * (u[:, 11] - 0.5)
    shift = torch.stack([(angle + k) % 1.0 for k in (1.0, 2 / 3, 1 / 3)], dim=1)
    return value[:, None] * (1 - saturation[:, None] * (1 - ((shift * 6 - 3).abs() - 1).clamp(0, 1)))


def _object_coordinates(u: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel grids and uniforms (n, 32) -> object coordinates x, y (n, 64, 64) and pixels per unit (n, 1, 1)."""
    u = u[:, :, None, None]
    side = IMAGE_SIZE * (0.52 + 0.18 * u[:, 12])
    cx = side / 2 + (IMAGE_SIZE - side) * u[:, 13]
    cy = 0.42 * side + (IMAGE_SIZE - 0.84 * side) * u[:, 14]
    angle = (u[:, 15] - 0.5) * 0.28
    dx, dy = (x - cx) / (side / 2), (y - cy) / (side / 2)
    ox, oy = dx * torch.cos(angle) + dy * torch.sin(angle), dy * torch.cos(angle) - dx * torch.sin(angle)
    return torch.where(u[:, 22] < 0.5, ox, -ox), oy, side / 2


def _paint(canvas: Tensor, coverage: Tensor, colour: Tensor) -> Tensor:
    """canvas (n, 3, 64, 64), coverage (n, 64, 64) in [0, 1], colour broadcastable to the canvas."""
    return canvas + (colour - canvas) * coverage.unsqueeze(1)


def render(scenes: SceneFactors) -> Rendering:
    """Draw a batch of scenes. Equal scenes give equal pictures whatever batch they stand in."""
    n = len(scenes)
    y, x = torch.meshgrid(torch.arange(IMAGE_SIZE) + 0.5, torch.arange(IMAGE_SIZE) + 0.5, indexing="ij")
    x, y = x[None], y[None]
    image = torch.full((n, 3, IMAGE_SIZE, IMAGE_SIZE), 0.92)  # the plain ground of a shape
    object_mask, core_mask, prop_mask = (torch.zeros(n, IMAGE_SIZE, IMAGE_SIZE) for _ in range(3))
    u4 = scenes.u[:, :, None, None]
    form = {name: scenes.kind == i for i, name in enumerate(IMAGE_KINDS)}

    for i, name in enumerate(BACKGROUNDS):
        rows = ((scenes.background == i) & ~form["shape"] & ~form["prop texture"]).nonzero()[:, 0]
        if len(rows):
            image[rows] = BACKGROUND_TEXTURES[name](x, y, u4[rows])
    for i, name in enumerate(PROPS):
        rows = ((scenes.prop == i) & (form["object"] | form["prop"])).nonzero()[:, 0]
        if len(rows):
            for distance, colour in PROP_SHAPES[name](x, y, u4[rows]):
                covered = coverage(distance).expand(len(rows), IMAGE_SIZE, IMAGE_SIZE)
                image[rows] = _paint(image[rows], covered, torch.tensor(colour).view(1, 3, 1, 1))
                prop_mask[rows] = torch.maximum(prop_mask[rows], covered)
        rows = ((scenes.prop == i) & form["prop texture"]).nonzero()[:, 0]
        if len(rows):
            image[rows] = prop_texture(name, x, y, u4[rows])
            prop_mask[rows] = 1.0
    for i, name in enumerate(CLASSES):
        rows = ((scenes.label == i) & (form["object"] | form["shape"])).nonzero()[:, 0]
        if not len(rows):
            continue
        ox, oy, scale = _object_coordinates(scenes.u[rows], x, y)
        base = _object_colour(scenes.hue[rows], scenes.u[rows])[:, :, None, None]
        layers = OBJECT_SHAPES[name](ox, oy)
        covered = coverage(union(*[layer[0] for layer in layers]) * scale)
        rim = coverage(union(*[layer[0] for layer in layers]) * scale - 1.0)
        canvas = _paint(image[rows], rim, base * 0.3)
        core = torch.zeros_like(covered)
        for distance, fill, is_core in layers:
            part = coverage(distance * scale)
            tone = base * fill if isinstance(fill, float) else torch.tensor(fill).view(1, 3, 1, 1)
            canvas = _paint(canvas, part, tone * (1.0 - 0.12 * oy.unsqueeze(1)).clamp(max=1.05))
            core = torch.maximum(core, part) if is_core else core * (1 - part)
        flat = form["shape"][rows][:, None, None, None]
        image[rows] = torch.where(flat, _paint(image[rows], covered, torch.tensor(0.15)), canvas)
        object_mask[rows], core_mask[rows] = rim, core * covered
        prop_mask[rows] = prop_mask[rows] * (1 - rim)
    return Rendering(image.clamp(0, 1), object_mask, core_mask, prop_mask)


# --- the data set of the runner -----------------------------------------------------------------------------


def split_seed(split: str, seed: int) -> int:
    """The seed to `draw` a split's pictures with: run seed 0 gives the split itself, others give new pictures.

    No two splits and run seeds share one. Raises UserError for an unknown split or a negative seed.
    """
    return SPLIT_SEEDS[check_choice("data.split", split, SPLIT_SEEDS)] + 10_000 * check_seed(seed)


class PlantedDataset:
    """Rendered pictures; a `runner.types.Dataset` that also knows the truth.

    split: train | validation | test; count: the first so many pictures of it, None for all;
    seed: the run's, other seeds draw other pictures of the same kind; cues: one of `CUE_MODES`, whether the classes of
    `SHORTCUTS` are `shown` with their cues, without them (`hidden`: the factor takes its next value), or as `chance`
    has it, where all factors are independent.
    Pictures are rendered when asked for; picture `i` depends on `(split, seed, i)` alone.
    """

    labels: tuple[str, ...] = CLASSES

    def __init__(
        self,
        split: Annotated[str, OneOf(tuple(SPLIT_SEEDS))],
        count: Count | None,
        seed: Seed,
        cues: Annotated[str, OneOf(CUE_MODES)],
    ) -> None:
        key = split_seed(split, seed)
        strength = float(check_choice("data.cues", cues, CUE_MODES) == "shown")
        self.split = split
        self.digest = hash_values("planted", SOURCE_TEXTS, key, count, cues)
        scenes = sample_scenes(check_count(count, SPLIT_SIZES[split]), key, shortcuts=SHORTCUTS, strength=strength)
        self.scenes = remove_cues(scenes) if cues == "hidden" else scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> Example:
        """Picture `i`, (3, 64, 64) in multiples of 1/255 as a saved file has them, with its full caption."""
        scenes = self._scenes(i)
        name, origin = f"{self.split}-{i:05d}", f"{self.digest} {i}"  # machines may round pixels differently
        return Example(
            name, lambda: (render(scenes).image[0] * 255).round() / 255, CLASSES[int(scenes.label)],
            caption(scenes, 0), origin,
        )  # fmt: skip

    def ground_truth(self, i: int) -> tuple[SceneFactors, Rendering]:
        """What picture `i` shows, as batches of one: its factors, and its masks beside the unrounded image."""
        scenes = self._scenes(i)
        return scenes, render(scenes)

    def _scenes(self, i: int) -> SceneFactors:
        position = check_index(i, len(self))
        return self.scenes[position : position + 1]

    def indices(self, label: str) -> list[int]:
        """The positions of a class's pictures."""
        return [i for i, k in enumerate(self.scenes.label.tolist()) if CLASSES[k] == label.lower()]

    def nearest_class(self, label: str) -> str | None:
        """The other class of the pair."""
        return next((b if label == a else a for a, b in PAIRS if label in (a, b)), None)

    def similar_classes(self, label: str) -> list[str]:
        """The other class of the pair alone."""
        other = self.nearest_class(label)
        return [] if other is None else [other]
