"""Where a unit looks (DiG-IN, App. F.3): HiResCAM (Draelos & Carin, 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import Images, UserError
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, object_region, share_inside
from classifier_lens.tasks.units.addressing import FEATURES, Unit

CAM_STAGES = {"before": "before", "after": "best"}  # what a picture is called in records and files, and in `Images`


def hirescam(
    classifier: Classifier, image: Float[Tensor, "3 h w"], unit: Unit, layer: str | None = None
) -> Float[Tensor, "h w"] | None:
    """Gradient of the unit times a feature map, that of `layer` or the last one, summed over channels, negative values
    cut off, at the picture's size and with sum 1 (all 0 where nothing speaks for the unit). None if the network has no
    such map.

    Tokens count as a square map; those in excess, such as a class token, stand first and are left out. A unit that lies
    before that map has its own output in the map's place.
    """
    layer = layer or classifier.cam_module
    if layer is None:
        return None
    with torch.enable_grad():
        modules = [layer] if unit.module == FEATURES else [layer, unit.module]
        response, traced = classifier.forward_with_activations(image[None].detach().clone().requires_grad_(), modules)
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


@dataclass(frozen=True)
class HiResCam:
    """Where units look. layer: the module whose map is read, None for the network's last one. Layers behind the map may
    spread what they see, or weigh channels by the whole picture; an earlier one then tells better where it was."""

    layer: str | None

    def check(self, classifier: Classifier) -> None:
        """Raises UserError if the classifier has no such module, or one without places."""
        if self.layer is None:
            return
        with torch.no_grad():
            _, traced = classifier.forward_with_activations(
                torch.zeros(1, 3, classifier.size, classifier.size), [self.layer]
            )
        if traced[self.layer].ndim < 3:
            raise UserError(f"task.cam.layer={self.layer}: its output has no places; wanted is a feature map or tokens")

    def heatmaps(self, classifier: Classifier, pictures: Images, unit: Unit) -> dict[str, Tensor]:
        """Maps (1, h, w) of both pictures, brightest where the unit looks most; nothing where there is no map."""
        return {
            f"cam-{name}": (cam / cam.max().clamp(min=1e-12))[None]
            for name, cam in self._maps(classifier, pictures, unit)
        }

    def shares_outside_object(
        self, classifier: Classifier, pictures: Images, unit: Unit, preserve: str
    ) -> dict[str, float]:
        """The share of the unit's map outside the object in both pictures; nothing where no mask shows the object."""
        if preserve not in PRESERVE_WITH_OBJECT_MASK:
            return {}
        outside = 1 - object_region(pictures, preserve)
        return {
            f"cam_outside_{name}": share_inside(cam, outside) for name, cam in self._maps(classifier, pictures, unit)
        }

    def _maps(self, classifier: Classifier, pictures: Images, unit: Unit) -> list[tuple[str, Tensor]]:
        found = ((name, hirescam(classifier, pictures[key], unit, self.layer)) for name, key in CAM_STAGES.items())
        return [(name, cam) for name, cam in found if cam is not None]
