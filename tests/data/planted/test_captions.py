"""Captions of scenes agree with their factors."""

from __future__ import annotations

import re
from collections import Counter

from classifier_lens.data.planted import (
    ABSENT,
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CAPTION_PREFIXES,
    CLASSES,
    HUES,
    IMAGE_KINDS,
    PROP_PHRASES,
    PROPS,
    caption,
    sample_captioned_scenes,
    sample_scenes,
)

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
