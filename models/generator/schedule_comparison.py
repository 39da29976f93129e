"""Images of the same controls under several settings of Prompt-to-Prompt (DiG-IN, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from classifier_lens.models.generator.chain import Chain, DiffusionContext
from classifier_lens.runner.types import Controls, Scene

MAX_IMAGES_PER_CALL = 8  # images in one call of the UNet: more are not faster per image

# A position in the list of different latents, and which samples are injected with maps.
BranchKey = tuple[int, tuple[bool, ...]]


@torch.no_grad()
def compare_schedules(chain: Chain, contexts: Sequence[DiffusionContext], controls: Controls) -> list[Scene]:
    """One scene per context; contexts differ in `cross_replace_steps` and `background_blend_steps` alone.

    A step that is the same for several contexts is computed once; the others' are computed together, up to
    `MAX_IMAGES_PER_CALL` images in one call."""
    embeddings = {name: base + controls[name] for name, base in contexts[0].embeddings.items()}
    # The different latents so far, the position in them of each context's chain, and their x0-predictions.
    latents, positions, predictions = [controls["latent"]], [0] * len(contexts), [controls["latent"]]
    for i, noise in enumerate(contexts[0].variance_noise.unbind(1)):
        inputs: dict[object, Tensor] = {}
        blended = [
            (position, tuple(chain.is_blended(context, i).tolist()))
            for position, context in zip(positions, contexts, strict=True)
        ]
        for key, context in zip(blended, contexts, strict=True):
            if key not in inputs:
                inputs[key] = chain.blend_background(latents[key[0]], i, context)
        positions, latents = [list(inputs).index(key) for key in blended], list(inputs.values())
        injected = [tuple((context.cross_replace_steps > i / len(chain)).tolist()) for context in contexts]
        branches = list(zip(positions, injected, strict=True))
        step_embeddings = {name: values[:, i] for name, values in embeddings.items()}
        predicted = _predictions(chain, latents, step_embeddings, i, dict(zip(branches, contexts, strict=True)))
        outputs = {key: chain.sampler.advance(latents[key[0]], p, noise, i) for key, p in predicted.items()}
        positions = [list(outputs).index(key) for key in branches]
        latents, predictions = map(list, zip(*outputs.values(), strict=True))
    images = [chain.networks.decode(z) for z in predictions]
    return [Scene(images[j], predictions[j], images[j].unsqueeze(1)) for j in positions]


def _predictions(
    chain: Chain,
    latents: Sequence[Tensor],
    embeddings: Mapping[str, Tensor],
    i: int,
    branches: Mapping[BranchKey, DiffusionContext],
) -> dict[BranchKey, Tensor]:
    """The network's predictions at step i, by branch; the maps are those of the branch's context."""
    keys, predicted = list(branches), dict[BranchKey, Tensor]()
    branches_per_call = max(1, MAX_IMAGES_PER_CALL // len(latents[0]))
    for part in (keys[first : first + branches_per_call] for first in range(0, len(keys), branches_per_call)):
        z = torch.cat([latents[position] for position, _ in part])
        repeated = {name: values.repeat(len(part), 1, 1) for name, values in embeddings.items()}
        maps = chain.attention_control([branches[key] for key in part], i)
        outputs = chain.sampler.predict(chain.networks, z, repeated, i, maps)
        predicted |= dict(zip(part, outputs.chunk(len(part)), strict=True))
    return predicted
