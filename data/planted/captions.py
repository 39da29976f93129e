"""Captions of scenes."""

from __future__ import annotations

from classifier_lens.data.planted.factors import (
    ABSENT,
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CLASSES,
    HUES,
    IMAGE_KINDS,
    PROP_PHRASES,
    PROPS,
    SceneFactors,
)

CAPTION_PREFIXES = ("a photograph of", "an image of", "a picture of")
BACKGROUNDS_WITHOUT_ARTICLE = ("sand", "water", "dry grass", "snow")


def caption(scenes: SceneFactors, i: int, context: bool = True, hue: bool = True, prefix: int | None = None) -> str:
    """The caption of scene `i`.

    Args:
        context: whether it names background and prop.
        hue: whether it names the hue.
        prefix: index into `CAPTION_PREFIXES`, None for one that depends on the scene.
    """
    start = CAPTION_PREFIXES[int(scenes.u[i, 9] * len(CAPTION_PREFIXES)) if prefix is None else prefix]
    background = BACKGROUNDS[int(scenes.background[i])]
    prop = PROPS[int(scenes.prop[i])] if scenes.prop[i] != ABSENT else None
    article = "" if background in BACKGROUNDS_WITHOUT_ARTICLE else "a "
    match IMAGE_KINDS[int(scenes.kind[i])]:
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
    if context:
        words += [BACKGROUND_PHRASES[background], f"with {PROP_PHRASES[prop]}" if prop else ""]
    return " ".join(word for word in words if word)
