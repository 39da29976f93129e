"""Where a unit looks (DiG-IN, App. F.3): HiResCAM (Draelos & Carin, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from runner.types import Classifier, Pictures
from tasks.shares import KEPT, object_region, share_within
from tasks.units import FEATURES, Unit


def hirescam(classifier: Classifier, image: Float[Tensor, "3 h w"], unit: Unit) -> Float[Tensor, "h w"] | None:
    """Gradient of the unit times the last feature map, summed over channels, negative values cut off, at the picture's
    size and with sum 1 (all 0 where nothing speaks for the unit). None if the network has no such map.

    Tokens count as a square map; those in excess, such as a class token, stand first and are left out. A unit that lies
    before that map has its own output in the map's place.
    """
    layer = classifier.map_module
    if layer is None:
        return None
    with torch.enable_grad():
        modules = [layer] if unit.module == FEATURES else [layer, unit.module]
        response, traced = classifier.trace(image[None].detach().clone().requires_grad_(), modules)
        source = response.features if unit.module == FEATURES else traced[unit.module]
        assert source is not None
        value = source.flatten(2).mean(dim=2)[0, unit.index] if source.ndim == 4 else source[0, ..., unit.index].mean()
        maps = traced[layer]
        gradient: Tensor | None = torch.autograd.grad(value, maps, allow_unused=True, retain_graph=True)[0]
        if gradient is None:  # the unit lies before the map: what counts is where it is active itself
            maps, gradient = source, torch.autograd.grad(value, source)[0]
    if maps.ndim < 3:
        return None
    product = (gradient * maps).detach()
    product = product.sum(dim=1)[0] if product.ndim == 4 else _square(product.sum(dim=2)[0])
    large = F.interpolate(product[None, None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    positive = large.clamp(min=0)
    return positive / positive.sum().clamp(min=1e-12)


def _square(tokens: Float[Tensor, " l"]) -> Float[Tensor, "s s"]:
    side = int(len(tokens) ** 0.5)
    return tokens[len(tokens) - side * side :].view(side, side)


def cam_shares(classifier: Classifier, pictures: Pictures, unit: Unit, keep: str) -> dict[str, float]:
    """The share of a unit's map outside the object, before and after; nothing where no mask shows the object."""
    if keep not in KEPT:
        return {}
    region = object_region(pictures, keep)
    cams = {
        "before": hirescam(classifier, pictures["before"], unit),
        "after": hirescam(classifier, pictures["best"], unit),
    }
    return {f"cam_outside_{name}": share_within(cam, 1 - region) for name, cam in cams.items() if cam is not None}
