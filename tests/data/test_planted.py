"""Laws of the planted world: images agree with their factors, masks and captions."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from torch.nn.functional import max_pool2d

from classifier_lens.data.planted import (
    ABSENT,
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CAPTION_PREFIXES,
    CLASSES,
    HUES,
    IMAGE_KINDS,
    IMAGE_SIZE,
    PAIRS,
    PROP_PHRASES,
    PROPS,
    SceneFactors,
    caption,
    render,
    sample_captioned_scenes,
    sample_scenes,
)

ROUNDING = 1e-6
CLASS = f"(?P<label>{'|'.join(CLASSES)})"
GROUND = f"(?:a )?(?P<background>{'|'.join(BACKGROUNDS)})"
PROP = f"(?P<prop>{'|'.join(PROP_PHRASES.values())})"
PLACE = f"(?P<place>{'|'.join(BACKGROUND_PHRASES.values())})"
OPENING = f"(?:{'|'.join(CAPTION_PREFIXES)})"
GRAMMAR = {
    "object": rf"{OPENING} a (?:(?P<hue>{'|'.join(HUES)}) )?{CLASS}",
    "object in a place": rf"{OPENING} a (?:(?P<hue>{'|'.join(HUES)}) )?{CLASS} {PLACE}(?: with {PROP})?",
    "background": rf"{OPENING} {GROUND}",
    "prop": rf"{OPENING} {PROP}",
    "background texture": rf"a texture of {GROUND}",
    "prop texture": rf"a texture of {PROP}",
    "shape": rf"the shape of a {CLASS}",
}


def parse(text: str) -> tuple[str, dict[str, str]]:
    """The kind of a caption by the grammar, and the factors that it names."""
    result = [(form, match) for form, rule in GRAMMAR.items() if (match := re.fullmatch(rule, text))]
    assert len(result) == 1, f"'{text}' has {len(result)} readings"
    form, match = result[0]
    return form, {name: value for name, value in match.groupdict().items() if value}


def same(a: SceneFactors, b: SceneFactors) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


def difference(a: SceneFactors, b: SceneFactors) -> Tensor:
    """The largest change over the channels, (n, 64, 64)."""
    return (render(a).image - render(b).image).abs().amax(1)


def test_renders_500_images_a_second_on_one_thread() -> None:
    scenes = sample_scenes(256, seed=0)
    speeds = []
    for _ in range(8):  # other processes may share the core: its own time and the best round count
        start = time.process_time()
        render(scenes)
        speeds.append(256 / (time.process_time() - start))
        if speeds[-1] >= 500:
            return
    pytest.fail(f"at most {max(speeds):.0f} images per second")


def test_an_image_does_not_depend_on_its_batch() -> None:
    scenes, _ = sample_captioned_scenes(24, seed=3)
    together = render(scenes)
    for i in range(24):
        alone = render(scenes[i : i + 1])
        for name in ("image", "object_mask", "core_mask", "prop_mask"):
            assert torch.equal(getattr(together, name)[i], getattr(alone, name)[0])


def test_images_and_masks_are_in_range() -> None:
    scenes, _ = sample_captioned_scenes(200, seed=4)
    rendered = render(scenes)
    assert rendered.image.shape == (200, 3, IMAGE_SIZE, IMAGE_SIZE)
    for tensor in (rendered.image, rendered.object_mask, rendered.core_mask, rendered.prop_mask):
        assert tensor.dtype == torch.float32
        assert float(tensor.min()) >= 0 and float(tensor.max()) <= 1
    assert (rendered.core_mask <= rendered.object_mask + ROUNDING).all()
    assert (rendered.prop_mask + rendered.object_mask <= 1 + ROUNDING).all()


@pytest.mark.parametrize(
    "drawing", [sample_scenes, lambda n, seed, start=0: sample_captioned_scenes(n, seed, start)[0]]
)
def test_any_part_of_a_split_can_be_sampled_alone(drawing: Callable[..., SceneFactors]) -> None:
    whole = drawing(100, 5)
    assert same(drawing(10, 5), whole[:10])
    assert same(drawing(37, 5, 63), whole[63:])


def test_seeds_give_different_scenes() -> None:
    assert not torch.equal(sample_scenes(8, seed=1).u, sample_scenes(8, seed=2).u)


def test_factors_are_uniform_and_independent() -> None:
    scenes = sample_scenes(20_000, seed=6)
    factors = {
        "label": scenes.label,
        "background": scenes.background,
        "prop": scenes.prop,
        "hue": scenes.hue,
        "size": (scenes.u[:, 12] * 5).long(),
        "column": (scenes.u[:, 13] * 5).long(),
        "row": (scenes.u[:, 14] * 5).long(),
        "flip": (scenes.u[:, 22] < 0.5).long(),
    }
    for name, values in factors.items():
        present = values[values != ABSENT]
        assert chisquare(present.bincount().numpy()).pvalue > 1e-3, name
    for (a, x), (b, y) in combinations(factors.items(), 2):
        table = torch.zeros(int(x.max()) + 2, int(y.max()) + 2)
        table.index_put_((x - ABSENT, y - ABSENT), torch.tensor(1.0), accumulate=True)
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        assert chi2_contingency(table.numpy()).pvalue > 1e-3, (a, b)


@pytest.mark.parametrize("name", CLASSES)
def test_the_core_part_is_at_least_15_percent_of_the_object(name: str) -> None:
    rendered = render(sample_scenes(100, seed=9).with_factors(label=CLASSES.index(name), prop=ABSENT))
    share = rendered.core_mask.sum((1, 2)) / rendered.object_mask.sum((1, 2))
    assert float(share.min()) >= 0.15


def longest_side(mask: Tensor) -> Tensor:
    """The longer side of the box around each mask (n, 64, 64), as a share of the image's side."""
    return torch.maximum(mask.any(1).sum(1), mask.any(2).sum(1)) / IMAGE_SIZE


@pytest.mark.parametrize("name", CLASSES)
def test_an_object_takes_40_to_80_percent_of_the_side(name: str) -> None:
    """So it is for the object itself; its dark outline and a tilt of up to 8 degrees come on top, 90 % at most."""
    scenes = sample_scenes(200, seed=10).with_factors(label=CLASSES.index(name))
    whole = longest_side(render(scenes).object_mask > 0.5)
    assert float(whole.min()) >= 0.4 and float(whole.max()) <= 0.9

    upright = replace(scenes, u=scenes.u.clone())
    upright.u[:, 15] = 0.5
    mask = (render(upright).object_mask > 0.5).float()
    without_outline = longest_side(-max_pool2d(-mask[:, None], 3, stride=1, padding=1)[:, 0] > 0.5)
    pixel = 1 / IMAGE_SIZE
    assert float(without_outline.min()) >= 0.4 and float(without_outline.max()) <= 0.8 + pixel


# Measured over the range of sizes, with some room: what the two of a pair have in common beside their core part.
OVERLAP = {"fiddler crab": 0.65, "great white shark": 0.99, "prairie chicken": 0.85, "fireboat": 0.7,
           "steel arch bridge": 0.63}  # fmt: skip


@pytest.fixture(scope="module")
def outlines(one_thread: None) -> Tensor:
    """The same 50 scenes with each class in turn: (10, 50, 64, 64), whether a pixel belongs to the object."""
    scenes = sample_scenes(50, seed=11)
    return torch.stack([render(scenes.with_factors(label=i)).object_mask > 0.5 for i in range(len(CLASSES))])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_classes_of_a_pair_have_similar_outlines(pair: tuple[str, str], outlines: Tensor) -> None:
    a, b = (outlines[CLASSES.index(name)] for name in pair)

    def overlap(other: Tensor) -> Tensor:
        return (a & other).sum((1, 2)) / (a | other).sum((1, 2))

    assert float(overlap(b).min()) >= OVERLAP[pair[0]]
    for i, name in enumerate(CLASSES):
        assert name in pair or float(overlap(outlines[i]).mean()) < float(overlap(b).mean()), name


def test_a_change_of_hue_stays_inside_the_object() -> None:
    scenes = sample_scenes(100, seed=12)
    mask = render(scenes).object_mask
    change = difference(scenes.with_factors(hue=HUES.index("red")), scenes.with_factors(hue=HUES.index("blue")))
    assert float(change[mask == 0].max()) == 0
    assert (change.amax((1, 2)) > 0.3).all()


def test_a_change_of_background_stays_outside_the_object() -> None:
    scenes = sample_scenes(100, seed=13)
    mask = render(scenes).object_mask
    change = difference(scenes.with_factors(background=0), scenes.with_factors(background=BACKGROUNDS.index("forest")))
    assert float(change[mask == 1].max()) <= ROUNDING
    empty = render(scenes.with_factors(prop=ABSENT)).object_mask == 0
    bare = difference(scenes.with_factors(background=0, prop=ABSENT), scenes.with_factors(background=4, prop=ABSENT))
    assert float(bare[empty].min()) > 0.1


@pytest.mark.parametrize("prop", PROPS)
def test_a_prop_changes_its_mask_only(prop: str) -> None:
    scenes = sample_scenes(100, seed=14)
    shown = scenes.with_factors(prop=PROPS.index(prop))
    mask = render(shown).prop_mask
    change = difference(shown, scenes.with_factors(prop=ABSENT))
    assert float(change[mask == 0].max()) <= ROUNDING
    assert float(render(scenes.with_factors(prop=ABSENT)).prop_mask.max()) == 0
    assert float(mask.amax((1, 2)).min()) > 0.5


def test_captions_follow_the_grammar_and_agree_with_the_scene() -> None:
    scenes, captions = sample_captioned_scenes(5_000, seed=15)
    for i, text in enumerate(captions):
        form, message = parse(text)
        assert IMAGE_KINDS[int(scenes.kind[i])] == form.removesuffix(" in a place")
        if "label" in message:
            assert message["label"] == CLASSES[int(scenes.label[i])]
        if "hue" in message:
            assert message["hue"] == HUES[int(scenes.hue[i])]
        if "background" in message or "place" in message:
            background = BACKGROUNDS[int(scenes.background[i])]
            assert message.get("background", background) == background
            assert message.get("place", BACKGROUND_PHRASES[background]) == BACKGROUND_PHRASES[background]
        if "prop" in message:
            assert message["prop"] == PROP_PHRASES[PROPS[int(scenes.prop[i])]]
        elif form == "object in a place":
            assert scenes.prop[i] == ABSENT


def test_each_kind_has_at_least_3_percent_of_training() -> None:
    """The empty caption is missing here: training empties captions at random."""
    scenes, captions = sample_captioned_scenes(20_000, seed=16)
    shares = Counter(parse(text)[0] for text in captions)
    shares["texture"] = shares.pop("background texture") + shares.pop("prop texture")
    assert min(shares.values()) >= 0.03 * len(scenes), shares
    starts = {opening for opening in CAPTION_PREFIXES if any(text.startswith(opening) for text in captions)}
    assert starts == set(CAPTION_PREFIXES)


def test_a_full_caption_names_all_factors() -> None:
    scenes = sample_scenes(1, seed=17).with_factors(label=0, background=0, prop=1, hue=0)
    assert caption(scenes, 0, prefix=1) == "an image of a red fiddler crab on sand with a water jet"


def test_a_shape_is_uniform_on_a_uniform_background() -> None:
    rendered = render(sample_scenes(50, seed=18, kind="shape"))
    image, mask = rendered.image, rendered.object_mask
    outside = (mask == 0)[:, None].expand_as(image)
    assert len(image[outside].unique()) == 1
    assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])
    assert (image.amin((1, 2, 3)) < 0.2).all()
