"""What the same controls show under several schedules of Prompt-to-Prompt (DiG-IN, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from classifier_lens.models.generator.chain import Chain
from classifier_lens.runner.types import Controls, EditContext, Scene

MAX_IMAGES_PER_CALL = 8  # pictures of one call of the UNet beyond which more are no faster

# Which latents are predicted for, by position, and which of its samples are given maps.
BranchKey = tuple[int, tuple[bool, ...]]


@torch.no_grad()
def compare_schedules(chain: Chain, anchors: Sequence[EditContext], controls: Controls) -> list[Scene]:
    """What the same controls show under anchors that differ in their schedules alone.

    Steps in which some of them agree are computed once, the others' as many together as `MAX_IMAGES_PER_CALL` pictures
    are."""
    embeddings = {name: base + controls[name] for name, base in anchors[0].embeddings.items()}
    # Of the latents that differ so far, which one each anchor's chain is at.
    latents, at, ends = [controls["latent"]], [0] * len(anchors), [controls["latent"]]
    for i, noise in enumerate(anchors[0].variance_noise.unbind(1)):
        inputs: dict[object, Tensor] = {}
        branches = [(j, tuple(chain.is_blended(anchor, i).tolist())) for j, anchor in zip(at, anchors, strict=True)]
        for branch, anchor in zip(branches, anchors, strict=True):
            if branch not in inputs:
                inputs[branch] = chain.blend_background(latents[branch[0]], i, anchor)
        at, latents = [list(inputs).index(branch) for branch in branches], list(inputs.values())
        injected = [tuple((anchor.cross_replace_steps > i / len(chain)).tolist()) for anchor in anchors]
        asked = list(zip(at, injected, strict=True))
        now = {name: values[:, i] for name, values in embeddings.items()}
        predicted = _predictions(chain, latents, now, i, dict(zip(asked, anchors, strict=True)))
        moved = {key: chain.sampler.advance(latents[key[0]], p, noise, i) for key, p in predicted.items()}
        at = [list(moved).index(key) for key in asked]
        latents, ends = map(list, zip(*moved.values(), strict=True))
    images = [chain.networks.decode(z) for z in ends]
    return [Scene(images[j], ends[j], images[j].unsqueeze(1)) for j in at]


def _predictions(
    chain: Chain,
    latents: Sequence[Tensor],
    embeddings: Mapping[str, Tensor],
    i: int,
    asked: Mapping[BranchKey, EditContext],
) -> dict[BranchKey, Tensor]:
    """The predictions of step i for latents by their positions, each with the maps of an anchor."""
    keys, found = list(asked), dict[BranchKey, Tensor]()
    together = max(1, MAX_IMAGES_PER_CALL // len(latents[0]))
    for part in (keys[first : first + together] for first in range(0, len(keys), together)):
        z = torch.cat([latents[position] for position, _ in part])
        repeated = {name: values.repeat(len(part), 1, 1) for name, values in embeddings.items()}
        maps = chain.attention_control([asked[key] for key in part], i)
        predicted = chain.sampler.predict(chain.networks, z, repeated, i, maps)
        found |= dict(zip(part, predicted.chunk(len(part)), strict=True))
    return found
